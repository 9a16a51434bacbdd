"""Chapter 10: a file from any language is judged, and whatever is wrong with it is told in words."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from exercises.programs import golden, written
from minimax_numpy.check import exercise
from minimax_numpy.check.exercises import EXERCISES
from minimax_numpy.checkpoint import read_tensors, save_tensors

PORTS = [asked for asked in EXERCISES.values() if asked.kind == "port"]
C_PROGRAM = Path(__file__).parents[1] / "golden" / "lightning.c"


@pytest.fixture(scope="module")
def right():
    """The answers that the solution of 10.3 writes."""
    return read_tensors(written(EXERCISES["10.3"].solution))


@pytest.fixture
def judged(tmp_path):
    """The verdict on arrays that are handed in as a file."""

    def verdict(arrays, number="10.3"):
        save_tensors(tmp_path / "actual.safetensors", {name: np.asarray(x) for name, x in arrays.items()})
        return exercise(number, str(tmp_path / "actual.safetensors"))

    return verdict


@pytest.mark.parametrize("asked", PORTS, ids=lambda asked: asked.number)
def test_a_solution_shares_nothing_with_the_project(asked):
    assert "minimax" not in asked.solution


@pytest.mark.parametrize("asked", PORTS, ids=lambda asked: asked.number)
def test_float32_is_judged_as_float32(asked, judged):
    """A right program passes, and every mistake is called by its name."""
    for source, says in [(asked.solution, None), *((m.source, m.says) for m in asked.mistakes)]:
        with np.errstate(over="ignore"):
            narrow = {name: x.astype(np.float32) for name, x in read_tensors(written(source)).items()}
        verdict = judged(narrow, asked.number)
        assert verdict.ok == (says is None) and verdict.mistake == says, verdict


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_c_program_passes(tmp_path):
    subprocess.run(["cc", "-O2", "-o", tmp_path / "lightning", C_PROGRAM, "-lm"], check=True)
    vectors, actual = golden("lightning_attention_recurrent"), tmp_path / "actual.safetensors"
    subprocess.run([tmp_path / "lightning", vectors / "inputs.safetensors", actual], check=True)
    assert (verdict := exercise("10.3", actual)).ok, verdict
    assert "10 cases" in str(verdict)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_c_program_that_decays_its_own_token_is_told_so(tmp_path):
    text = C_PROGRAM.read_text()
    spoilt = text.replace("keep * S[i * e + j] + (float)kt[i] * (float)vt[j]",
                          "keep * (S[i * e + j] + (float)kt[i] * (float)vt[j])")  # fmt: skip
    assert spoilt != text
    (tmp_path / "wrong.c").write_text(spoilt)
    subprocess.run(["cc", "-O2", "-o", tmp_path / "wrong", tmp_path / "wrong.c", "-lm"], check=True)
    vectors, actual = golden("lightning_attention_recurrent"), tmp_path / "actual.safetensors"
    subprocess.run([tmp_path / "wrong", vectors / "inputs.safetensors", actual], check=True)
    verdict = exercise("10.3", actual)
    assert not verdict.ok and verdict.mistake == "a token's own contribution is decayed"
    assert "First wrong: 0.out, the answer to case 0, “several chunks, the last one short”." in str(verdict)
    assert "At B = 0, H = 0, T = 0, e = 0 it is" in str(verdict)


def test_padding_may_be_left_out_and_is_told(right, judged):
    padded = {f"{i}.{name}" for i in (8, 9) for name in ("out", "state")}
    verdict = judged({name: x for name, x in right.items() if name not in padded})
    assert verdict.ok and "Not answered, so not judged: padding on the left" in str(verdict)


def test_what_is_missing_is_told_with_what_is_there(right, judged):
    verdict = judged({name: x for name, x in right.items() if name != "1.state"})
    assert not verdict.ok and "1.state is missing: the answer to case 1, “whole chunks”." in str(verdict)
    assert "Your file holds 0.out, 0.state, 1.out" in str(verdict)
    assert "0.out is missing" in str(judged({"out": right["0.out"]}))


def test_a_wrong_answer_is_told_before_a_later_one_that_is_missing(right, judged):
    verdict = judged({name: x + (name == "0.state") for name, x in right.items() if name != "1.state"})
    assert "First wrong: 0.state" in str(verdict)


def test_a_wrong_shape_is_told(right, judged):
    verdict = judged({**right, "0.out": right["0.out"].swapaxes(1, 2)})
    assert "First wrong: 0.out" in str(verdict) and "It has shape [2, 70, 3, 8], not [2, 3, 70, 8]." in str(verdict)


def test_the_first_wrong_position_in_time_is_told(right, judged):
    out = right["4.out"].copy()
    out[0, 0, 20:, 3] += 0.5
    verdict = judged({**right, "4.out": out})
    assert "case 4, “one head, odd length”" in str(verdict) and "At B = 0, H = 0, T = 20, e = 3 it is" in str(verdict)


@pytest.mark.parametrize("spoil", [np.zeros_like, lambda x: np.full(x.shape, np.nan), lambda x: -x])
def test_garbage_never_passes(spoil, right, judged):
    assert not judged({name: spoil(x) for name, x in right.items()}).ok


@pytest.mark.parametrize(
    "content, told",
    [(b"", "is not a safetensors file"), (b"\x93NUMPY" + 99 * b"\0", "is not a safetensors file"),
     (b"\x02" + 7 * b"\0" + b"[]", "has a damaged header")],
)  # fmt: skip
def test_a_file_that_is_none_is_told(content, told, tmp_path):
    (tmp_path / "actual.safetensors").write_bytes(content)
    assert told in str(exercise("10.1", tmp_path / "actual.safetensors"))


def test_an_answer_that_is_no_file_is_told(tmp_path):
    assert "The answer is the path of a safetensors file; this is a dict." in str(exercise("10.1", {}))
    assert "There is no file" in str(exercise("10.1", tmp_path / "nothing"))
    assert "There is no file" in str(exercise("10.1", tmp_path))
