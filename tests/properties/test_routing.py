"""Which experts a token goes to is the one step that is not smooth: rounding moves near ties, and nothing else."""

import numpy as np
from close import array, assert_same, both, lively, prompts
from hypothesis import given
from hypothesis.strategies import floats, integers
from minimax_numpy import MiniMaxConfig, ops
from minimax_numpy.trace import Trace, recording


@both
@given(E=integers(3, 32), noise=floats(1e-6, 0.5), seed=integers(0, 99))
def test_only_near_ties_change_their_experts(side, E, noise, seed):
    """Scores off by at most ε: a token whose second and third are more than 2ε apart keeps its two experts."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((200, E))
    rough = logits + rng.uniform(-noise, noise, logits.shape)
    before, after = (np.sort(array(side.package.ops.route(side.wrap(x), 2)[1])) for x in (logits, rough))
    ranked = np.sort(logits)
    safe = ranked[:, -2] - ranked[:, -3] > 2 * noise
    np.testing.assert_array_equal(before[safe], after[safe])


@both
@given(K=integers(1, 5), seed=integers(0, 99))
def test_shares_are_a_softmax_of_the_chosen_alone(side, K, seed):
    """The softmax over all and the division by its sum leave the same numbers."""
    logits = np.random.default_rng(seed).standard_normal((20, 8)) * 3
    weights, indices = (array(x) for x in side.package.ops.route(side.wrap(logits), K))
    assert_same(weights, ops.softmax(np.take_along_axis(logits, indices, axis=-1)))


def moved(dtype: str) -> list[float]:
    """In each layer, the share of 512 tokens that go to other experts if every activation is rounded."""
    model, chosen = lively(MiniMaxConfig.tiny(num_local_experts=32)), []
    for trace in (Trace(), Trace(round_to=dtype)):
        with recording(trace):
            scores = model(prompts(model.config, 1, 512), output_router_logits=True).router_logits
        chosen.append([np.sort(ops.route(x, 2)[1]) for x in scores])
    return [(exact != rough).any(-1).mean() for exact, rough in zip(*chosen, strict=True)]


def test_flips_make_flips():
    """In bfloat16 few tokens move in the first layers, several times as many in the last; the router is float32's."""
    first, second, *_, last_but_one, last = moved("bfloat16")
    assert first < 0.03 and last_but_one + last > 3 * (first + second)


def test_in_float32_hardly_a_token_moves():
    assert np.mean(moved("float32")) < 0.001
