"""Where you cut does not matter: a sequence in one call, in pieces, or in chunks of any size is one sequence."""

from dataclasses import replace

import numpy as np
import pytest
from close import assert_same, assert_same_cache, both, lively, prompts, small
from hypothesis import given, settings
from hypothesis.strategies import integers, lists
from minimax_numpy.config import LIGHTNING, SOFTMAX

MODELS = {
    "hybrid": lively(small(LIGHTNING, SOFTMAX, LIGHTNING, block_size=4)),
    "with a window": lively(small(SOFTMAX, LIGHTNING, SOFTMAX, block_size=4, sliding_window=3)),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
pieces = lists(integers(1, 9), min_size=1, max_size=5)


@both
@every_model
@settings(max_examples=20)
@given(pieces=pieces, seed=integers(0, 99))
def test_any_pieces_are_the_whole(side, model, pieces, seed):
    """Logits, states, cached keys and values, and lengths, for any cuts."""
    ids = prompts(model.config, 2, sum(pieces), seed=seed)
    whole = side.call(model, ids, use_cache=True)
    cache = side.cache(model.config, 2)
    starts = np.cumsum([0, *pieces])
    logits = [np.asarray(side.call(model, ids[:, a:b], cache=cache).logits) for a, b in zip(starts, starts[1:])]
    assert_same(np.concatenate(logits, axis=1), whole.logits)
    assert_same_cache(cache, whole.cache)


@both
@every_model
def test_one_token_at_a_time(side, model):
    """Decode is prefill."""
    ids = prompts(model.config, 2, 20)
    whole = side.call(model, ids, use_cache=True)
    cache = side.cache(model.config, 2)
    for t in range(20):
        assert_same(side.call(model, ids[:, t : t + 1], cache=cache).logits[:, 0], whole.logits[:, t])
    assert_same_cache(cache, whole.cache)


@both
@given(T=integers(1, 40), chunk=integers(1, 48), cut=integers(0, 40), seed=integers(0, 99))
def test_chunk_size_and_cut_do_not_matter_to_lightning(side, T, chunk, cut, seed):
    """One op, two cuts: into chunks inside a call, and into two calls with a state between."""
    ops, rng, cut = side.package.ops, np.random.default_rng(seed), min(cut, T)
    q, k, v = (side.wrap(rng.standard_normal((1, 2, T, 3))) for _ in range(3))
    slopes = ops.decay_slopes(2, 0, 4)
    want, after = ops.lightning_attention_direct(q, k, v, slopes)
    first, state = ops.lightning_attention_chunked(*(x[:, :, :cut] for x in (q, k, v)), slopes, chunk=chunk)
    second, state = ops.lightning_attention_chunked(*(x[:, :, cut:] for x in (q, k, v)), slopes, state, chunk=chunk)
    assert_same(np.concatenate([first, second], axis=2), want)
    assert_same(state, after)


@both
@given(block_size=integers(1, 40))
def test_chunk_size_does_not_matter_to_a_model(side, block_size):
    model = MODELS["hybrid"]
    ids, mask = prompts(model.config, 2, 33), np.array([[1] * 33, [0] * 7 + [1] * 20 + [0] * 6])
    want = model(ids, mask, use_cache=True)
    other = type(model)(replace(model.config, block_size=block_size), weights=model.weights, dtype=np.float64)
    got = side.call(other, ids, mask, use_cache=True)
    assert_same(np.asarray(got.logits)[mask == 1], want.logits[mask == 1])
    assert_same_cache(got.cache, want.cache)


@both
def test_a_window_wider_than_the_text_is_no_window(side):
    model = MODELS["hybrid"]
    ids = prompts(model.config, 1, 12)
    wide = type(model)(replace(model.config, sliding_window=12), weights=model.weights, dtype=np.float64)
    assert_same(side.call(wide, ids).logits, model(ids).logits)
