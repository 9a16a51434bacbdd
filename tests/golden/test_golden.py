"""Golden vectors: remade they are the same, a C program passes by them, and wrong answers fail."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from minimax_numpy import MiniMaxForCausalLM
from minimax_numpy.check.golden import judge_golden, write_model, write_op
from minimax_numpy.check.single import CASES
from minimax_numpy.checkpoint import read_tensors, save_tensors
from minimax_numpy.cli import main
from minimax_numpy.shipped import TINY, make

HERE = Path(__file__).parent


def answers_of(folder: Path) -> dict[str, np.ndarray]:
    """The right answers, without what is allowed of them."""
    return {
        k: x
        for k, x in read_tensors(folder / "expected.safetensors").items()
        if ".plain." not in k and ".magnitude" not in k
    }


def test_the_shipped_model_is_what_its_command_makes(tmp_path):
    """Configuration, weights and tokenizer, to the byte; and a folder made elsewhere lacks nothing."""
    make(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in TINY.iterdir()}
    for file in TINY.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), f"make tiny makes {file.name} again"


@pytest.mark.parametrize("name", sorted(CASES))
def test_right_answers_pass_in_every_type(name, tmp_path):
    write_op(tmp_path, name)
    for dtype in (np.float64, np.float32):
        actual = tmp_path / "actual.safetensors"
        save_tensors(actual, {key: np.asarray(x).astype(dtype) for key, x in answers_of(tmp_path).items()})
        judge_golden(tmp_path, actual).raise_if_different()


def test_vectors_are_remade_to_the_bit(tmp_path):
    for folder in ("a", "b"):
        write_op(tmp_path / folder, "lightning_attention_chunked", seed=3)
    for file in ("inputs.safetensors", "expected.safetensors", "golden.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_c_program_passes(tmp_path):
    source = HERE / "lightning.c"
    assert len(source.read_text().splitlines()) <= 100
    write_op(tmp_path / "vectors", "lightning_attention_recurrent")
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", tmp_path / "lightning", source, "-lm"], check=True)
    actual = tmp_path / "actual.safetensors"
    subprocess.run([tmp_path / "lightning", tmp_path / "vectors" / "inputs.safetensors", actual], check=True)
    judge_golden(tmp_path / "vectors", actual).raise_if_different()


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_c_program_that_reads_before_it_writes_is_told_so(tmp_path):
    right = (HERE / "lightning.c").read_text()
    read, write = (
        "o[j] += (float)qt[i] * S[i * e + j];",
        "S[i * e + j] = keep * S[i * e + j] + (float)kt[i] * (float)vt[j];",
    )
    assert right.count(read) == right.count(write) == 1
    wrong = right.replace(read, "@").replace(write, read).replace("@", write)
    (tmp_path / "wrong.c").write_text(wrong)
    write_op(tmp_path / "vectors", "lightning_attention_recurrent")
    subprocess.run(["cc", "-O2", "-o", tmp_path / "wrong", tmp_path / "wrong.c", "-lm"], check=True)
    actual = tmp_path / "actual.safetensors"
    subprocess.run([tmp_path / "wrong", tmp_path / "vectors" / "inputs.safetensors", actual], check=True)
    report = judge_golden(tmp_path / "vectors", actual)
    assert report.looks_like == "the state is read before it is written"


def test_vectors_of_a_model_name_every_part(tmp_path):
    model = MiniMaxForCausalLM.from_pretrained(TINY, np.float64)
    write_model(tmp_path, model)
    right = answers_of(tmp_path)
    actual = tmp_path / "actual.safetensors"
    save_tensors(actual, {name: x.astype(np.float32) if x.dtype == np.float64 else x for name, x in right.items()})
    judge_golden(tmp_path, actual).raise_if_different()

    wrong = {**right, "model.layers.3.self_attn.norm": right["model.layers.3.self_attn.norm"] * 1.5}
    save_tensors(actual, wrong)
    report = judge_golden(tmp_path, actual)
    assert report.first == "model.layers.3.self_attn.norm"
    assert "times 1.5" in str(report)


def test_missing_answers_are_no_pass_but_for_padding(tmp_path):
    """A program may know nothing of padding; every other answer must be there."""
    write_op(tmp_path, "lightning_attention_chunked")
    actual = tmp_path / "actual.safetensors"
    right = answers_of(tmp_path)
    padded = {
        f"{i}."
        for i, case in enumerate(json.loads((tmp_path / "golden.json").read_text())["cases"])
        if "padding" in case["case"]
    }
    unpadded = {key: x for key, x in right.items() if not key.startswith(tuple(padded))}
    save_tensors(actual, unpadded)
    report = judge_golden(tmp_path, actual)
    assert report.ok and {row.verdict for row in report.rows} == {"same", "missing"}
    for some in (
        {"0.out": right["0.out"]},
        {"zero.out": right["0.out"]},
        {k: x for k, x in unpadded.items() if k != "3.state"},
    ):
        save_tensors(actual, some)
        report = judge_golden(tmp_path, actual)
        assert not report.ok and "is missing" in str(report)


def test_nan_at_padding_is_no_answer(tmp_path):
    write_op(tmp_path, "lightning_attention_chunked")
    actual = tmp_path / "actual.safetensors"
    right = answers_of(tmp_path)
    case = next(key for key in right if key.endswith(".out") and right[key].shape == (3, 2, 41, 8))
    right[case][0, :, 0] = np.nan
    save_tensors(actual, right)
    assert "padded positions" in str(judge_golden(tmp_path, actual))


def test_bad_folders_get_one_sentence(tmp_path, capsys):
    assert main(["crosscheck", "--golden", str(tmp_path), "--against", "none.safetensors"]) == 2
    write_op(tmp_path, "rms_norm")
    assert main(["crosscheck", "--golden", str(tmp_path), "--against", "none.safetensors"]) == 2
    (tmp_path / "golden.json").write_text("{}")
    assert main(["crosscheck", "--golden", str(tmp_path), "--against", "none.safetensors"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 3 and all(line.startswith("minimax-twin: ") for line in told)
