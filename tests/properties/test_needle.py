"""One value among thousands: a softmax layer gives it back from any distance; a state has faded, or is blurred."""

import numpy as np
import pytest
from close import array, both
from minimax_numpy import ops

T, D = 4096, 128
RATES = [*ops.decay_slopes(64, 0, 80)[[0, 31, 63]], *ops.decay_slopes(64, 78, 80)[[31, 63]], 0.0]


@pytest.fixture(scope="module")
def text():
    """Random keys of length one, and random values."""
    k, v = np.random.default_rng(0).standard_normal((2, T, D))
    return k / np.linalg.norm(k, axis=-1, keepdims=True), v


def likeness(read, written) -> float:
    """Mean cosine: 1 is the same direction, 0 nothing in common."""
    read, written = array(read), array(written)
    return ((read * written).sum(-1) / np.linalg.norm(read, axis=-1) / np.linalg.norm(written, axis=-1)).mean()


def behind(m):
    """Tokens that are m and a few more before the last one."""
    return T - 1 - np.arange(m, min(m + max(8, m // 4), T))


@both
@pytest.mark.parametrize("m", [0, 1, 64, 1000, T - 8])
def test_a_softmax_layer_finds_a_token_at_any_distance(side, text, m):
    """A query that scores 16 on its own key gets its value back."""
    k, v = text
    q = (16 * D**0.5 * k[behind(m)])[None, None]
    everything = np.ones((1, q.shape[2], T), bool)
    inputs = (side.wrap(x) for x in (q, k[None, None], v[None, None], everything))
    assert likeness(side.package.ops.softmax_attention(*inputs)[0, 0], v[behind(m)]) > 0.999


@both
@pytest.mark.parametrize("rate", RATES)
def test_a_state_fades_or_blurs(side, text, rate):
    """What comes back from m tokens ago is e^(−sm) of it, against all others; from 1,000 ago little, at any rate."""
    k, v = text
    inputs = (side.wrap(x) for x in (0 * k[None, None], k[None, None], v[None, None], np.array([rate])))
    state = array(side.package.ops.lightning_attention_chunked(*inputs)[1])[0, 0]
    strangers = np.exp(-2 * rate * np.arange(T)).sum()
    for m in (1, 16, 256, 1000):
        left = np.exp(-2 * rate * np.arange(m, m + max(8, m // 4)))
        formula = np.sqrt(left / (left + (strangers - left) / D)).mean()
        assert likeness(k[behind(m)] @ state, v[behind(m)]) == pytest.approx(formula, abs=0.06)
    assert formula < 0.25
