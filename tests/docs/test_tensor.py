"""Bring your tensor: the page reads files as numpy and safetensors write them, and judges as the judge does.

Its functions run here in a JavaScript engine without a browser. Packed npz files need one: `tests/docs/browse.py`.
"""

import io
import json
import re
import runpy
import subprocess
import textwrap
from pathlib import Path

import minimax_torch
import numpy as np
import pytest
import torch
from minimax_numpy import ops
from minimax_numpy.check import DEFECTS
from minimax_numpy.check.golden import judge_golden, write_op
from minimax_numpy.check.single import CASES, Case, Projection, answers, letters, outputs
from minimax_numpy.checkpoint import read_tensors, save_tensors
from minimax_numpy.trace import float32_to_bfloat16, round_to
from py_mini_racer import MiniRacer

DOCS = Path(__file__).parents[2] / "docs"
FILES = ("tensor-files", "tensor-ops")
PLAIN = """
function read({ name, latin }) {
  const bytes = Uint8Array.from(latin, (c) => c.charCodeAt(0));
  if (!latin.startsWith("PK")) return readSafetensors(bytes, name);
  const tensors = {};
  for (const entry of zipEntries(bytes, name)) {
    const short = entry.name.slice(0, -4);
    tensors[short] = readNpy(entry.bytes, short, name);
  }
  return { tensors, story: {} };
}
function judged(files, story, op) {
  try {
    const read_ = [...files.map(read), { tensors: {}, story }];
    return judgeAll(casesOf(read_, (sentence) => { throw new Refusal(sentence); }, op));
  } catch (error) {
    if (error instanceof Refusal) return { refused: error.message };
    throw error;
  }
}
"""
NARROW = ("float32", "bfloat16", "float16")
OPS = (
    "lightning_attention_chunked",
    "lightning_attention_recurrent",
    "lightning_attention_direct",
    "softmax_attention",
    "apply_rotary",
    "swiglu",
    "output_gate",
    "rms_norm",
    "route",
    "silu",
)

FORMS = ("lightning_attention_recurrent", "lightning_attention_direct")  # judged like the chunked form


@pytest.fixture(scope="module")
def engine():
    running = MiniRacer()
    for file in FILES:
        source = (DOCS / "assets" / "widgets" / f"{file}.js").read_text(encoding="utf-8")
        source = re.sub(r"^import .*\n", "", source, flags=re.MULTILINE)
        running.eval(re.sub(r"^export ", "", source, flags=re.MULTILINE))
    running.eval(PLAIN)
    return running


@pytest.fixture(scope="module")
def judge(engine):
    """Files, name → bytes, to what the page says of them."""

    def judged(files, story=None, op=""):
        told = [{"name": name, "latin": data.decode("latin-1")} for name, data in files.items()]
        return json.loads(
            engine.eval(f"JSON.stringify(judged({json.dumps(told)}, {json.dumps(story or {})}, {json.dumps(op)}))")
        )

    return judged


def stored(x, dtype):
    """An array as it lies in a file of that type."""
    x = np.asarray(x)
    if x.ndim == 0 or x.dtype.kind != "f":  # a number of the op's, such as eps, is never narrow
        return x
    return float32_to_bfloat16(x.astype("f4")) if dtype == "bfloat16" else x.astype(dtype)


def safetensors(folder, arrays, dtype="float64", slopes="float32"):
    """The bytes of a safetensors file; slopes stay wide."""
    wide = slopes if dtype != "float64" else "float64"
    save_tensors(folder / "x.safetensors", {n: stored(x, wide if n == "slopes" else dtype) for n, x in arrays.items()})
    return (folder / "x.safetensors").read_bytes()


def npz(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def as_one_file(name, case, found):
    """Inputs, numbers and answers of a case under the names that the page knows."""
    arrays = {}
    for key, x in case.arguments.items():
        if x is not None:
            arrays[key] = x.weight if isinstance(x, Projection) else np.asarray(x)
    for output, x in zip(outputs(name), found, strict=True):
        arrays["new_state" if output == "state" else output] = x
    return arrays


def taken(name):
    """The cases of an op."""
    return list(CASES[name](np.random.default_rng(0)))


def rounded_case(case, dtype):
    """The case with inputs as a kernel of that type has them."""
    arguments = {}
    for key, x in case.arguments.items():
        kind = "float32" if key == "slopes" and dtype != "float64" else dtype
        if isinstance(x, Projection):
            arguments[key] = Projection(round_to(x.weight, kind))
        else:
            arguments[key] = round_to(x, kind) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x
    return Case(case.label, arguments)


@pytest.mark.parametrize("dtype", ["float64", *NARROW])
@pytest.mark.parametrize("name", OPS)
def test_right_answers_pass_in_every_type(judge, tmp_path, name, dtype):
    """Plain NumPy in that type, inputs and answers stored in it."""
    for case in taken(name):
        case = rounded_case(case, dtype)
        found = answers(getattr(ops, name), case, dtype=dtype)
        told = judge({"a.safetensors": safetensors(tmp_path, as_one_file(name, case, found), dtype)}, op=name)
        assert told.get("ok"), (case.label, told)
        assert [row["verdict"] for row in told["rows"]] == ["same"] * len(outputs(name))


def twin(name, case, dtype):
    """The torch twin's answers, in float64 arrays."""
    return answers(getattr(minimax_torch.ops, name), case, getattr(ops, name), dtype, "torch")


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", OPS)
def test_the_twin_passes(judge, tmp_path, name, dtype):
    """Another program, another order of sums."""
    for case in taken(name):
        case = rounded_case(case, dtype)
        file = safetensors(tmp_path, as_one_file(name, case, twin(name, case, dtype)), dtype)
        told = judge({"a.safetensors": file}, op=name)
        assert told.get("ok"), (case.label, told)


def golden(folder, name, dtype, function=None):
    """Golden vectors and somebody's answers to them, as files and as the judge sees them."""
    if not (folder / "golden.json").exists():
        write_op(folder, name)
    found = {}
    for i, case in enumerate(CASES[name](np.random.default_rng(0))):
        for output, x in zip(outputs(name), answers(function or getattr(ops, name), case, getattr(ops, name), dtype)):
            found[f"{i}.{output}"] = stored(x, dtype)
    save_tensors(folder / "actual.safetensors", found)
    files = {f: (folder / f).read_bytes() for f in ("inputs.safetensors", "actual.safetensors")}
    story = json.loads((folder / "golden.json").read_text())
    return files, story, judge_golden(folder, folder / "actual.safetensors")


@pytest.mark.parametrize("dtype", ["float64", *NARROW])
@pytest.mark.parametrize("name", OPS)
def test_golden_vectors_are_judged_as_the_command_judges_them(judge, tmp_path, name, dtype):
    """The same verdicts and errors; what is allowed, from plain float32 in JavaScript, is of the size of NumPy's."""
    files, story, report = golden(tmp_path, name, dtype)
    told = judge(files, story)
    assert len(told["rows"]) == len(report.rows)
    for mine, row in zip(told["rows"], report.rows, strict=True):
        assert (mine["part"], mine["label"], mine["verdict"]) == (row.part, row.phase, row.verdict)
        assert mine["error"] == pytest.approx(row.error, rel=1e-5, abs=1e-13)
        if row.allowed:  # padded positions count for the command's scale, not for the page's
            assert 0.85 < mine["allowed"] / row.allowed < 1.2, (row.part, row.phase, mine["allowed"] / row.allowed)


def planted(name):
    """The mistakes of a single op, by the judge's own list."""
    for defect in DEFECTS.values():
        ops_of = defect.plant(ops)
        if name in ops_of and not ("rms_norm" in ops_of and len(ops_of) > 1):
            yield defect, ops_of[name]


MISTAKES = [(name, defect, wrong) for name in OPS if name not in FORMS for defect, wrong in planted(name)]


@pytest.mark.parametrize("name, defect, wrong", MISTAKES, ids=[f"{n}-{d.key}" for n, d, _ in MISTAKES])
def test_a_planted_mistake_is_named(judge, tmp_path, name, defect, wrong):
    """In the same words as the judge's, with the same cure, at the same place."""
    files, story, report = golden(tmp_path, name, "float64", wrong)
    told = judge(files, story)
    assert not told["ok"] and told["looksLike"] == [defect.says, defect.cure]
    assert [row["verdict"] for row in told["rows"]] == [row.verdict for row in report.rows]
    for mine, row in zip(told["rows"], report.rows, strict=True):
        if letters(name, outputs(name).index(row.part)).count(" ") == 3 and row.where:
            assert f"first wrong at {mine['where']}" == row.where


def lightning(H=4, T=12, d=4, e=4, layer=3, seed=0, B=2):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((B, H, T, n)) for n in (d, d, e))
    return {
        "q": q,
        "k": k,
        "v": v,
        "slopes": ops.decay_slopes(H, layer, 80),
        "state": rng.standard_normal((B, H, d, e)),
    }


def run(x, **changes):
    return ops.lightning_attention_direct(**{key: changes.get(key, x[key]) for key in x})


SLOPES = {
    "there is no decay": lambda s: 0 * s,
    "2 is raised to the slopes in place of e": lambda s: s * np.log(2),
    "the slopes are in reverse order of the heads": lambda s: s[::-1],
    "every layer has the slopes of layer 0": lambda s: ops.decay_slopes(len(s), 0, 80),
    "the layer factor is l/L": lambda s: ops.decay_slopes(len(s), 3, 81),
}


@pytest.mark.parametrize("says", SLOPES)
def test_wrong_slopes_are_named(judge, says):
    x = lightning()
    out, state = run(x, slopes=SLOPES[says](x["slopes"]))
    told = judge({"a.npz": npz({**x, "out": out, "new_state": state})})
    assert told["looksLike"] and told["looksLike"][0] == says


def test_slopes_are_judged_where_the_file_says_of_which_layer_they_are(judge):
    x = lightning()
    out, state = run(x)
    right = {**x, "out": out, "new_state": state, "layer_idx": np.array(3), "num_layers": np.array(80)}
    told = judge({"a.npz": npz(right)})
    assert told["ok"] and [row["part"] for row in told["rows"]] == ["out", "state", "slopes"]
    wrong = {**right, "slopes": ops.decay_slopes(4, 3, 81)}
    wrong["out"], wrong["new_state"] = run({**x, "slopes": wrong["slopes"]})
    told = judge({"a.npz": npz(wrong)})
    assert not told["ok"] and told["rows"][2]["note"] == "the layer factor is l/L"
    assert [row["verdict"] for row in told["rows"]] == ["same", "same", "different"]


def test_slopes_are_those_of_the_reference(engine):
    for H in (1, 3, 8, 12, 64):
        for layer, L in ((0, 1), (0, 80), (78, 80)):
            told = json.loads(engine.eval(f"JSON.stringify(decaySlopes({H}, {layer}, {L}))"))
            np.testing.assert_allclose(told, ops.decay_slopes(H, layer, L), rtol=1e-14)


def test_heads_behind_time_are_seen(judge):
    x = lightning(H=4, T=12)
    out, state = run(x)
    told = judge({"a.npz": npz({**x, "out": out.swapaxes(1, 2), "new_state": state})})
    assert "heads come before time; turned round, it is right" in told["rows"][0]["note"]
    square = lightning(H=4, T=4)  # no shape gives it away
    out, state = run(square)
    told = judge({"a.npz": npz({**square, "out": out.swapaxes(1, 2), "new_state": state})})
    assert told["looksLike"][0] == "the answer is [B, T, H, e]"
    told = judge({"a.npz": npz({**x, **{n: x[n].swapaxes(1, 2) for n in "qkv"}, "out": out})})
    assert "heads come before time" in told["refused"]


def test_what_is_plain_is_said(judge):
    x = lightning()
    out, state = run(x)
    for wrong, note in ((0 * out, "all zeros"), (out / 2, "the right answer times 0.5"), (out * np.nan, "NaN")):
        told = judge({"a.npz": npz({**x, "out": wrong, "new_state": state})})
        assert not told["ok"] and note in told["rows"][0]["note"]


def test_a_wrong_triangle_of_softmax_is_named(judge):
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((1, 4, 5, 8)), *rng.standard_normal((2, 1, 2, 9, 8))
    out = ops.softmax_attention(q, k, v, np.tri(5, 9, dtype=bool)[None])
    told = judge({"a.npz": npz({"q": q, "k": k, "v": v, "out": out})})
    assert told["looksLike"][0] == "the triangle begins at the first key"


NORMS = {
    "the gain is left out": lambda x, g: ops.rms_norm(x, np.ones_like(g)),
    "the gain is 1 + g": lambda x, g: ops.rms_norm(x, 1 + g),
    "the layer norms' eps is 1e-6": lambda x, g: ops.rms_norm(x, g, 1e-6),
    "the norms subtract the mean": lambda x, g: ops.rms_norm(x - x.mean(-1, keepdims=True), g),
}


@pytest.mark.parametrize("says", NORMS)
def test_a_wrong_norm_is_named(judge, says):
    rng = np.random.default_rng(0)
    x, g = 0.1 * rng.standard_normal((2, 5, 12)), rng.standard_normal(12)
    told = judge({"a.npz": npz({"x": x, "weight": g, "out": NORMS[says](x, g)})})
    assert told["looksLike"][0] == says


@pytest.mark.parametrize(
    "name, wrong, says",
    [
        ("silu", lambda x: 1 / (1 + np.exp(-x)), "it is the sigmoid alone"),
        ("output_gate", lambda y, x, project: y * project(x), "the gate is not squashed"),
    ],
)
def test_a_wrong_gate_is_named(judge, name, wrong, says):
    case = taken(name)[0]
    told = judge({"a.npz": npz(as_one_file(name, case, answers(wrong, case, getattr(ops, name))))})
    assert told["looksLike"][0] == says


# --- Files


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", "<f2", "<i8", "<i4", "<i2", "|i1", "<u8", "<u2", "|u1", "|b1"])
@pytest.mark.parametrize("order", "CF")
def test_npz_is_read_as_numpy_wrote_it(engine, dtype, order):
    x = np.asarray((np.arange(24) * 1.37 % 7).reshape(2, 3, 4).astype(dtype), order=order)
    file = json.dumps({"name": "a.npz", "latin": npz({"x": x, "one": np.asarray(x[0, 0, 0])}).decode("latin-1")})
    for name, want in (("x", x), ("one", x[0, 0, 0])):
        told = json.loads(
            engine.eval(f"(({{shape, data}}) => JSON.stringify([shape, [...data]]))(read({file}).tensors.{name})")
        )
        assert told == [list(want.shape), want.astype(float).ravel().tolist()]


@pytest.mark.parametrize("dtype", ["float64", *NARROW, "int64", "int32", "bool"])
def test_safetensors_are_read_as_they_were_written(engine, tmp_path, dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 5)) * 2.0 ** rng.integers(-20, 15, (3, 5))
    x = stored(np.abs(x), dtype) if dtype[0] in "fb" and dtype != "bool" else (np.abs(x) % 100).astype(dtype)
    save_tensors(tmp_path / "x.safetensors", {"x": x})
    file = json.dumps({"name": "a", "latin": (tmp_path / "x.safetensors").read_bytes().decode("latin-1")})
    told = json.loads(engine.eval(f"(({{shape, data}}) => JSON.stringify([shape, [...data]]))(read({file}).tensors.x)"))
    assert told == [[3, 5], read_tensors(tmp_path / "x.safetensors")["x"].astype(float).ravel().tolist()]


def test_every_half_is_read(engine):
    """All 65,536 of them, in both types; and rounding to them is NumPy's."""
    bits = np.arange(65536, dtype=np.uint16)
    told = json.loads(engine.eval("JSON.stringify(Array.from({length: 65536}, (_, i) => String(fromFloat16(i))))"))
    np.testing.assert_array_equal(np.array(told, float), bits.view(np.float16).astype(float))
    x = np.random.default_rng(0).standard_normal(2000) * 2.0 ** np.random.default_rng(1).integers(-26, 15, 2000)
    for dtype, short in (("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")):
        told = json.loads(engine.eval(f"JSON.stringify({json.dumps(x.tolist())}.map((a) => rounded(a, '{short}')))"))
        np.testing.assert_array_equal(told, round_to(x, dtype))


def header(told, data=b""):
    text = json.dumps(told).encode()
    return len(text).to_bytes(8, "little") + text + data


def broken():
    """What → (file, a part of the sentence)."""
    x = lightning(B=1)
    out, state = run(x)
    whole = {**x, "out": out, "new_state": state}
    f4 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    q = x["q"].copy()
    q[0, 1, 2, 3] = np.nan
    without = {name: {n: a for n, a in whole.items() if n != name} for name in ("v", "out")}
    without["out"].pop("new_state")
    zipped = npz(whole)
    return {
        "text": (b"hello, this is no tensor at all", "neither safetensors nor npz"),
        "a short file": (b"abc", "neither safetensors nor npz"),
        "a cut header": (header({"x": f4})[:20], "is cut off: its header"),
        "cut numbers": (header({"x": f4}, b"1234"), "is cut off: x ends at byte"),
        "a header that is no JSON": (b"\x05\0\0\0\0\0\0\0{oops", "its header cannot be read"),
        "too few bytes": (header({"x": {**f4, "shape": [3]}}, b"12345678"), "should have 12 bytes and has 8"),
        "no shape": (header({"x": {"dtype": "F32"}}), "says no shape or place of x"),
        "an unknown type": (header({"x": {**f4, "dtype": "F8_E4M3"}}, b"12345678"), "has the type F8_E4M3"),
        "nothing in it": (header({}), "no tensor"),
        "a cut npz": (zipped[:-40], "table of contents is missing"),
        "an npz cut in the middle": (zipped[:200], "table of contents is missing"),
        "text in an npz": (npz({**whole, "q": np.array(["a", "b"])}), "has the type '<U1'"),
        "a record in an npz": (npz({**whole, "q": np.zeros(2, [("a", "f8")])}), "has the type a record"),
        "complex": (npz({**whole, "q": x["q"] + 0j}), "has the type '<c16'"),
        "no values": (npz(without["v"]), "are not the inputs of an op that this page knows"),
        "no answer": (npz(without["out"]), "There is no answer to judge: store it as out and new_state"),
        "another head of k": (npz({**whole, "k": x["k"][:, :3]}), "no grouped heads"),
        "slopes of other heads": (npz({**whole, "slopes": x["slopes"][:3]}), "there are 3 slopes"),
        "a flat q": (npz({**whole, "q": x["q"][0]}), "they have four axes"),
        "a wrong state": (npz({**whole, "state": state[..., :3]}), "state is [1, 4, 4, 3]"),
        "a wrong mask": (npz({**whole, "mask": np.ones((1, 5), bool)}), "mask is [1, 5], not [B, T]"),
        "NaN among the inputs": (npz({**whole, "q": q}), "q holds NaN or infinity, first in place 59"),
        "no rotary_dim": (npz({"x": q, "positions": np.arange(12)[None], "out": q}), "rotary_dim is missing"),
        "too many experts": (npz({"logits": np.eye(3), "top_k": 4, "weights": np.eye(3)}), "top_k is 4"),
        "grouped heads that do not fit": (
            npz({"q": x["q"], "k": x["k"][:, :3], "v": x["v"][:, :3], "out": out}),
            "4 query heads cannot share 3 key heads",
        ),
    }


@pytest.mark.parametrize("what", broken())
def test_a_broken_file_is_told_in_one_sentence(judge, what):
    file, sentence = broken()[what]
    told = judge({"mine.npz": file})["refused"]
    assert sentence in told, told
    assert told.endswith(".") and "\n" not in told and "undefined" not in told and len(told) < 250


def test_every_cut_of_a_file_is_noticed(judge, tmp_path):
    """Wherever a download stopped: one sentence, never a verdict."""
    x = lightning(B=1, H=2, T=3, d=2, e=2)
    out, state = run(x)
    for file in (npz({**x, "out": out}), safetensors(tmp_path, {**x, "out": out, "new_state": state})):
        for length in range(1, len(file), 7):
            assert "refused" in judge({"a": file[:length]}), length


def test_two_files_of_answers_are_one_too_many(judge, tmp_path):
    files, story, _ = golden(tmp_path, "rms_norm", "float64")
    files["expected.safetensors"] = (tmp_path / "expected.safetensors").read_bytes()
    assert "one file of answers" in judge(files, story)["refused"]


# --- The page


def test_the_samples_are_what_their_script_makes_and_are_judged(judge):
    for name, arrays in runpy.run_path(str(DOCS / "proof" / "make_samples.py"))["samples"]().items():
        file = DOCS / "assets" / "tensors" / name
        stored = dict(np.load(file)) if name.endswith(".npz") else read_tensors(file)
        assert stored.keys() == arrays.keys()
        for key, x in arrays.items():
            np.testing.assert_allclose(stored[key], x, rtol=1e-6 if x.dtype == np.float32 else 1e-12, atol=1e-12)
        told = judge({name: file.read_bytes()})
        assert "refused" not in told, told
        assert told["ok"] == (name == "right.safetensors")
        assert told["looksLike"] is None or told["looksLike"][0] == DEFECTS["reads_before_writing"].says


def test_the_table_of_names_is_the_pages_own(engine):
    """Inputs, what may be there, and answers, as the page's functions have them."""
    told = json.loads(engine.eval("JSON.stringify(OPS)"))
    tensors = runpy.run_path(str(DOCS / "reference" / "make_tables.py"))["TENSORS"]
    for name, cells in tensors.items():
        needs, may, answers = (re.findall(r"`(\w+)`", cell) for cell in cells)
        op, must = told[name], told[name].get("must", [])
        assert needs == op["needs"] + must
        assert may == op["may"] + [number for number in op.get("numbers", []) if number not in must]
        assert [answer.removeprefix("new_") for answer in answers] == op["answers"]
    assert set(told) - set(tensors) == {"lightning_attention_recurrent", "lightning_attention_direct"}


@pytest.mark.parametrize("compiler", [["cc"], ["c++", "-x", "c++"]], ids=["C", "C++"])
def test_a_file_from_c_is_judged(judge, tmp_path, compiler):
    source = DOCS.parent / "tests" / "golden" / "tensor.c"
    file = tmp_path / "mine.safetensors"
    subprocess.run([*compiler, "-O2", "-Wall", "-Werror", "-o", tmp_path / "write", source, "-lm"], check=True)
    subprocess.run([tmp_path / "write", file], check=True)
    told = judge({file.name: file.read_bytes()}, op="lightning_attention_recurrent")
    assert told["ok"] and [row["type"] for row in told["rows"]] == ["F32", "F32"]


def test_a_file_from_the_pages_pytorch_is_judged(judge, tmp_path):
    """The lines that the page shows, run."""
    page = (DOCS / "proof" / "tensor.md").read_text(encoding="utf-8")
    code = re.search(r'=== "PyTorch"\n\n    ```python\n(.*?)    ```', page, re.DOTALL)[1]
    x = {name: torch.from_numpy(array).float() for name, array in lightning().items() if name != "state"}
    out, state = minimax_torch.ops.lightning_attention_chunked(**x)
    file = tmp_path / "mine.safetensors"
    exec(textwrap.dedent(code).replace('"mine.safetensors"', repr(str(file))), {**x, "out": out, "state": state})
    assert judge({file.name: file.read_bytes()})["ok"]
