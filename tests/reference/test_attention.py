"""Softmax attention and its rotary are their definitions, one query and one channel at a time."""

import numpy as np
import pytest
from close import assert_same
from minimax_numpy import ops


def inputs(B=2, H=6, G=2, T=5, J=8, d=4, e=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((B, H, T, d)), rng.standard_normal((B, G, J, d)), rng.standard_normal((B, G, J, e))


def written_out(q, k, v, visible):
    """Query head h reads key head h // (H/G): powers of the scaled products, over their sum, times the values."""
    B, H, T, d = q.shape
    out = np.zeros((B, H, T, v.shape[-1]))
    for b, h, t in np.ndindex(B, H, T):
        g = h // (H // k.shape[1])
        seen = [j for j in range(k.shape[2]) if visible[b, t, j]]
        powers = [np.exp(q[b, h, t] @ k[b, g, j] / np.sqrt(d)) for j in seen]
        for power, j in zip(powers, seen):
            out[b, h, t] += power / sum(powers) * v[b, g, j]
    return out


def test_softmax_attention_is_its_definition():
    """With any pattern of visible keys, and 0 for a query that sees none."""
    q, k, v = inputs()
    visible = np.random.default_rng(1).random((2, 5, 8)) < 0.5
    visible[1, 2] = False
    got = ops.softmax_attention(q, k, v, visible)
    assert_same(got, written_out(q, k, v, visible))
    assert not got[1, :, 2].any()


@pytest.mark.parametrize("T, J", [(1, 1), (1, 8), (5, 5), (5, 8)])
def test_without_a_pattern_it_is_plainly_causal(T, J):
    """The last T of J slots are this call's own: query t sees everything up to slot J − T + t."""
    q, k, v = inputs(T=T, J=J)
    causal = np.tri(T, J, J - T, dtype=bool)[None].repeat(2, 0)
    assert_same(ops.softmax_attention(q, k, v), written_out(q, k, v, causal))


def test_many_queries_are_taken_a_few_at_a_time():
    """A prompt longer than a block of queries: each row is what it is when asked alone."""
    q, k, v = inputs(B=1, H=2, T=600, J=610)
    visible = ops.visible_keys(np.arange(10, 610)[None], np.arange(610)[None], sliding_window=50)
    for pattern in (visible, None):
        whole = ops.softmax_attention(q, k, v, pattern)
        for t in (0, 255, 256, 599):
            alone = None if pattern is None else pattern[:, t : t + 1, : 11 + t]
            one = ops.softmax_attention(q[:, :, t : t + 1], k[:, :, : 11 + t], v[:, :, : 11 + t], alone)
            assert_same(one, whole[:, :, t : t + 1])


def test_large_scores_do_not_overflow():
    q, k, v = inputs(T=8)
    assert_same(ops.softmax_attention(q * 1e4, k, v)[:, :, 0], v[:, :, 0].repeat(3, 1))  # the first query has no choice


def test_a_window_counts_its_own_token():
    """w keys, itself included: t − w < j ≤ t, for rows of different lengths."""
    positions = np.array([[0, 1, 2, 3], [6, 7, 8, 9]])
    visible = ops.visible_keys(positions, np.arange(10)[None], sliding_window=3)
    for b, t, j in np.ndindex(2, 4, 10):
        assert visible[b, t, j] == (positions[b, t] - 3 < j <= positions[b, t])
    keys = np.arange(10)[None]
    np.testing.assert_array_equal(ops.visible_keys(positions, keys), ops.visible_keys(positions, keys, 10))


def test_softmax_of_nothing_is_nothing():
    """A row of −∞ gives zeros, not NaN; the others sum to 1."""
    weights = ops.softmax(np.array([[-np.inf] * 3, [1e4, 0.0, -np.inf], [0.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(weights, [[0, 0, 0], [1, 0, 0], [1 / 3] * 3])


def test_key_heads_must_divide_the_query_heads():
    q, k, v = inputs(H=5)
    with pytest.raises(ValueError, match="5 query heads cannot share 2 key heads"):
        ops.softmax_attention(q, k, v)


def test_rotary_turns_pairs_of_channels():
    """Channels i and i + R/2 are the two parts of a complex number, turned by t · base^(−2i/R); the rest pass."""
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 10))
    positions = np.array([[0, 1, 2, 3], [50, 7, 7, 1000]])
    got = ops.apply_rotary(x, positions, rotary_dim=6, base=100.0)
    for i in range(3):
        angle = positions[:, None] * 100.0 ** (-2 * i / 6)
        turned = (x[..., i] + 1j * x[..., i + 3]) * np.exp(1j * angle)
        assert_same(got[..., i], turned.real)
        assert_same(got[..., i + 3], turned.imag)
    np.testing.assert_array_equal(got[..., 6:], x[..., 6:])


def test_partial_rotary_is_no_part_of_a_whole_one():
    """Frequencies and pairs both differ, so turning the whole head and keeping R channels is another model."""
    x = np.random.default_rng(0).standard_normal((1, 1, 4, 8))
    positions = np.arange(4)[None]
    assert not np.allclose(ops.apply_rotary(x, positions, 4)[..., :4], ops.apply_rotary(x, positions, 8)[..., :4])


def test_only_the_distance_between_two_tokens_matters():
    """Query and key turned by p + n and p make the same product for any p."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, 1, 8))
    products = []
    for start in (0, 3, 1000):
        turned_q = ops.apply_rotary(q, np.array([[start + 5]]), 6, 50.0)
        products.append((turned_q * ops.apply_rotary(k, np.array([[start]]), 6, 50.0)).sum())
    assert_same(products, [products[0]] * 3)


def test_no_rotary_at_all():
    """rotary_dim 0 leaves every channel as it is."""
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 4))
    np.testing.assert_array_equal(ops.apply_rotary(x, np.arange(3)[None], 0), x)
