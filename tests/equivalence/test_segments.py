"""Lightning attention cut into segments, forward and backward, and its one-token step: walked by Triton's interpreter.

Tiles are small here, so that a short text has several segments, each of several stretches, and each of several chunks.
"""

from functools import partial

import pytest
import torch
from close import array, assert_same, rms
from hypothesis import given, settings
from hypothesis import strategies as st
from minimax_numpy.trace import UNIT_ROUNDOFF
from minimax_torch import ops

segments = pytest.importorskip("minimax_torch.kernels.segments", reason="Triton exists for Linux only")
decode = pytest.importorskip("minimax_torch.kernels.decode")
SMALL = segments.Tiles(chunk=16, columns=16, segment=32, stretch=16)
DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]


def drawn(B, H, T, d, e, seed=0, dtype=torch.float64, device="cpu"):
    """q, k, v and a state that ask for gradients, slopes, and what weighs each number of out and of the state."""
    made = torch.Generator().manual_seed(seed)
    shapes = (B, H, T, d), (B, H, T, d), (B, H, T, e), (B, H, d, e), (B, H, T, e), (B, H, d, e)
    q, k, v, state, *weights = (torch.randn(shape, generator=made, dtype=torch.float64) for shape in shapes)
    wide = torch.promote_types(dtype, torch.float32)
    x = [y.to(device, kind).requires_grad_() for y, kind in zip((q, k, v, state), (dtype, dtype, dtype, wide))]
    return x, ops.decay_slopes(H, 1, 4).to(device), [w.to(device, wide) for w in weights]


def both_ways(form, x, slopes, weights, mask=None, state=True):
    """What a form gives, and the gradients of a sum that weighs every number of it differently."""
    asked = x if state else x[:3]
    out, after = form(*x[:3], slopes, x[3] if state else None, mask=mask)
    real = 1 if mask is None else mask[:, None, :, None]
    loss = (out * real * weights[0]).sum() + (after * weights[1]).sum()
    return [(out * real).detach(), after.detach(), *torch.autograd.grad(loss, asked)]


@settings(max_examples=25)
@given(
    T=st.integers(1, 110),
    d=st.sampled_from([8, 16, 20]),
    e=st.sampled_from([8, 16, 40]),
    share=st.sampled_from([0.3, 0.9, None]),
    state=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_the_definition(T, d, e, share, state, seed):
    """Any length and tail, any padding, with a state and without; autograd through the T × T form agrees."""
    x, slopes, weights = drawn(1, 2, T, d, e, seed)
    mask = None if share is None else torch.rand(1, T, generator=torch.Generator().manual_seed(seed)) < share
    got = both_ways(partial(segments.lightning_attention, tiles=SMALL), x, slopes, weights, mask, state)
    want = both_ways(ops.lightning_attention_direct, x, slopes, weights, mask, state)
    for mine, theirs in zip(got, want, strict=True):
        assert_same(mine, theirs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_rounds_honestly(dtype, device):
    """Off from float64 by at most 2 · what autograd through the direct form is off, + 4u · the RMS on |inputs|."""
    x, slopes, weights = drawn(1, 2, 75, 16, 32, dtype=getattr(torch, dtype), device=device)
    exact = [y.detach().double().requires_grad_() for y in x]
    large = [y.detach().abs().requires_grad_() for y in exact]
    wide = [w.double() for w in weights]
    want = both_ways(ops.lightning_attention_direct, exact, slopes, wide)
    sizes = both_ways(ops.lightning_attention_direct, large, slopes, [w.abs() for w in wide])
    plain = both_ways(ops.lightning_attention_direct, x, slopes, weights)
    got = both_ways(partial(segments.lightning_attention, tiles=SMALL), x, slopes, weights)
    names = "out", "after", "q", "k", "v", "state"
    for name, mine, theirs, truth, size in zip(names, got, plain, want, sizes, strict=True):
        u = UNIT_ROUNDOFF[str(mine.dtype).removeprefix("torch.")]
        if dtype == "bfloat16" and name in ("after", "state"):
            u = 2**-16  # float32, made of values in two pieces of 8 bits
        off, usual = (rms(array(y.cpu()).astype(float) - array(truth.cpu())) for y in (mine, theirs))
        assert mine.dtype == theirs.dtype and off <= 2 * usual + 4 * u * rms(size.cpu()), name


@pytest.mark.parametrize("segment", [16, 48, 1000])
def test_how_it_is_cut_does_not_matter(segment):
    x, slopes, weights = drawn(2, 2, 75, 16, 16)
    tiles = SMALL._replace(segment=segment)
    got = both_ways(partial(segments.lightning_attention, tiles=tiles), x, slopes, weights)
    for mine, theirs in zip(got, both_ways(ops.lightning_attention_direct, x, slopes, weights), strict=True):
        assert_same(mine, theirs)


def test_strided_views_are_followed_and_stay_as_they_are():
    packed = torch.randn(1, 50, 2, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before, slopes = packed.clone(), ops.decay_slopes(2, 1, 4)
    q, k, v = packed.transpose(1, 2).split(16, dim=-1)  # as a projection leaves them
    got = segments.lightning_attention(q, k, v, slopes, tiles=SMALL)
    for mine, theirs in zip(got, ops.lightning_attention_direct(q, k, v, slopes), strict=True):
        assert_same(mine, theirs)
    assert torch.equal(packed, before)


def test_the_same_inputs_give_the_same_bits():
    x, slopes, weights = drawn(1, 2, 75, 16, 16, dtype=torch.float32)
    form = partial(segments.lightning_attention, tiles=SMALL)
    for a, b in zip(both_ways(form, x, slopes, weights), both_ways(form, x, slopes, weights), strict=True):
        assert torch.equal(a, b)


MISTAKES = {
    "a short chunk decays the state as a full one": ("tl.where(left < C, short, full)", "full"),
    "a token does not see itself": ("r[:, None] >= r[None, :]", "r[:, None] > r[None, :]"),
    "a token's own contribution is decayed": ("tl.maximum(m - n + late, 0)", "tl.maximum(m - n + 1, 0)"),
    "backwards, the state decays before it is read": ("1 if BACKWARDS else 0", "0"),
    "segments begin with nothing": ("S = keep * S + tl.load(end, mask=mine, other=0)", "S = keep * S"),
    "the scores do not decay": ("out_dtype=WIDE) * inside", "out_dtype=WIDE) * causal"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_one_line_is_noticed(mistake, tmp_path, monkeypatch):
    """The kernels once more, each with one line wrong: values or gradients differ."""
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    right, wrong = MISTAKES[mistake]
    source = Path(segments.__file__).read_text(encoding="utf-8")
    assert right in source
    (tmp_path / "wrong.py").write_text(source.replace(right, wrong), encoding="utf-8")
    spec = spec_from_file_location("minimax_torch.kernels.wrong", tmp_path / "wrong.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    x, slopes, weights = drawn(1, 2, 75, 16, 16)
    got = both_ways(partial(module.lightning_attention, tiles=module.Tiles(*SMALL)), x, slopes, weights)
    want = both_ways(ops.lightning_attention_direct, x, slopes, weights)
    assert any(not torch.allclose(a, b, rtol=1e-9) for a, b in zip(got, want, strict=True))


def test_what_it_cannot_hold_it_says():
    x, slopes, _ = drawn(1, 2, 3, 300, 8)
    with pytest.raises(ValueError, match="300 channels"):
        segments.lightning_attention(*x[:3], slopes)


# --- One token more --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d, e", [(16, 32), (20, 40)])
def test_a_step_is_a_step_of_the_recurrence(d, e, dtype, device):
    x, slopes, _ = drawn(3, 2, 1, d, e, dtype=dtype, device=device)
    q, k, v, state = (y.detach() for y in x)
    mask = torch.tensor([[True], [False], [True]], device=device)
    for padding in (None, mask):
        want = ops.lightning_attention_recurrent(q, k, v, slopes, state, mask=padding)
        got = decode.lightning_step(q, k, v, slopes, state, mask=padding)
        real = slice(None) if padding is None else padding[:, 0]
        for mine, theirs in zip((got[0][real], got[1]), (want[0][real], want[1]), strict=True):
            assert mine.dtype == theirs.dtype
            torch.testing.assert_close(mine, theirs, rtol=4 * torch.finfo(dtype).eps, atol=16 * torch.finfo(dtype).eps)


def test_the_new_state_may_be_written_over_the_old_one():
    x, slopes, _ = drawn(2, 2, 1, 16, 16)
    q, k, v, state = (y.detach() for y in x)
    want = ops.lightning_attention_recurrent(q, k, v, slopes, state)
    kept = state.clone()
    out, after = decode.lightning_step(q, k, v, slopes, kept, into=kept)
    assert after is kept
    assert_same(out, want[0]), assert_same(after, want[1])
    with pytest.raises(ValueError, match="into is"):
        decode.lightning_step(q, k, v, slopes, state, into=state.float())
