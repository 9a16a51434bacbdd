"""The chunked form has a backward of its own: it is autograd's, and what it keeps is linear in the length.

Experts, too, are computed in another order than they are written down: sorted by token, or a few alone.
"""

from functools import partial

import minimax_torch
import numpy as np
import pytest
import torch
from close import array, assert_same, lively, rms, small
from hypothesis import given
from hypothesis import strategies as st
from minimax_numpy.trace import UNIT_ROUNDOFF
from minimax_torch import ops
from minimax_torch.kernels import chunks, experts
from minimax_torch.kernels.choose import plain
from minimax_torch.quantize import quantize
from torch.autograd import gradcheck

NAMES = ("q", "k", "v", "state")


def drawn(B, H, T, d, e, seed=0, dtype=torch.float64):
    """q, k, v and a state that ask for gradients, slopes, and what weighs each number of out and of the state."""
    made = torch.Generator().manual_seed(seed)
    shapes = (B, H, T, d), (B, H, T, d), (B, H, T, e), (B, H, d, e), (B, H, T, e), (B, H, d, e)
    q, k, v, state, *weights = (torch.randn(shape, generator=made, dtype=torch.float64) for shape in shapes)
    wide = torch.promote_types(dtype, torch.float32)
    x = [q.to(dtype), k.to(dtype), v.to(dtype), state.to(wide)]
    return [y.requires_grad_() for y in x], ops.decay_slopes(H, 1, 4), [w.to(wide) for w in weights]


def both_ways(form, x, slopes, weights, mask=None, state=True):
    """What a form gives, and the gradients of a sum that weighs every number of it differently."""
    asked = x if state else x[:3]
    out, after = form(*x[:3], slopes, x[3] if state else None, mask=mask)
    real = 1 if mask is None else mask[:, None, :, None]
    loss = (out * real * weights[0]).sum() + (after * weights[1]).sum()
    return [(out * real).detach(), after.detach(), *torch.autograd.grad(loss, asked)]


# --- The same numbers ----------------------------------------------------------------------------------------------


@given(
    B=st.integers(1, 2),
    T=st.integers(1, 70),
    chunk=st.sampled_from([1, 2, 7, 16, 64, 256]),
    d=st.integers(1, 9),
    e=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.5, 0.9, None]),
    state=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_the_definition(B, T, chunk, d, e, share, state, seed):
    """Any length, tail, chunk and padding, with a state and without: autograd through the T × T form agrees."""
    x, slopes, weights = drawn(B, 3, T, d, e, seed)
    mask = None if share is None else torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < share
    got = both_ways(partial(ops.lightning_attention_chunked, chunk=chunk), x, slopes, weights, mask, state)
    want = both_ways(ops.lightning_attention_direct, x, slopes, weights, mask, state)
    for mine, theirs in zip(got, want, strict=True):
        assert_same(mine, theirs)


@pytest.mark.parametrize("together", [1, 300, 2**18], ids=["one by one", "a few", "all"])
def test_how_many_chunks_are_computed_together_does_not_matter(together, monkeypatch):
    monkeypatch.setattr(chunks, "TOGETHER", together)
    x, slopes, weights = drawn(2, 3, 75, 4, 5)
    got = both_ways(partial(ops.lightning_attention_chunked, chunk=4), x, slopes, weights)
    for mine, theirs in zip(got, both_ways(ops.lightning_attention_direct, x, slopes, weights), strict=True):
        assert_same(mine, theirs)


@pytest.mark.parametrize("T, chunk", [(1, 4), (9, 4), (8, 4), (3, 8)])
@pytest.mark.parametrize("padded", [False, True])
def test_the_backward_is_the_slope_of_the_forward(T, chunk, padded):
    """Against finite differences, which know no formula: of the outputs, of the state, and of both together."""
    x, slopes, _ = drawn(1, 2, T, 3, 2)
    mask = torch.arange(T)[None] % 3 != 1 if padded else torch.ones(1, T, dtype=torch.bool)
    for part in (lambda y: y, lambda y: y[0], lambda y: y[1]):
        assert gradcheck(lambda *y: part(chunks.Chunked.apply(*y, slopes, mask, chunk)), x)  # noqa: B023


def test_no_token_hands_the_state_on_and_its_gradient_back():
    x, slopes, weights = drawn(2, 3, 0, 4, 5)
    out, after = ops.lightning_attention_chunked(*x[:3], slopes, x[3])
    assert out.shape == (2, 3, 0, 5) and torch.equal(after, x[3])
    (back,) = torch.autograd.grad((after * weights[1]).sum(), x[3])
    assert torch.equal(back, weights[1])


def test_the_state_that_was_handed_in_stays_as_it_was():
    for T in (0, 1, 9):
        x, slopes, _ = drawn(1, 2, T, 4, 5)
        before = x[3].detach().clone()
        with torch.no_grad():
            _, after = ops.lightning_attention_chunked(*x[:3], slopes, x[3], chunk=4)
        after.zero_()
        assert torch.equal(x[3], before), T


def test_a_sequence_in_two_calls_has_the_gradient_of_one():
    """The state's gradient goes from the second call into the first."""
    x, slopes, weights = drawn(2, 3, 23, 4, 5)
    form = partial(ops.lightning_attention_chunked, chunk=4)

    def in_two(q, k, v, slopes, state, mask=None):
        first, between = form(*(y[:, :, :10] for y in (q, k, v)), slopes, state)
        rest, after = form(*(y[:, :, 10:] for y in (q, k, v)), slopes, between)
        return torch.cat([first, rest], dim=2), after

    for mine, theirs in zip(both_ways(in_two, x, slopes, weights), both_ways(form, x, slopes, weights), strict=True):
        assert_same(mine, theirs)


def test_only_what_is_asked_for_gets_a_gradient():
    x, slopes, weights = drawn(1, 2, 9, 4, 5)
    x[0].requires_grad_(False), x[3].requires_grad_(False)
    out, after = ops.lightning_attention_chunked(*x[:3], slopes, x[3], chunk=4)
    ((out * weights[0]).sum() + (after * weights[1]).sum()).backward()
    assert x[0].grad is None and x[3].grad is None and x[1].grad.any() and x[2].grad.any()


@pytest.mark.parametrize("T", [1, 20])
def test_autocast_narrows_the_products_around_it_alone(T):
    """The state and what is summed into it stay float32, and gradients flow."""
    x, slopes, weights = drawn(1, 2, T, 8, 8, dtype=torch.float32)

    def narrowed(*given, **named):
        with torch.autocast("cpu", torch.bfloat16):
            return ops.lightning_attention_chunked(*given, **named)

    got, want = (both_ways(form, x, slopes, weights) for form in (narrowed, ops.lightning_attention_chunked))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, want, strict=True))


@pytest.mark.parametrize("op", ["lightning attention", "experts", "a norm"])
def test_a_second_derivative_is_refused(op):
    """None of these backwards has one of its own; a plain sum's gradient needs none, and it is noticed all the same."""
    x, slopes, _ = drawn(1, 2, 9, 8, 8)
    mixture = a_mixture((2, 5))
    forms = {
        "lightning attention": (x[0], lambda q: ops.lightning_attention_chunked(q, *x[1:3], slopes)[0]),
        "experts": (mixture[0].requires_grad_(), lambda y: ops.mix_experts(y, *mixture[1:])),
        "a norm": (x[0], lambda y: ops.rms_norm(y, torch.ones(8, dtype=y.dtype))),
    }
    asked, form = forms[op]
    (slope,) = torch.autograd.grad(form(asked).sum(), asked, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.pow(2).sum().backward()


# --- Honest rounding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("T, chunk, padded", [(130, 16, False), (130, 64, True), (33, 256, False)])
def test_gradients_round_honestly(dtype, T, chunk, padded):
    """Off from float64 by at most 2 · what autograd through the direct form is off, + 4u · the RMS on |inputs|.

    That form computes in float32 and rounds each gradient once to the type of its input, as this one must.
    """
    x, slopes, weights = drawn(2, 4, T, 16, 16, dtype=getattr(torch, dtype))
    mask = torch.rand(2, T, generator=torch.Generator().manual_seed(1)) < 0.8 if padded else None
    form = partial(ops.lightning_attention_chunked, chunk=chunk)
    exact = [y.detach().double().requires_grad_() for y in x]
    wide = [w.double() for w in weights]
    want = both_ways(ops.lightning_attention_direct, exact, slopes, wide, mask)
    magnitude = both_ways(
        ops.lightning_attention_direct, [y.detach().abs().requires_grad_() for y in exact], slopes,
        [w.abs() for w in wide], mask,
    )  # fmt: skip
    plain = both_ways(ops.lightning_attention_direct, x, slopes, weights, mask)
    got = both_ways(form, x, slopes, weights, mask)
    for name, mine, theirs, truth, large in zip(("out", "after", *NAMES), got, plain, want, magnitude, strict=True):
        u = UNIT_ROUNDOFF[str(mine.dtype).removeprefix("torch.")]
        off, usual = (rms(array(y).astype(np.float64) - array(truth)) for y in (mine, theirs))
        assert mine.dtype == theirs.dtype and off <= 2 * usual + 4 * u * rms(large), name


# --- Memory --------------------------------------------------------------------------------------------------------


def kept(T: int, chunk: int = 16) -> tuple[int, int]:
    """How many numbers the backward keeps, and the most in one tensor."""
    x, slopes, _ = drawn(1, 2, T, 8, 8, dtype=torch.float32)
    seen: dict[int, int] = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.itemsize
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out, after = ops.lightning_attention_chunked(*x[:3], slopes, x[3], chunk=chunk)
        (out.sum() + after.sum()).backward()
    return sum(seen.values()), max(seen.values())


def test_memory_is_linear_in_the_length():
    """Twice the text, twice what is kept: the inputs, and a state a chunk. No tensor has T × T numbers."""
    (short, _), (middle, _), (long, largest) = kept(512), kept(1024), kept(2048)
    assert long - middle == 2 * (middle - short) and largest <= 2 * 2048 * 8
    inputs, states = 3 * 2 * 2048 * 8, 2048 // 16 * 2 * 8 * 8
    assert long <= 1.02 * (inputs + states)


def test_the_direct_form_keeps_a_square():
    """Else the test above could pass by looking away."""
    x, slopes, _ = drawn(1, 2, 512, 8, 8, dtype=torch.float32)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda y: sizes.append(y.numel()) or y, lambda y: y):
        ops.lightning_attention_direct(*x[:3], slopes, x[3])
    assert max(sizes) >= 512 * 512


# --- Experts -------------------------------------------------------------------------------------------------------


def written_out(x, weights, indices, gate_up, down, hidden_act="silu"):
    """Each token by itself, each of its experts in turn."""
    flat, w, e = (y.reshape(-1, y.shape[-1]) for y in (x, weights, indices))
    rows = []
    for t, said in enumerate(flat):
        heard = (ops.swiglu(said, gate_up[i], down[i], hidden_act) for i in e[t].tolist())
        rows.append(sum(share * y for share, y in zip(w[t], heard, strict=True)))
    return torch.stack(rows).reshape(x.shape)


def a_mixture(shape, E=6, K=2, D=8, F=12, only=None, dtype=torch.float64):
    """x, weights, indices and experts; ``only`` names the experts that are chosen among."""
    made = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, D, generator=made, dtype=torch.float64)
    logits = torch.randn(*shape, E, generator=made, dtype=torch.float64)
    if only is not None:
        logits[..., [e for e in range(E) if e not in only]] = -1e9
    gate_up = torch.randn(E, 2 * F, D, generator=made, dtype=torch.float64)
    down = torch.randn(E, D, F, generator=made, dtype=torch.float64)
    weights, indices = ops.route(logits, K)
    return [y.to(dtype) if y.is_floating_point() else y for y in (x, weights, indices, gate_up, down)]


SHAPES = {"a token": (1, 1), "one, unbatched": (1,), "two": (2, 1), "eight": (8, 1), "many": (2, 33)}


@pytest.mark.parametrize("gradients", [False, True], ids=["plain", "with gradients"])
@pytest.mark.parametrize("only", [None, (1, 4)], ids=["all chosen", "four never chosen"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("act", ["silu", "gelu"])
def test_sorted_experts_are_each_tokens_own(shape, only, gradients, act):
    inputs = a_mixture(shape, only=only)
    with torch.set_grad_enabled(gradients):
        assert_same(ops.mix_experts(*inputs, act), written_out(*inputs, act))


@pytest.mark.parametrize("act", ["silu", "gelu"])
@pytest.mark.parametrize("form", ["a backward of its own", "autograd's"])
@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_expert_and_every_weight_gets_its_gradient(shape, K, form, act, monkeypatch):
    """An expert that no token chose gets zeros, not none."""
    if form == "autograd's":
        monkeypatch.setattr(experts, "SLOPES", {})
    x, weights, indices, gate_up, down = a_mixture(shape, only=(0, 2, 3), K=K)
    asked = [y.requires_grad_() for y in (x, weights, gate_up, down)]
    scale = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    got, want = (
        torch.autograd.grad((f(x, weights, indices, gate_up, down, act) * scale).sum(), asked)
        for f in (ops.mix_experts, written_out)
    )
    for mine, theirs in zip(got, want, strict=True):
        assert_same(mine, theirs)
    assert not got[2][1].any() and got[2].shape == gate_up.shape


@pytest.mark.parametrize("act", ["silu", "gelu"])
def test_the_experts_backward_is_the_slope_of_their_forward(act):
    """Against finite differences, which know no formula; whichever of the inputs ask."""
    x, weights, indices, gate_up, down = a_mixture((2, 5), D=3, F=4)
    flat, shares, chosen = x.flatten(0, 1), weights.flatten(0, 1), indices.flatten()
    for asked in ((True,) * 4, (True, True, False, False), (False, False, True, False), (False, False, False, True)):
        inputs = [y.requires_grad_(a) for y, a in zip((flat, shares, gate_up, down), asked, strict=True)]
        assert gradcheck(lambda x, w, up, down: experts.Mixed.apply(x, w, chosen, up, down, act), inputs)


def test_the_experts_keep_what_they_had_hidden_and_no_more():
    x, weights, indices, gate_up, down = a_mixture((2, 33))
    held: dict[int, int] = {}

    def pack(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ops.mix_experts(x.requires_grad_(), weights.requires_grad_(), indices, gate_up, down)
    hidden, inputs, places = 2 * 66 * 2 * 12, x.numel() + weights.numel() + gate_up.numel() + down.numel(), 2 * 2 * 66
    assert sum(held.values()) == hidden + inputs + places


@pytest.mark.parametrize("rows", [1, 3, 1024], ids=["one by one", "a few", "all"])
@pytest.mark.parametrize("only", [None, (1, 4)], ids=["all chosen", "four never chosen"])
@pytest.mark.parametrize("act", ["silu", "gelu"])
def test_how_many_rows_an_expert_is_given_at_one_time_does_not_matter(rows, only, act, monkeypatch):
    monkeypatch.setattr(experts, "ROWS", rows)
    inputs = a_mixture((2, 33), only=only)
    with torch.no_grad():
        assert_same(ops.mix_experts(*inputs, act), written_out(*inputs, act))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_nan_goes_where_it_belongs(shape):
    """A token of NaN is its own answer; an expert of NaN is in the answers of those that chose it, and of no others."""
    x, weights, indices, gate_up, down = a_mixture(shape)
    hers, ill = indices.reshape(-1, 2)[0], x.clone()
    ill.reshape(-1, 8)[0] = torch.nan
    down_ill = down.clone()
    down_ill[hers[0]] = torch.nan
    asked = (indices == hers[0]).any(dim=-1)
    with torch.no_grad():
        first = ops.mix_experts(ill, weights, indices, gate_up, down).reshape(-1, 8).isnan()
        some = ops.mix_experts(x, weights, indices, gate_up, down_ill).isnan()
    assert first[0].all() and not first[1:].any()
    assert torch.equal(some, asked[..., None].expand_as(some))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_sorted_experts_round_honestly(shape, dtype):
    """Off from float64 by at most 2 · what the op as it is written is off, + 4u · the RMS on |inputs|."""
    inputs = a_mixture(shape, D=64, F=96, dtype=getattr(torch, dtype))
    exact = [y.double() if y.is_floating_point() else y for y in inputs]
    with torch.no_grad():
        got = ops.mix_experts(*inputs)
        with plain():
            usual, want, large = (ops.mix_experts(*y) for y in (inputs, exact, [y.abs() for y in exact]))
    off, allowed = (rms(array(y).astype(np.float64) - array(want)) for y in (got, usual))
    assert got.dtype == usual.dtype and off <= 2 * allowed + 4 * UNIT_ROUNDOFF[dtype] * rms(large)


@pytest.mark.parametrize("gradients", [False, True], ids=["plain", "with gradients"])
def test_autocast_narrows_the_experts_products(gradients):
    """As it narrows them where they are written out, whatever type the tokens come in."""
    inputs = a_mixture((2, 33), D=64, F=96, dtype=torch.float32)
    for narrow in (False, True):
        given = [inputs[0].bfloat16() if narrow else inputs[0], *inputs[1:]]
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16):
            got = ops.mix_experts(*(y.requires_grad_(gradients) if y.is_floating_point() else y for y in given))
            with plain():
                want = ops.mix_experts(*given)
        exact = ops.mix_experts(*(y.detach().double() if y.is_floating_point() else y for y in inputs))
        off, usual = (rms(array(y).astype(np.float64) - array(exact)) for y in (got, want))
        assert usual / 2 <= off <= 2 * usual


def test_an_activation_that_there_is_not():
    with torch.no_grad(), pytest.raises(ValueError, match="hidden_act is 'relu'"):
        ops.mix_experts(*a_mixture((2, 33)), "relu")


def test_no_token_is_no_trouble():
    x, weights, indices, *stacks = a_mixture((2, 3))
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            assert ops.mix_experts(x[:, :0], weights[:, :0], indices[:, :0], *stacks).shape == (2, 0, 8)


@pytest.mark.parametrize("kind", ["int8", "nf4", "nf4-double"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_quantised_stacks(shape, kind):
    """What the codes stand for, computed in the same way."""
    x, weights, indices, gate_up, down = a_mixture(shape, D=64, F=64, dtype=torch.float32)
    stacks = [quantize(w, kind) for w in (gate_up, down)]
    got = ops.mix_experts(x, weights, indices, *stacks)
    want = ops.mix_experts(x.double(), weights.double(), indices, *(s.dequantize().double() for s in stacks))
    assert_same(got, want, within=2e-6)  # float32 against float64; measured 3e-7


def test_streamed_stacks(tmp_path):
    """A prompt and tokens after it, from the shards: what the model in memory gives."""
    reference = lively(small())
    reference.save_pretrained(tmp_path)
    ids = torch.arange(3, 16)[None]
    answers = []
    for stream in (False, True):
        model = minimax_torch.MiniMaxForCausalLM.from_pretrained(tmp_path, torch.float64, stream=stream)
        with torch.no_grad():
            out = model(ids, use_cache=True)
            answers.append([out.logits, model(ids[:, :1], cache=out.cache).logits])
    for mine, theirs in zip(*answers, strict=True):
        assert_same(mine, theirs)


def test_inputs_stay_as_they_are():
    """Without gradients some steps are done in place, on arrays that nobody else holds."""
    inputs = a_mixture((3, 5))
    before = [y.clone() for y in inputs]
    model = minimax_torch.MiniMaxForCausalLM.from_reference(lively(small()))
    held: list[tuple] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, a, out, n=name: held.extend(
            (n, y, y.clone()) for y in (*a, *(out if isinstance(out, tuple) else [out])) if isinstance(y, torch.Tensor)
        ))  # fmt: skip
    with torch.no_grad():
        ops.mix_experts(*inputs)
        cache = model(torch.arange(3, 20)[None], use_cache=True).cache
        model(torch.tensor([[5]]), cache=cache)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert len(held) > 100
    for name, y, then in held:  # what a hook saw is still what it was after the whole call
        assert torch.equal(y, then), name
