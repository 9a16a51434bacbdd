"""Experts: a token goes to the K best of all E, and what they say is added up in the right shares."""

import numpy as np
from close import assert_same
from minimax_numpy import ops


def inputs(E=5, D=6, F=4, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in ((2, 3, D), (2, 3, E), (E, 2 * F, D), (E, D, F))]


def silu(x):
    return x / (1 + np.exp(-x))


def test_experts_are_their_definition():
    """Softmax over all E, the K best scaled to sum to 1; each runs W₂(silu(W₁x) ⊙ W₃x), W₁'s rows first."""
    x, logits, gate_up, down = inputs()
    for K in (1, 2, 5):
        weights, indices = ops.route(logits, K)
        got = ops.mix_experts(x, weights, indices, gate_up, down)
        for b, t in np.ndindex(2, 3):
            p = np.exp(logits[b, t]) / np.exp(logits[b, t]).sum()
            best = sorted(range(5), key=lambda e: -p[e])[:K]
            want = np.zeros(6)
            for e in best:
                w1, w3 = gate_up[e, :4], gate_up[e, 4:]
                want += p[e] / sum(p[best]) * (down[e] @ (silu(w1 @ x[b, t]) * (w3 @ x[b, t])))
            assert indices[b, t].tolist() == best
            assert_same(got[b, t], want)


def test_shares_sum_to_one():
    weights, _ = ops.route(np.random.default_rng(0).standard_normal((100, 8)) * 10, 3)
    assert_same(weights.sum(-1), np.ones(100))
    assert (np.diff(weights) <= 0).all()  # best first


def test_among_equals_the_lower_index_comes_first():
    """So that both twins send a token to the same experts."""
    _, indices = ops.route(np.array([[0.0, 1.0, 1.0, 0.0, 1.0], [0.0] * 5]), 4)
    assert indices.tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]


def test_large_scores_do_not_overflow():
    """Scores in the thousands, where e^x alone would be infinite."""
    weights, indices = ops.route(np.array([[5000.0, 4999.0, -5000.0]]), 2)
    assert_same(weights, [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))]])
    assert indices.tolist() == [[0, 1]]


def test_the_activation_reaches_the_experts():
    x, logits, gate_up, down = inputs()
    weights, indices = ops.route(logits, 2)
    results = [ops.mix_experts(x, weights, indices, gate_up, down, act) for act in ("silu", "gelu")]
    assert not np.allclose(*results)
    hidden = x @ gate_up[0].T
    assert_same(ops.swiglu(x, gate_up[0], down[0], "gelu"), (ops.gelu(hidden[..., :4]) * hidden[..., 4:]) @ down[0].T)


def test_an_expert_that_nobody_chose_is_not_run():
    """Its weights may be anything."""
    x, logits, gate_up, down = inputs()
    logits[..., 3] = -100
    weights, indices = ops.route(logits, 2)
    want = ops.mix_experts(x, weights, indices, gate_up, down)
    gate_up[3] = np.nan
    np.testing.assert_array_equal(ops.mix_experts(x, weights, indices, gate_up, down), want)
