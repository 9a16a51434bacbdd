"""Without the exponential the past is one sum: which numbers it holds, what is lost, and what the norm hides."""

import numpy as np
from close import array, assert_same, both
from hypothesis import given
from hypothesis.strategies import integers


def inputs(T=12, d=4, e=3, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((1, 2, T, width)) for width in (d, d, e))


@both
@given(T=integers(1, 40), seed=integers(0, 99))
def test_without_decay_scores_first_is_sum_first(side, T, seed):
    """(q kᵀ) v, row by row up to t, is q times the running sum of k vᵀ."""
    q, k, v = inputs(T, seed=seed)
    scores_first = (q @ k.swapaxes(-1, -2) * np.tri(T)) @ v
    running = np.cumsum(k[..., :, None] * v[..., None, :], axis=2)  # (B, H, T, d, e): one sum a token
    sum_first = np.einsum("bhtd,bhtde->bhte", q, running)
    assert_same(sum_first, scores_first)
    out, state = side.package.ops.lightning_attention_chunked(*map(side.wrap, (q, k, v, np.zeros(2))), chunk=8)
    assert_same(out, sum_first)
    assert_same(state, running[:, :, -1])


@both
@given(factor=integers(2, 1000))
def test_a_longer_query_sharpens_softmax_and_nothing_else(side, factor):
    """Softmax comes nearer to the value of the best key; behind its norm, lightning attention says what it said."""
    ops, (q, k, v) = side.package.ops, inputs()
    one_text = (side.wrap(x) for x in (k, v))
    last = side.wrap(factor * 1e4 * q[:, :, -1:])
    best = (k @ q[:, :, -1, :, None])[..., 0].argmax(-1)  # (B, H)
    assert_same(ops.softmax_attention(last, *one_text), np.take_along_axis(v, best[..., None, None], axis=2))
    heard = []
    for queries in (q, factor * q):
        out, _ = ops.lightning_attention_chunked(*map(side.wrap, (queries, k, v)), side.wrap(np.zeros(2)))
        heard.append(array(ops.inner_norm(ops.merge_heads(out), side.wrap(np.ones(6)))))
    assert_same(heard[1], heard[0], 1e-4)  # the norm's ε of 1e-6 weighs less beside a longer output
