"""The kernels are the ops: walked by Triton's interpreter on any Linux machine, compiled where there is a GPU.

The interpreter is handed the kernel's own function, whether or not ``TRITON_INTERPRET`` was set when somebody first
imported triton, so these tests do not depend on who else runs in the same process.
"""

import importlib.util
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import minimax_torch
import numpy as np
import pytest
import torch
from close import array, assert_one_sentence, assert_same, lively, small
from hypothesis import given
from hypothesis import strategies as st
from minimax_numpy import ops
from minimax_numpy.check import check_op, crosscheck
from minimax_numpy.config import LIGHTNING, SOFTMAX

kernels = pytest.importorskip("minimax_torch.kernels.lightning", reason="Triton exists for Linux only")
kernel = kernels.lightning_attention

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
OP = "lightning_attention_chunked"


def on(device: str, function=kernel):
    """The kernel on a device, for tensors that lie elsewhere."""

    def moved(q, k, v, slopes, state=None, *, chunk=64, mask=None):
        give = lambda x: None if x is None else x.to(device)  # noqa: E731
        out, state = function(*map(give, (q, k, v, slopes, state)), chunk=chunk, mask=give(mask))
        return out.cpu(), state.cpu()

    return moved


def drawn(B, H, T, d, e, seed=0, dtype=torch.float64):
    """q, k, v, slopes and a state."""
    x = torch.Generator().manual_seed(seed)
    q, k, v, state = (
        torch.randn(shape, generator=x, dtype=torch.float64)
        for shape in ((B, H, T, d), (B, H, T, d), (B, H, T, e), (B, H, d, e))
    )
    wide = torch.promote_types(dtype, torch.float32)
    return q.to(dtype), k.to(dtype), v.to(dtype), minimax_torch.ops.decay_slopes(H, 1, 4), state.to(wide)


# --- The op --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_kernel_is_the_op(dtype, device):
    """Tails, one token, wide heads, a state handed in, padding that holds NaN; in float64, then rounding honestly."""
    report = check_op(OP, on(device), dtype=dtype)
    assert report.ok and {row.verdict for row in report.rows} == {"same"}, report


@given(
    T=st.integers(0, 90),
    chunk=st.sampled_from([1, 16, 20, 32, 64, 256]),
    d=st.integers(1, 40),
    e=st.integers(1, 70),
    share=st.sampled_from([0.0, 0.5, 0.9, None]),
    seed=st.integers(0, 99),
)
def test_any_length_any_chunk_any_padding(T, chunk, d, e, share, seed):
    """The definition, every pair of positions, is what the walk comes to."""
    *x, slopes, state = drawn(2, 2, T, d, e, seed)
    mask = None if share is None else np.random.default_rng(seed).random((2, T)) < share
    arrays = [array(y) for y in (*x, slopes, state)]
    got = kernel(*x, slopes, state, chunk=chunk, mask=None if mask is None else torch.from_numpy(mask))
    want = ops.lightning_attention_direct(*arrays, mask=mask)
    real = np.ones((2, T), bool) if mask is None else mask
    assert torch.isfinite(got[0]).all()
    assert_same(
        array(got[0])[real.nonzero()[0], :, real.nonzero()[1]], want[0][real.nonzero()[0], :, real.nonzero()[1]]
    )
    assert_same(got[1], want[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunk", [16, 64, 128])
@pytest.mark.parametrize("d", [16, 32, 64, 128])
def test_every_head_of_the_family(d, chunk, device):
    *x, slopes, state = drawn(1, 2, 150, d, d, dtype=torch.float32)
    got = on(device)(*x, slopes, state, chunk=chunk)
    want = ops.lightning_attention_chunked(*(array(y).astype(np.float64) for y in (*x, slopes, state)))
    for found, exact in zip(got, want, strict=True):
        assert_same(found, exact, within=1e-6)  # float32; measured 1e-7


def test_a_sequence_may_be_cut_anywhere():
    q, k, v, slopes, state = drawn(2, 3, 75, 16, 16)
    whole = kernel(q, k, v, slopes, state)
    for cut in (1, 10, 64, 74):
        first, between = kernel(*(x[:, :, :cut] for x in (q, k, v)), slopes, state)
        rest, last = kernel(*(x[:, :, cut:] for x in (q, k, v)), slopes, between)
        assert_same(torch.cat([first, rest], dim=2), whole[0])
        assert_same(last, whole[1])


def test_no_token_leaves_the_state_as_it_was():
    q, k, v, slopes, state = drawn(2, 3, 0, 16, 16)
    out, after = kernel(q, k, v, slopes, state)
    assert out.shape == v.shape and torch.equal(after, state)


@pytest.mark.parametrize("device", DEVICES)
def test_strides_are_followed(device):
    """Views of the packed projection, and every second channel of something, are read where they lie."""
    q, k, v, slopes, state = (x.to(device) for x in drawn(2, 3, 40, 16, 16, dtype=torch.float32))
    packed = torch.stack([q, k, v], dim=3).transpose(1, 2).contiguous()  # (B, T, H, 3, d)
    spread = torch.stack([packed, -packed], dim=-1)
    want = kernel(q, k, v, slopes, state)
    for views in (packed.transpose(1, 2).unbind(3), spread[..., 0].transpose(1, 2).unbind(3)):
        assert not any(x.is_contiguous() for x in views)
        got = kernel(*views, slopes, state.mT.contiguous().mT)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, want, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_inputs_give_the_same_bits_and_stay_as_they_are(device):
    inputs = [x.to(device) for x in drawn(2, 3, 40, 16, 48, dtype=torch.float32)]
    before = [x.clone() for x in inputs]
    first, second = kernel(*inputs), kernel(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_answer_is_the_wide_one_rounded_once(dtype, device):
    """To the nearest: the interpreter's own conversion cuts a bfloat16 off."""
    *x, slopes, state = (y.to(device) for y in drawn(1, 2, 40, 16, 16, dtype=dtype))
    narrow, _ = kernel(*x, slopes, state)
    wide, _ = kernel(*(y.float() for y in x), slopes, state)
    assert narrow.dtype == dtype and torch.equal(narrow, wide.to(dtype))


def test_offsets_beyond_32_bits():
    """Positions 2³⁰ elements apart, of which only a few are ever touched."""
    q, k, v, slopes, state = drawn(1, 1, 5, 16, 16, dtype=torch.float16)
    far = torch.empty(4 * 2**30 + 16, dtype=torch.float16).as_strided((1, 1, 5, 16), (0, 0, 2**30, 1))
    far.copy_(q)
    assert torch.equal(kernel(far, k, v, slopes, state)[0], kernel(q, k, v, slopes, state)[0])


# --- In the whole model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_the_whole_model_runs_on_it(device):
    """Prefill, decoding from a cache, padding, packing: every part of the twin is the truth's."""
    truth = lively(small(LIGHTNING, LIGHTNING, SOFTMAX))
    twin = minimax_torch.MiniMaxForCausalLM.from_reference(truth, device=device)
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments[0].shape)
        return kernel(*arguments, **options)

    with minimax_torch.ops.using(lightning_attention_chunked=counted):
        report = crosscheck(truth, twin, length=20)
    assert report.ok, report
    assert {shape[2] for shape in calls} >= {1, 20}


# --- What it refuses -----------------------------------------------------------------------------------------------


def test_an_interpreter_that_cannot_loop_is_not_asked_to(monkeypatch):
    monkeypatch.setattr(kernels.triton, "__version__", "3.6.0")
    with pytest.raises(RuntimeError) as told:
        kernel(*drawn(1, 1, 3, 16, 16))
    assert_one_sentence(told.value, "3.7", "3.6.0")


def test_what_it_cannot_do_it_says(unchecked):
    q, k, v, slopes, _ = drawn(1, 1, 3, 16, 16)
    wide = torch.zeros(1, 1, 3, 129)
    with pytest.raises(ValueError) as told:
        kernel(wide, wide, v, slopes)
    assert_one_sentence(told.value, "129", "128")
    with pytest.raises(ValueError) as told:
        kernel(q, k[:, :, :2], v, slopes)
    assert_one_sentence(told.value, "(1, 1, 2, 16)")
    with pytest.raises(ValueError) as told:
        kernel(q, k, v, slopes, chunk=0)
    assert_one_sentence(told.value, "chunk is 0")
    with pytest.raises(ValueError) as told:
        kernel(q.requires_grad_(), k, v, slopes)
    assert_one_sentence(told.value, "backward")
    with torch.no_grad():
        kernel(q, k, v, slopes)


# --- Mistakes ------------------------------------------------------------------------------------------------------

LENGTH = "m = tl.load(clock + tl.minimum(start + C, T)) - before"
MISTAKES = {  # what was planted: (the line as it is, as it is then, the type in which it must be noticed)
    "the short chunk is taken for a full one": (LENGTH, "m = C", "float64"),
    "the old state decays by a full chunk": ("S = tl.exp2(rate * m) * S", "S = tl.exp2(rate * C) * S", "float64"),
    "a token does not see itself": ("r[:, None] >= r[None, :]", "r[:, None] > r[None, :]", "float64"),
    "the state is read undecayed": ("tl.dot(qc * from_state, S", "tl.dot(qc, S", "float64"),
    "the state is read one token too fresh": ("tl.exp2(rate * n)", "tl.exp2(rate * (n - 1))", "float64"),
    "a token's own write is decayed": ("tl.exp2(rate * (m - n))", "tl.exp2(rate * (m - n + 1))", "float64"),
    "padding is written": ("real = now > tl.load(clock + tl.minimum(t, T))", "real = t < T", "float64"),
    "padding decays inside a chunk": ("n = now - before", "n = tl.minimum(r + 1, T - start)", "float64"),
    "every row of the batch has the first one's padding": ("clock += b * clock_stride", "clock += 0", "float64"),
    "every program takes the first value channels": ("tl.program_id(1) * E + tl", "tl", "float64"),
    "every head forgets like the first": ("tl.load(rates + h)", "tl.load(rates)", "float64"),
    "e is taken for 2": ("-math.log2(math.e)", "-1.0", "float64"),
    "the state is stored transposed": ("i[:, None] * e + j[None, :]", "i[:, None] + j[None, :] * d", "float64"),
    "the state is rounded to bfloat16": (
        "S = tl.exp2(rate * m) * S",
        "S = tl.exp2(rate * m) * S.to(tl.float32).to(tl.bfloat16).to(tl.float32).to(wide)",
        "float32",
    ),
}


def edited(folder: Path, was: str, becomes: str):
    """The kernel with one line changed, as a module of its own: a kernel is read from its file."""
    source = Path(kernels.__file__).read_text(encoding="utf-8")
    assert was in source and source != source.replace(was, becomes), was
    file = folder / "edited.py"
    file.write_text(source.replace(was, becomes), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("minimax_torch.kernels.edited", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.lightning_attention


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_kernel_is_noticed(mistake, device, tmp_path):
    was, becomes, dtype = MISTAKES[mistake]
    report = check_op(OP, on(device, edited(tmp_path, was, becomes)), dtype=dtype)
    assert not report.ok and not any("fails" in (row.note or "") for row in report.rows), report
    assert mistake != "the short chunk is taken for a full one" or "short last chunk" in report.looks_like


@pytest.mark.parametrize("device", DEVICES)
def test_only_the_interpreter_multiplies_bfloat16_wrongly(device, tmp_path):
    """It takes the bits for whole numbers, and says nothing; so the kernel widens what it loads."""
    narrow = edited(tmp_path, "mask=keys, other=0).to(wide)", "mask=keys, other=0)")
    report = check_op(OP, on(device, narrow), dtype="bfloat16")
    assert report.ok if device == "cuda" else max(row.error for row in report.rows) > 1e8, report
    assert check_op(OP, on(device, narrow), dtype="float32").ok


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter multiplies in full, whatever it is told")
@pytest.mark.parametrize("precision, honest", [("ieee", True), ("tf32x3", True), ("tf32", False)])
def test_tf32_is_noticed(precision, honest):
    assert check_op(OP, on("cuda", partial(kernel, precision=precision)), dtype="float32").ok == honest


def test_an_edit_that_changes_nothing_passes(tmp_path):
    """Else the mistakes above could be noticed for being edited."""
    assert check_op(OP, edited(tmp_path, "r[:, None] >= r[None, :]", "r[None, :] <= r[:, None]")).ok


# --- However triton was imported -----------------------------------------------------------------------------------


def test_it_is_the_same_where_triton_was_told_to_interpret():
    code = (
        "import torch; from minimax_torch.kernels.lightning import lightning_attention as f; x = torch.ones(1, 1, 3, 1)"
    )
    code += "; print(f(x, x, x, torch.zeros(1))[0].ravel().tolist())"
    path = os.pathsep.join(sys.path)
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
    )
    assert run.stdout.split() == ["[1.0,", "2.0,", "3.0]"], run.stderr
