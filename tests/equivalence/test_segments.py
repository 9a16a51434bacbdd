"""The fast kernels are the op, gradients too: many segments, few, one; whatever the types, strides and padding.

As in `test_kernels`, the interpreter walks through them on a CPU, and a GPU runs them compiled where there is one.
"""

import importlib.util
import warnings
from types import SimpleNamespace

import minimax_torch
import numpy as np
import pytest
import torch
from close import array, assert_one_sentence, assert_same, edited, error, lively, small
from hypothesis import given, settings
from hypothesis import strategies as st
from minimax_numpy import ops
from minimax_numpy.check import check_op, crosscheck
from minimax_numpy.config import LIGHTNING, SOFTMAX
from minimax_numpy.trace import UNIT_ROUNDOFF
from minimax_torch.kernels import choose, chunks
from minimax_torch.kernels.chunks import Chunked

segments = pytest.importorskip("minimax_torch.kernels.segments", reason="Triton exists for Linux only")
decode = pytest.importorskip("minimax_torch.kernels.decode")
Tiles = segments.Tiles

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
OP = "lightning_attention_chunked"
FEW = Tiles(chunk=16, columns=16, read=1, written=1)
MANY = FEW._replace(segment=32, stretch=16)


def drawn(B, H, T, d, e, seed=0, dtype=torch.float64, device="cpu"):
    """q, k, v, state; slopes; and what comes back for out and state."""
    x = torch.Generator().manual_seed(seed)
    shapes = ((B, H, T, d), (B, H, T, d), (B, H, T, e), (B, H, d, e), (B, H, T, e), (B, H, d, e))
    q, k, v, state, do, dS = (torch.randn(shape, generator=x, dtype=torch.float64) for shape in shapes)
    wide = torch.promote_types(dtype, torch.float32)
    inputs = [x.to(device, dtype) for x in (q, k, v)] + [state.to(device, wide)]
    return inputs, minimax_torch.ops.decay_slopes(H, 1, 4).to(device), (do.to(device, dtype), dS.to(device, wide))


def padding(B, T, share, seed=0):
    """Which tokens are real; None where all are."""
    return None if share is None else torch.from_numpy(np.random.default_rng(seed).random((B, T)) < share)


def answers(function, inputs, returned, mask=None):
    """What a function computes and what flows back from it; at padding 0, where nobody looks."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out, state = function(*inputs)
    if mask is not None:
        returned = (torch.where(mask[:, None, :, None], returned[0], 0), returned[1])
        out = torch.where(mask[:, None, :, None], out, 0)
    return [out, state, *torch.autograd.grad((out, state), inputs, returned)]


def oracle(inputs, slopes, returned, mask=None):
    """The same from plain PyTorch, in float64."""
    inputs = [x.double() for x in inputs]
    returned = tuple(x.double() for x in returned)
    kept = (lambda x: x) if mask is None else (lambda x: torch.where(mask[:, None, :, None], x, 0))
    return answers(lambda q, k, v, S: Chunked.apply(q, kept(k), kept(v), S, slopes, mask, 20), inputs, returned, mask)


def on(device, tiles=MANY, function=segments.lightning_attention):
    """The kernel as an op for tensors that lie elsewhere."""

    def moved(q, k, v, slopes, state=None, *, chunk=64, mask=None):
        give = lambda x: None if x is None else x.to(device)  # noqa: E731
        out, state = function(*map(give, (q, k, v, slopes, state)), mask=give(mask), tiles=tiles)
        return out.cpu(), state.cpu()

    return moved


# --- The op --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype, tiles", [("float64", MANY), ("float32", FEW)])
def test_it_is_the_op(dtype, tiles, device):
    report = check_op(OP, on(device, tiles), dtype=dtype)
    assert report.ok and {row.verdict for row in report.rows} == {"same"}, report


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_rounds_honestly(dtype, device):
    report = check_op(OP, on(device, FEW._replace(read=2, written=2)), dtype=dtype)
    assert report.ok, report


@settings(max_examples=15)
@given(
    T=st.integers(0, 90),
    segment=st.sampled_from([None, 16, 48, 100]),
    d=st.integers(1, 40),
    e=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.5, 0.9, None]),
    seed=st.integers(0, 99),
)
def test_any_length_any_segment_any_padding(T, segment, d, e, share, seed):
    """The definition, every pair of positions, is what the walks come to."""
    (*qkv, state), slopes, _ = drawn(2, 2, T, d, e, seed)
    mask = padding(2, T, share, seed)
    got = segments.lightning_attention(*qkv, slopes, state, mask=mask, tiles=FEW._replace(segment=segment))
    real = np.ones((2, T), bool) if mask is None else array(mask)
    want = ops.lightning_attention_direct(*map(array, (*qkv, slopes, state)), mask=None if mask is None else real)
    row, t = real.nonzero()
    assert torch.isfinite(got[0]).all()
    assert_same(array(got[0])[row, :, t], want[0][row, :, t])
    assert_same(got[1], want[1])


# --- The gradient --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [None, 0.6])
@pytest.mark.parametrize("T", [1, 60])
@pytest.mark.parametrize("tiles", [FEW, MANY], ids=["one segment", "many"])
def test_the_gradient_is_the_ops(tiles, T, share, device):
    inputs, slopes, returned = drawn(2, 1, T, 10, 20, device=device)
    mask = padding(2, T, share)
    mask = mask if mask is None else mask.to(device)
    kernel = lambda q, k, v, S: segments.lightning_attention(q, k, v, slopes, S, mask=mask, tiles=tiles)  # noqa: E731
    got, want = answers(kernel, inputs, returned, mask), oracle(inputs, slopes, returned, mask)
    for mine, theirs in zip(got, want, strict=True):
        assert_same(mine, theirs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype, parts, within", [
    (torch.float32, 1, (1e-6, 1e-6)),
    (torch.bfloat16, 2, (2.5e-3, 2e-5)),  # what is stored as bfloat16 is rounded by 1.7e-3; what is float32 is not
])  # fmt: skip
def test_gradients_are_rounded_as_little_as_answers(dtype, parts, within, device):
    inputs, slopes, returned = drawn(1, 2, 75, 16, 16, dtype=dtype, device=device)
    tiles = MANY._replace(read=parts, written=parts)
    kernel = lambda q, k, v, S: segments.lightning_attention(q, k, v, slopes, S, tiles=tiles)  # noqa: E731
    for mine, theirs in zip(answers(kernel, inputs, returned), oracle(inputs, slopes, returned), strict=True):
        assert mine.dtype in (dtype, torch.float32)
        assert error(mine, theirs) < within[mine.dtype == torch.float32]


@pytest.mark.parametrize("tiles", [FEW, MANY], ids=["one segment", "many"])
@pytest.mark.parametrize("looked_at", [0, 1])
def test_who_looks_at_one_answer_gets_that_ones_gradient(looked_at, tiles):
    """And a state that nobody gave is no state at all."""
    (q, k, v, state), slopes, returned = drawn(1, 2, 40, 8, 8)
    for given_state in (state, None):
        mine = [x.clone().requires_grad_() for x in (q, k, v)]
        theirs = [x.clone().requires_grad_() for x in (q, k, v)]
        got = segments.lightning_attention(*mine, slopes, given_state, tiles=tiles)[looked_at]
        start = torch.zeros_like(state) if given_state is None else given_state
        want = Chunked.apply(*theirs, start, slopes, None, 16)[looked_at]
        got.backward(returned[looked_at])
        want.backward(returned[looked_at])
        for a, b in zip(mine, theirs, strict=True):
            assert_same(torch.zeros(1) if a.grad is None else a.grad, torch.zeros(1) if b.grad is None else b.grad)


# --- How it is cut -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("d, e", [(16, 256), (256, 16), (80, 48)])
def test_every_head_of_the_family(d, e, device):
    (q, k, v, state), slopes, _ = drawn(1, 1, 20, d, e, dtype=torch.float32, device=device)
    got = segments.lightning_attention(q, k, v, slopes, state)
    want = ops.lightning_attention_chunked(*(array(x).astype(np.float64) for x in (q, k, v, slopes, state)))
    for found, exact in zip(got, want, strict=True):
        assert_same(found, exact, within=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_strides_are_followed(device):
    """Views of the packed projection, of every second channel, of a state and of gradients: read where they lie."""
    inputs, slopes, returned = drawn(2, 3, 40, 16, 16, dtype=torch.float32, device=device)
    spread = torch.stack([*inputs[:3]], dim=3).transpose(1, 2).contiguous()  # (B, T, H, 3, d)
    spread = torch.stack([spread, -spread], dim=-1)[..., 0].transpose(1, 2)
    views = [*spread.unbind(3), inputs[3].mT.contiguous().mT]
    back = tuple(x.mT.contiguous().mT for x in returned)
    assert not any(x.is_contiguous() for x in (*views, *back))
    kernel = lambda q, k, v, S: segments.lightning_attention(q, k, v, slopes, S, tiles=MANY)  # noqa: E731
    for a, b in zip(answers(kernel, views, back), answers(kernel, inputs, returned), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_inputs_give_the_same_bits_and_stay_as_they_are(device):
    inputs, slopes, returned = drawn(2, 1, 40, 16, 24, dtype=torch.float32, device=device)
    before = [x.clone() for x in inputs]
    kernel = lambda q, k, v, S: segments.lightning_attention(q, k, v, slopes, S, tiles=MANY)  # noqa: E731
    first, second = answers(kernel, inputs, returned), answers(kernel, inputs, returned)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_offsets_beyond_32_bits():
    """Positions 2³⁰ elements apart, of which only a few are ever touched."""
    (q, k, v, state), slopes, _ = drawn(1, 1, 5, 16, 16, dtype=torch.float16)
    far = torch.empty(4 * 2**30 + 16, dtype=torch.float16).as_strided((1, 1, 5, 16), (0, 0, 2**30, 1))
    far.copy_(q)
    got, want = (segments.lightning_attention(x, k, v, slopes, state, tiles=FEW)[0] for x in (far, q))
    assert torch.equal(got, want)


def test_padding_is_not_read():
    """NaN stands there, and NaN comes back for it; forwards and backwards nobody looks."""
    (q, k, v, state), slopes, (do, dS) = drawn(2, 2, 50, 10, 20)
    mask = padding(2, 50, 0.6)
    hole = ~mask[:, None, :, None]
    dirty = [torch.where(hole, torch.nan, x) for x in (q, k, v)]
    for tiles in (FEW, MANY):
        given_ = [x.requires_grad_() for x in (*dirty, state.clone())]
        out, after = segments.lightning_attention(*given_[:3], slopes, given_[3], mask=mask, tiles=tiles)
        grads = torch.autograd.grad((out, after), given_, (torch.where(hole, torch.nan, do), dS))
        assert all(torch.isfinite(x).all() for x in (out, after, *grads))


@pytest.mark.parametrize("T, programs, G", [(8192, 64, 2), (1024, 64, 1), (8192, 1024, 1), (2**20, 1, 128)])
def test_there_are_as_few_segments_as_fill_a_gpu(T, programs, G, monkeypatch):
    gpu = SimpleNamespace(multi_processor_count=128)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    cut = segments.cut_for(Tiles(), programs, T, torch.device("cuda"))
    assert cut.G == G and (cut.G - 1) * cut.length < T <= cut.G * cut.length
    assert cut.length % cut.each == 0 and cut.length // cut.each % Tiles().chunk == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("B, T", [(0, 5), (2, 0), (0, 0)])
def test_no_rows_and_no_tokens(B, T, device):
    """Nothing comes of nothing, and a state that nobody changed hands its gradient back as it is."""
    inputs, slopes, returned = drawn(B, 2, T, 16, 24, device=device)
    out, after, *grads, dS = answers(
        lambda q, k, v, S: segments.lightning_attention(q, k, v, slopes, S), inputs, returned
    )
    assert out.shape == (B, 2, T, 24) and [x.shape for x in grads] == [x.shape for x in inputs[:3]]
    assert torch.equal(after, inputs[3]) and torch.equal(dS, returned[1])
    assert decode.lightning_step(*(x.new_empty(0, 2, 1, x.shape[3]) for x in inputs[:3]), slopes)[0].shape == (
        0,
        2,
        1,
        24,
    )


# --- Decode --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_step_is_the_recurrence(dtype, share, device):
    (q, k, v, state), slopes, _ = drawn(5, 2, 1, 10, 20, dtype=dtype, device=device)
    mask = padding(5, 1, share)
    within = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2.5e-3}[dtype]
    exact = [array(x).astype(np.float64) for x in (q, k, v, slopes, state)]
    want = ops.lightning_attention_recurrent(*exact, mask=None if mask is None else array(mask))
    mask = mask if mask is None else mask.to(device)
    out, after = decode.lightning_step(q, k, v, slopes, state, mask=mask, columns=16)
    real = slice(None) if share is None else array(mask)[:, 0]
    assert_same(array(out)[real], want[0][real], within)
    assert_same(after, want[1], min(within, 1e-6))


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_may_write_over_what_it_read(device):
    (q, k, v, state), slopes, _ = drawn(2, 2, 1, 10, 20, dtype=torch.float32, device=device)
    slots = torch.zeros(4, 2, 10, 20, device=device)
    mine = slots[1:3]
    mine.copy_(state)
    packed = torch.stack([q, k], dim=3)[:, :, :, 1]
    want = decode.lightning_step(q, packed, v, slopes, state)
    got = decode.lightning_step(q, k, v, slopes, mine, into=mine)
    assert got[1].data_ptr() == mine.data_ptr() and torch.equal(slots[1:3], want[1]) and torch.equal(got[0], want[0])
    assert not slots[0].any() and not slots[3].any()
    first = decode.lightning_step(q, k, v, slopes)
    assert_same(first[1], k.mT @ v, 1e-6)


# --- In the whole model --------------------------------------------------------------------------------------------


def test_the_whole_model_runs_on_them(monkeypatch):
    """Prefill, decoding, padding, packing and a training step, as on a GPU that chooses them."""
    taken = []

    def chosen(q, k, v, state, chunk):
        wants = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, state))
        taken.append("step" if q.shape[2] == 1 and not wants else "segments")
        return decode.lightning_step if taken[-1] == "step" else segments.lightning_attention

    truth = lively(small(LIGHTNING, SOFTMAX))
    twin = minimax_torch.MiniMaxForCausalLM.from_reference(truth)
    ids = torch.arange(3, 15)[None]
    plain = minimax_torch.MiniMaxForCausalLM.from_reference(truth)
    plain(ids, labels=ids).loss.backward()
    monkeypatch.setattr(choose, "lightning", chosen)
    report = crosscheck(truth, twin, length=12)
    assert report.ok, report
    assert set(taken) == {"step", "segments"}
    twin(ids, labels=ids).loss.backward()
    for mine, theirs in zip(twin.parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            assert_same(mine.grad, theirs.grad)


# --- Straight from the projection ------------------------------------------------------------------------------------


def projected(B, H, T, d, dtype=torch.float64, seed=0):
    """What a layer's projections leave: qkv, the gate's logits; the norm's gain, slopes, a state."""
    x = torch.Generator().manual_seed(seed)
    shapes = ((B, T, 3 * H * d), (B, T, H * d), (H * d,), (B, H, d, d))
    qkv, gate, gain, state = (torch.randn(shape, generator=x, dtype=torch.float64) for shape in shapes)
    wide = torch.promote_types(dtype, torch.float32)
    return [qkv.to(dtype), gate.to(dtype), gain.to(dtype), minimax_torch.ops.decay_slopes(H, 1, 4), state.to(wide)]


def one_by_one(qkv, gate, gain, slopes, state, mask=None):
    """The same by the layer's ops, up to the inner norm's own factor; with it the sum of squares of what it norms."""
    twin = minimax_torch.ops
    q, k, v = twin.split_qkv(qkv, len(slopes))
    out, state = twin.lightning_attention_chunked(q, k, v, slopes, state, mask=mask)
    merged = twin.merge_heads(out)
    gated = gain * merged if gate is None else twin.sigmoid(gate) * gain * merged
    return gated, merged.square().sum(dim=-1), state


TINY = FEW._replace(columns=8)  # several blocks of columns a head: their squares are summed, too


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tiles", [FEW, TINY, MANY], ids=["one segment", "many blocks", "many segments"])
@pytest.mark.parametrize("share", [None, 0.6])
@pytest.mark.parametrize("T, d", [(1, 16), (1, 40), (45, 16), (70, 24)])
def test_silu_gate_and_gain_are_the_layers(T, d, share, tiles, device):
    inputs, mask = projected(2, 3, T, d), padding(2, T, share)
    want = one_by_one(*inputs, mask)
    moved = [x.to(device) for x in inputs]
    got = segments.lightning_packed(*moved, mask=None if mask is None else mask.to(device), tiles=tiles)
    real = torch.ones(2, T, dtype=torch.bool) if mask is None else mask
    for mine, theirs in zip(got[:2], want[:2], strict=True):
        assert_same(mine.cpu()[real], theirs[real])
    assert_same(got[2].cpu(), want[2])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("T", [1, 50])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_rounds_no_worse_than_the_layers_ops(dtype, T, device):
    """Off from float64 by at most twice what the ops one by one are, which round between them, and a rounding."""
    inputs = projected(2, 2, T, 16, getattr(torch, dtype))
    want = one_by_one(*(x.double() for x in inputs))
    plain = one_by_one(*inputs)
    got = segments.lightning_packed(*(x.to(device) for x in inputs), tiles=FEW._replace(written=2))
    for mine, theirs, exact in zip(got, plain, want, strict=True):
        assert error(mine, exact) <= 2 * error(theirs, exact) + 2 * UNIT_ROUNDOFF[dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("d", [16, 80, 256])
@pytest.mark.parametrize("T", [0, 1, 20])
def test_packed_heads_of_every_width(d, T, device):
    inputs = projected(1, 2, T, d, torch.float32)
    got = segments.lightning_packed(*(x.to(device) for x in inputs))
    for mine, theirs in zip(got, one_by_one(*(x.double() for x in inputs)), strict=True):
        assert_same(mine, theirs, within=2e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("T", [1, 40])
def test_packed_arrays_are_read_where_they_lie(T, device):
    """One projection made everything, the gain is every second number, and so are the slopes; nobody gated."""
    qkv, gate, gain, slopes, state = (x.to(device) for x in projected(2, 3, T, 16))
    before = [x.clone() for x in (qkv, gate, gain, slopes, state)]
    fused = torch.cat([gate, qkv, gate], dim=2)
    apart = torch.stack([gain, -gain], dim=1)[:, 0], torch.stack([slopes, -slopes], dim=1)[:, 0]
    views = fused[:, :, 48:192], fused[:, :, 192:], *apart, state.mT.contiguous().mT
    for tiles in (FEW, MANY):
        want = segments.lightning_packed(qkv, gate, gain, slopes, state, tiles=tiles)
        for mine, theirs in zip(segments.lightning_packed(*views, tiles=tiles), want, strict=True):
            assert torch.equal(mine, theirs)
        open_ = segments.lightning_packed(qkv, None, gain, slopes, tiles=tiles)
        for mine, theirs in zip(open_, one_by_one(qkv, None, gain, slopes, None), strict=True):
            assert_same(mine, theirs)
    assert all(torch.equal(a, b) for a, b in zip((qkv, gate, gain, slopes, state), before, strict=True))


def test_packed_padding_is_not_read():
    """NaN stands there; a state, and what real tokens get, know nothing of it."""
    qkv, gate, gain, slopes, state = projected(2, 3, 50, 16)
    mask = padding(2, 50, 0.6)
    dirty = torch.where(mask[:, :, None], qkv, torch.nan)
    for tiles in (FEW, MANY):
        y, square, after = segments.lightning_packed(dirty, gate, gain, slopes, state, mask=mask, tiles=tiles)
        assert all(torch.isfinite(x).all() for x in (y, square, after))
    one = segments.lightning_packed(dirty[:, :1], gate[:, :1], gain, slopes, state, mask=mask[:, :1])
    assert torch.isfinite(one[0][mask[:, 0]]).all() and torch.isfinite(one[2]).all()


def test_packed_a_layers_cut_does_not_matter():
    """In two calls, the state handed on, as in one; and a token at a time, over the old state."""
    qkv, gate, gain, slopes, state = projected(2, 3, 21, 16)
    want = segments.lightning_packed(qkv, gate, gain, slopes, state, tiles=FEW)
    slots = torch.full((4, 2, 3, 16, 16), torch.nan, dtype=state.dtype)
    memory = slots[:, 1][1:3]  # as a model's static memory lies: layers between the rows
    memory.copy_(state)
    first = segments.lightning_packed(qkv[:, :17], gate[:, :17], gain, slopes, memory, into=memory, tiles=FEW)
    assert first[2] is memory
    parts = [first[:2]]
    for t in range(17, 21):
        y, square, after = segments.lightning_packed(
            qkv[:, t : t + 1], gate[:, t : t + 1], gain, slopes, memory, into=memory
        )
        assert after is memory
        parts.append((y, square))
    for mine, theirs in zip(zip(*parts, strict=True), want[:2], strict=True):
        assert_same(torch.cat(mine, dim=1), theirs)
    assert_same(memory, want[2])
    assert slots[:, 0].isnan().all() and slots[[0, 3]].isnan().all()


def test_what_packed_refuses(unchecked):
    qkv, gate, gain, slopes, state = projected(1, 2, 3, 8)
    with pytest.raises(ValueError) as told:
        segments.lightning_packed(qkv[:, :, 1:], gate, gain, slopes, state)
    assert_one_sentence(told.value, "(1, 3, 47)", "three times")
    for T in (1, 3):
        for wrong in ({"state": state[:, :1]}, {"mask": torch.ones(2, T).bool()}, {"into": state.float()}):
            given_ = {"state": state, **wrong}
            with pytest.raises(ValueError) as told:
                segments.lightning_packed(qkv[:, :T], gate[:, :T], gain, slopes, **given_)
            assert_one_sentence(told.value, *wrong)
    with pytest.raises(ValueError) as told:
        segments.lightning_packed(qkv.requires_grad_(), gate, gain, slopes, state)
    assert_one_sentence(told.value, "gradient", "no_grad")
    wide = projected(1, 1, 2, 257)
    with pytest.raises(ValueError) as told:
        segments.lightning_packed(*wide)
    assert_one_sentence(told.value, "257", "256")


PACKED_MISTAKES = {
    "the gate is not squashed": ("o /= 1 + tl.exp(-logits)", "o *= logits"),
    "every head has the first one's gain": ("gain + h * e + j", "gain + j"),
    "every head has the first one's gate": ("gate += b * gate_strides[0] + h *", "gate += b * gate_strides[0] + 0 *"),
    "every chunk has the first one's gate": ("gate + start * gate_strides[2] + gate_tile", "gate + gate_tile"),
    "what is gated is squared": ("tl.reduce(o * o, 0", "tl.reduce(o * o * gains[:, None], 0"),
    "one block's squares stand for all": ("(pair * blocks + tl.program_id(0) % blocks) * T", "pair * blocks * T"),
    "queries, keys and values stay as they are": ("else silu(qkv))", "else qkv)"),
    "what is given is not written": ("after if into is None else into.copy_(after)", "after"),
    "slopes lie close together": (".to(q.device).contiguous()", ".to(q.device)"),
    "gains lie close together": (", gain.contiguous()", ", gain"),
}
STEP_MISTAKES = {
    "the gate is not squashed": ("o /= 1 + tl.exp(-tl.load", "o *= 1 + tl.exp(-tl.load"),
    "every head has the first one's gate": ("gate_strides[0] + h * gate_strides[1]", "gate_strides[0]"),
    "every head has the first one's gain": ("gain + h * e + j", "gain + j"),
    "one block's squares stand for all": ("pair * tl.num_programs(1) + tl.program_id(1), tl", "pair, tl"),
    "what is gated is squared": ("tl.reduce(o * o, 0, plus)", "tl.reduce(o, 0, plus)"),
    "queries stay as they are": ("qc = (x / (1 + tl.exp(-x)))", "qc = x"),
    "keys stay as they are": ("kc = (x / (1 + tl.exp(-x)))", "kc = x"),
    "values stay as they are": ("vc = (x / (1 + tl.exp(-x)))", "vc = x"),
    "the state does not decay": ("S.to(wide) * keep", "S.to(wide)"),
    "slopes lie close together": (".to(q.device).contiguous()", ".to(q.device)"),
}


def from_views(packed, T):
    """Whatever is computed from arrays of which some are views, and a state that is written over."""
    qkv, gate, gain, slopes, state = projected(2, 3, T, 40)
    gain, slopes = (torch.stack([x, -x], dim=1)[:, 0] for x in (gain, slopes))
    y, square, _ = packed(qkv, gate, gain, slopes, state, into=state, tiles=TINY._replace(segment=32, stretch=16))
    return y, square, state


def differ(got, want) -> bool:
    """Whether an answer is another one."""
    return not all(torch.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in zip(got, want, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("mistake", PACKED_MISTAKES)
def test_a_mistake_in_what_is_fused_is_noticed(mistake, tmp_path):
    wrong = edited(tmp_path, segments, *PACKED_MISTAKES[mistake])
    assert differ(from_views(wrong.lightning_packed, 70), from_views(segments.lightning_packed, 70))


@pytest.mark.slow
@pytest.mark.parametrize("mistake", STEP_MISTAKES)
def test_a_mistake_in_a_step_is_noticed(mistake, tmp_path, monkeypatch):
    want = from_views(segments.lightning_packed, 1)
    wrong = edited(tmp_path, decode, *STEP_MISTAKES[mistake])
    monkeypatch.setattr(segments, "launch", wrong.launch)
    assert differ(from_views(segments.lightning_packed, 1), want)


def test_the_op_chooses(monkeypatch):
    """One warning, once, where a kernel would have been expected."""
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    forget = lambda: (choose._kernel.cache_clear(), choose.has_triton.cache_clear())  # noqa: E731
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose._kernel(128, False, device) is segments.lightning_attention
        assert choose._kernel(256, True, device) is decode.lightning_step
        (q, k, v, state), _, _ = drawn(1, 1, 3, 8, 8)
        assert choose.lightning(q, k, v, state, 64).func is chunks.lightning_attention  # no GPU: nothing is missed
        with choose.plain():
            assert choose.lightning(q, k, v, state, 64) is choose.anywhere("rms_norm") is None
    with pytest.warns(UserWarning) as told:
        assert choose._kernel(512, False, device) is choose._kernel(512, False, device) is None
    assert len(told) == 1
    assert_one_sentence(told[0].message, "512", "256", "PyTorch")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    forget()
    with pytest.warns(UserWarning) as told:
        assert choose._kernel(128, False, device) is None
    assert_one_sentence(told[0].message, "older")
    forget()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning) as told:
        assert choose._kernel(128, False, device) is None
    assert_one_sentence(told[0].message, "Triton", "pip install 'minimax-twin[kernels]'")
    forget()


def test_what_they_cannot_do_they_say(unchecked):
    (q, k, v, state), slopes, _ = drawn(1, 1, 3, 16, 16)
    wide = torch.zeros(1, 1, 3, 257)
    with pytest.raises(ValueError) as told:
        segments.lightning_attention(wide, wide, v, slopes)
    assert_one_sentence(told.value, "257", "256")
    with pytest.raises(ValueError) as told:
        segments.lightning_attention(q, k[:, :, :2], v, slopes)
    assert_one_sentence(told.value, "(1, 1, 2, 16)")
    with pytest.raises(ValueError) as told:
        decode.lightning_step(q, k, v, slopes)
    assert_one_sentence(told.value, "one token")
    token = [x[:, :, :1].expand(2, -1, -1, -1) for x in (q, k, v)]
    with pytest.raises(ValueError) as told:
        decode.lightning_step(*token, slopes, into=state.float().expand(2, -1, -1, -1))
    assert_one_sentence(told.value, "into", "float32")
    for kernel in (decode.lightning_step, segments.lightning_attention):  # what is short would be read beyond its end
        for name, short in (("slopes", slopes[:0]), ("state", state), ("mask", torch.ones(1, 1).bool())):
            with pytest.raises(ValueError) as told:
                kernel(*token, **{"slopes": slopes, name: short})
            assert_one_sentence(told.value, name, "(2, 1, 1, 16)")


# --- Mistakes ------------------------------------------------------------------------------------------------------

MISTAKES = {  # what was planted: the line as it is, as it is then
    "a short chunk decays like a full one": ("full = tl.exp2(slope * m)", "full = tl.exp2(slope * C)"),
    "the state is read undecayed": ("        o *= from_state[None, :]\n", ""),
    "a token does not see itself": ("r[None, :] >= r[:, None]", "r[None, :] > r[:, None]"),
    "backwards, too, the memory decays before it is read": ("1 if BACKWARDS else 0  # b", "0  # b"),
    "backwards, a stretch decays like forwards": ("1 if BACKWARDS else 0\n", "0\n"),
    "every segment begins with the first one's state": (" + segment * before_strides[1]", ""),
    "the last stretch is not handed on": ("range(0, each)", "range(0, each - 1)"),
    "the memory does not decay along a stretch": ("tl.exp2(slope * length)", "tl.exp2(slope * 0)"),
    "along a stretch padding decays": ("clock + length) - tl.load(clock))", "clock + length) * 0 + length)"),
    "padding decays inside a chunk": ("n = here - passed", "n = tl.minimum(r + 1, left)"),
    "padding is written": ("real = here > tl.load(clock + c * C + r)", "real = r < C"),
    "the gradient of the keys takes the memory as it lies": ("transposed(behind)", "behind"),
    "the gradient forgets what comes after the end": ("walks.begins(q, do, dS,", "walks.begins(q, do, None,"),
    "queries and keys change places in the gradient": ("walks.walk(k, q, do,", "walks.walk(q, k, do,"),
    "what is left of a chunk begins with nothing": (
        "before = None if after is None else after[:, None]",
        "before = None",
    ),
    "what is left of a chunk is left out": ("if whole < self.T or not parts", "if not parts"),
    "backwards, the clock goes forwards": ("(mask, mask.flip(1))", "(mask, mask)"),
}


def furthest(function, tiles=MANY) -> float:
    """The largest error of an answer or a gradient, with padding and without."""
    return max(_errors(function, tiles, None) + _errors(function, tiles, 0.7))


def _errors(function, tiles, share) -> list[float]:
    B = 1 if share is None else 2
    inputs, slopes, returned = drawn(B, 2, 75, 16, 16)
    mask = padding(B, 75, share)
    kernel = lambda q, k, v, S: function(q, k, v, slopes, S, mask=mask, tiles=tiles)  # noqa: E731
    got, want = answers(kernel, inputs, returned, mask), oracle(inputs, slopes, returned, mask)
    return [error(mine, theirs) for mine, theirs in zip(got, want, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake, tmp_path):
    assert not furthest(edited(tmp_path, segments, *MISTAKES[mistake]).lightning_attention) <= 1e-6  # NaN is noticed


def test_an_edit_that_changes_nothing_passes(tmp_path):
    """Else the mistakes above could be noticed for being edited."""
    same = edited(tmp_path, segments, "r[None, :] >= r[:, None]", "r[:, None] <= r[None, :]")
    assert furthest(same.lightning_attention) < 1e-13


def test_a_second_part_is_what_keeps_the_state_exact():
    """With one bfloat16 part the state has eight bits; with two, the sixteen that float32 sums are worth here."""
    (q, k, v, state), slopes, _ = drawn(1, 1, 64, 16, 16, dtype=torch.bfloat16)
    want = Chunked.apply(*(x.double() for x in (q, k, v, state)), slopes, None, 16)
    errors = {}
    for read, written in ((2, 2), (1, 2), (2, 1)):
        walks = segments.Walks(q, v, slopes, None, MANY._replace(read=read, written=written))
        walks.stored = walks.returned = torch.float32
        got = walks.walk(q, k, v, walks.begins(k, v, state))
        errors[read, written] = [error(mine, theirs) for mine, theirs in zip(got, want, strict=True)]
    assert max(errors[2, 2]) < 3e-5
    assert errors[1, 2][0] > 1e-3 and errors[1, 2][1] < 2e-5  # out alone
    assert errors[2, 1][1] > 1e-3
