"""A state is a memory: what is written can be read, keys that overlap disturb each other, and nothing else is known."""

import numpy as np
from close import array, assert_same, both
from hypothesis import given
from hypothesis.strategies import integers

D, E = 6, 4


def remember(side, k, v, q):
    """Write keys [n, d] and values [n, e] without decay; then ask with q [m, d] → answers [m, e] and the state."""
    ops, none = side.package.ops, np.zeros(1)
    write = (side.wrap(x[None, None]) for x in (np.zeros_like(k), k, v))
    _, state = ops.lightning_attention_recurrent(*write, side.wrap(none))
    ask = (side.wrap(x[None, None]) for x in (q, np.zeros_like(q), np.zeros((len(q), v.shape[1]))))
    answers, after = ops.lightning_attention_recurrent(*ask, side.wrap(none), state)
    np.testing.assert_array_equal(array(after), array(state))  # reading takes nothing away
    return array(answers)[0, 0], array(state)[0, 0]


def directions(n, seed):
    """n keys of length one at right angles to each other."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((D, D)))[0][:n]


@both
@given(n=integers(1, D), seed=integers(0, 99))
def test_keys_at_right_angles_give_back_their_values(side, n, seed):
    """Up to d of them, exactly; and a query at right angles to all of them reads nothing."""
    k, v = directions(n, seed), np.random.default_rng(seed).standard_normal((n, E))
    answers, state = remember(side, k, v, k)
    assert_same(answers, v)
    assert_same(state, sum(np.outer(*pair) for pair in zip(k, v, strict=True)))
    if n < D:
        elsewhere = directions(D, seed)[n:]
        assert np.abs(remember(side, k, v, elsewhere)[0]).max() < 1e-14


@both
@given(angle=integers(0, 180), seed=integers(0, 99))
def test_an_overlap_reads_its_share_of_the_other_value(side, angle, seed):
    """Two keys of length one: each brings its own value and cos(angle) times the other's."""
    one, other = directions(2, seed)
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    k, v = np.stack([one, cosine * one + sine * other]), np.random.default_rng(seed).standard_normal((2, E))
    assert_same(remember(side, k, v, k)[0], v + cosine * v[::-1])


@both
@given(seed=integers(0, 99))
def test_a_token_reads_what_it_has_written(side, seed):
    """The write comes before the read: from an empty memory a token gets (q · k) times its own value."""
    q, k, v = (np.random.default_rng(seed).standard_normal((1, 2, 1, 5)) for _ in range(3))
    out, _ = side.package.ops.lightning_attention_recurrent(*map(side.wrap, (q, k, v, np.array([0.1, 9.0]))))
    assert_same(out, (q * k).sum(-1, keepdims=True) * v)
