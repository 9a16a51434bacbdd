"""Norms, gates, activations, projections and packing, each against the plain way to write it."""

import math

import numpy as np
import pytest
from close import assert_same
from minimax_numpy import ops

X = np.random.default_rng(0).standard_normal((2, 3, 12))


def test_rms_norm_divides_by_the_root_mean_square():
    """Vector by vector: g · x / √(mean x² + ε). No mean is taken away."""
    gain = np.random.default_rng(1).standard_normal(12)
    got = ops.rms_norm(X, gain, eps=0.1)
    for b, t in np.ndindex(2, 3):
        length = math.sqrt(sum(c * c for c in X[b, t]) / 12 + 0.1)
        assert_same(got[b, t], gain * X[b, t] / length)


def test_rms_norm_of_nothing_is_nothing():
    """A zero vector has no direction; epsilon keeps it zero."""
    np.testing.assert_array_equal(ops.rms_norm(np.zeros((1, 1, 4)), np.ones(4)), np.zeros((1, 1, 4)))


def test_the_inner_norm_has_an_epsilon_of_its_own():
    """1e-6, whatever rms_norm_eps says, over all heads as one vector. Small inputs tell the two epsilons apart."""
    x = X * 1e-3
    want = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    assert_same(ops.inner_norm(x, np.ones(12)), want)
    assert not np.allclose(ops.rms_norm(x, np.ones(12)), want, rtol=0.1)


def test_activations_are_their_formulas():
    x = np.linspace(-6, 6, 101)
    assert_same(ops.sigmoid(x), 1 / (1 + np.exp(-x)))
    assert_same(ops.silu(x), x / (1 + np.exp(-x)))
    assert_same(ops.gelu(x), [0.5 * c * (1 + math.erf(c / math.sqrt(2))) for c in x])


def test_activations_do_not_overflow():
    """±1000 in every type gives the limit, and no warning."""
    for dtype in (np.float16, np.float32, np.float64):
        x = np.array([-1000, 1000], dtype)
        with np.errstate(over="raise", invalid="raise"):
            np.testing.assert_array_equal(ops.sigmoid(x), [0, 1])
            np.testing.assert_array_equal(ops.silu(x), [0, 1000])
            np.testing.assert_array_equal(ops.gelu(x), [0, 1000])


def test_activate_knows_two_names():
    np.testing.assert_array_equal(ops.activate(X), ops.silu(X))
    np.testing.assert_array_equal(ops.activate(X, "gelu"), ops.gelu(X))
    with pytest.raises(ValueError, match="hidden_act is 'relu'; this model knows silu and gelu."):
        ops.activate(X, "relu")


def test_the_output_gate_is_a_sigmoid_of_the_layers_input():
    y, weight = np.full((2, 3, 5), 2.0), np.random.default_rng(1).standard_normal((5, 12))
    assert_same(ops.output_gate(y, X, lambda x: x @ weight.T), 2 / (1 + np.exp(-X @ weight.T)))


def test_the_residual_is_the_normed_value():
    """α · normed + β · update; with postnorm off, α · x + β · update."""
    x, normed, update = (np.full((1, 1, 2), c) for c in (1.0, 10.0, 100.0))
    assert ops.add_residual(x, normed, update, 2.0, 3.0).ravel().tolist() == [320, 320]
    assert ops.add_residual(x, normed, update, 2.0, 3.0, postnorm=False).ravel().tolist() == [302, 302]


def test_linear_multiplies_by_the_transpose():
    """Weights are [out, in], as the checkpoint has them."""
    weight, bias = np.random.default_rng(1).standard_normal((5, 12)), np.arange(5.0)
    for m in range(5):
        want = [[sum(X[b, t, n] * weight[m, n] for n in range(12)) + bias[m] for t in range(3)] for b in range(2)]
        assert_same(ops.linear(X, weight, bias)[..., m], want)
    np.testing.assert_array_equal(ops.linear(X, weight, np.zeros(5)), ops.linear(X, weight))


def test_heads_are_neighbouring_channels():
    """Head h of position t is channels h·d to h·d + d of that position."""
    heads = ops.split_heads(X, 3)
    for b, h, t in np.ndindex(2, 3, 3):
        np.testing.assert_array_equal(heads[b, h, t], X[b, t, 4 * h : 4 * h + 4])
    np.testing.assert_array_equal(ops.merge_heads(heads), X)


def test_the_packed_projection_is_head_major():
    """Head h owns 3d rows in a row, q | k | v, and the activation is on all three."""
    q, k, v = ops.split_qkv(X, num_heads=2, hidden_act="gelu")
    for h in range(2):
        for part, got in enumerate((q, k, v)):
            start = 6 * h + 2 * part
            np.testing.assert_array_equal(got[:, h], ops.gelu(X[..., start : start + 2]))


def test_packing_takes_documents_apart_and_together():
    """Three documents of a packed row become three rows; the padding between is left out on the way back."""
    ends = np.array([0, 4, 5, 11])
    x = np.random.default_rng(0).standard_normal((1, 2, 11, 3))
    rows, mask = ops.document_rows(ends)
    apart = ops.unpack(x, rows)
    assert mask.sum(axis=1).tolist() == [4, 1, 6]
    for n, (start, end) in enumerate(zip(ends, ends[1:])):
        np.testing.assert_array_equal(apart[n, :, : end - start], x[0, :, start:end])
        assert mask[n, : end - start].all()
    np.testing.assert_array_equal(ops.pack(apart, mask), x)
