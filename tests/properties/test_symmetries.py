"""What the model cannot see: the future, the order of its experts, and, in lightning layers, the position."""

from dataclasses import replace

import numpy as np
import pytest
from close import array, assert_same, assert_same_cache, both, lively, prompts, small
from hypothesis import given
from hypothesis.strategies import integers
from minimax_numpy.config import LIGHTNING, SOFTMAX

CONFIG = small(LIGHTNING, SOFTMAX, LIGHTNING, block_size=4)
FORMS = [f"lightning_attention_{form}" for form in ("direct", "recurrent", "chunked")] + ["softmax_attention"]


@both
@pytest.mark.parametrize("op", FORMS)
@given(t=integers(0, 12))
def test_attention_cannot_see_the_future(side, op, t):
    """Another token at t leaves everything before it as it was, to the bit."""
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((1, 2, 13, 4)) for _ in range(3)]
    results = []
    for change in (0.0, 100.0):
        edited = [side.wrap(np.where(np.arange(13)[:, None] >= t, x + change, x)) for x in inputs]
        slopes = () if op == "softmax_attention" else (side.package.ops.decay_slopes(2, 0, 4),)
        out = getattr(side.package.ops, op)(*edited, *slopes)
        results.append(array(out if op == "softmax_attention" else out[0]))
    np.testing.assert_array_equal(results[0][:, :, :t], results[1][:, :, :t])
    assert not np.array_equal(results[0][:, :, t], results[1][:, :, t])


@both
@given(t=integers(1, 12), seed=integers(0, 99))
def test_a_future_edit_leaves_the_past_bit_identical(side, t, seed):
    """In the whole model, where every expert sees every token: a product of another size may differ in its last bit."""
    model = lively(replace(CONFIG, num_experts_per_tok=CONFIG.num_local_experts))
    ids, other = prompts(CONFIG, 2, 13), prompts(CONFIG, 2, 13, seed=seed + 1)
    edited = np.where(np.arange(13) >= t, other, ids)
    before, after = (array(side.call(model, x).logits) for x in (ids, edited))
    np.testing.assert_array_equal(before[:, :t], after[:, :t])


@both
@given(t=integers(1, 12), seed=integers(0, 99))
def test_a_future_edit_leaves_the_past(side, t, seed):
    """With two experts a token, the same numbers."""
    model = lively(CONFIG)
    ids, other = prompts(CONFIG, 2, 13), prompts(CONFIG, 2, 13, seed=seed + 1)
    edited = np.where(np.arange(13) >= t, other, ids)
    assert_same(*(side.call(model, x).logits[:, :t] for x in (edited, ids)))


def shuffle_experts(model, orders):
    """The same model with the experts of each layer, and the router's rows, in another order."""
    shuffled = dict(model.weights)
    for layer, order in enumerate(orders):
        for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"):
            shuffled[f"model.layers.{layer}.mlp.{name}"] = model.weights[f"model.layers.{layer}.mlp.{name}"][order]
    return type(model)(model.config, weights=shuffled, dtype=np.float64)


@both
@given(seed=integers(0, 99))
def test_the_order_of_experts_is_invisible(side, seed):
    """Each layer's experts may be shuffled by themselves; the balance loss, which pools layers, wants all alike."""
    model, rng = lively(CONFIG), np.random.default_rng(seed)
    orders = [rng.permutation(CONFIG.num_local_experts) for _ in CONFIG.layer_types]
    ids = prompts(CONFIG, 2, 13)
    want = side.call(model, ids, labels=ids, output_router_logits=True)
    assert_same(side.call(shuffle_experts(model, orders), ids).logits, want.logits)
    alike = side.call(shuffle_experts(model, orders[:1] * 3), ids, labels=ids, output_router_logits=True)
    assert_same(alike.aux_loss, want.aux_loss)
    assert_same(alike.loss, want.loss)


@both
@given(start=integers(0, 10_000), stride=integers(1, 5))
def test_lightning_layers_know_no_position(side, start, stride):
    """The decay is the position: position ids change nothing, to the bit."""
    model = lively(small(LIGHTNING, LIGHTNING))
    ids = prompts(model.config, 2, 9)
    positions = np.arange(start, start + 9 * stride, stride)[None].repeat(2, 0)
    shifted = side.call(model, ids, position_ids=positions).logits
    np.testing.assert_array_equal(array(shifted), array(side.call(model, ids).logits))


@both
@given(start=integers(0, 10_000))
def test_a_shift_of_all_positions_is_invisible_in_the_logits(side, start):
    """Softmax layers see differences only. What is cached is turned, and shows it."""
    model = lively(CONFIG)
    ids = prompts(CONFIG, 2, 9)
    positions = np.arange(start, start + 9)[None].repeat(2, 0)
    plain, shifted = (side.call(model, ids, position_ids=p, use_cache=True) for p in (None, positions))
    assert_same(shifted.logits, plain.logits)
    if start == 0:
        assert_same_cache(shifted.cache, plain.cache)
    else:
        assert not np.allclose(array(shifted.cache.layers[1].keys), array(plain.cache.layers[1].keys))


@both
@given(seed=integers(0, 99))
def test_the_order_of_rows_is_invisible(side, seed):
    """A shuffled batch gives shuffled answers."""
    model, order = lively(CONFIG), np.random.default_rng(seed).permutation(4)
    ids, mask = prompts(CONFIG, 4, 9), np.tri(4, 9, 5, dtype=int)
    out = array(side.call(model, ids, mask).logits)
    shuffled = array(side.call(model, ids[order], mask[order]).logits)
    real = mask[order] == 1
    assert_same(shuffled[real], out[order][real])


@both
@given(scale=integers(-6, 6))
def test_lightning_attention_is_linear(side, scale):
    """In q, in k and in v: twice the values are twice the answer. There is no softmax in it."""
    ops, rng = side.package.ops, np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, 9, 4)) for _ in range(3))
    slopes, factor = ops.decay_slopes(2, 0, 4), 2.0**scale
    want = array(ops.lightning_attention_chunked(*map(side.wrap, (q, k, v)), slopes)[0]) * factor
    for scaled in ((factor * q, k, v), (q, factor * k, v), (q, k, factor * v)):
        got, _ = ops.lightning_attention_chunked(*map(side.wrap, scaled), slopes)
        np.testing.assert_array_equal(array(got), want)
