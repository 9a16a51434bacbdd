"""Losses are means over what counts, and over nothing else."""

import math

import numpy as np
import pytest
from close import assert_same
from minimax_numpy import ops


def log_p(scores, label):
    """log p(label) of one list of scores, the plain way."""
    return scores[label] - math.log(sum(math.exp(s) for s in scores))


def test_cross_entropy_is_the_mean_surprise():
    """Labels of −100 count neither above nor below the fraction line."""
    logits, labels = np.random.default_rng(0).standard_normal((4, 5)), np.array([3, -100, 0, 4])
    want = -np.mean([log_p(logits[i], labels[i]) for i in (0, 2, 3)])
    assert ops.cross_entropy(logits, labels) == pytest.approx(want, rel=1e-14)


def test_no_label_at_all_is_no_number():
    """The mean of nothing is NaN, without a warning."""
    assert math.isnan(ops.cross_entropy(np.zeros((2, 3)), np.array([-100, -100])))


def test_large_logits_do_not_overflow():
    assert ops.cross_entropy(np.array([[5000.0, 0.0]]), np.array([1])) == 5000
    np.testing.assert_array_equal(ops.log_softmax(np.array([5000.0, 0.0])), [0, -5000])


def test_the_causal_loss_shifts_the_labels():
    """Position t is asked for token t + 1, where both are real and the label counts."""
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((2, 5, 7)), rng.integers(0, 7, (2, 5))
    labels[0, 2] = -100
    mask = np.array([[0, 1, 1, 1, 1], [1, 1, 0, 1, 1]], bool)
    # row 0: 1→2 has label −100, 2→3, 3→4 count; row 1: 0→1 and 3→4 count, the hole joins nothing
    want = -np.mean([log_p(logits[b, t], labels[b, t + 1]) for b, t in ((0, 2), (0, 3), (1, 0), (1, 3))])
    assert ops.causal_loss(logits, labels, mask) == pytest.approx(want, rel=1e-14)


def balance(layers, K, real):
    """E · Σ f P, token by token, every layer's tokens in one pot."""
    E = layers[0].shape[-1]
    load, probability, tokens = np.zeros(E), np.zeros(E), 0
    for layer in layers:
        for b, t in np.argwhere(real):
            p = np.exp(layer[b, t]) / np.exp(layer[b, t]).sum()
            load[np.argsort(-p)[:K]] += 1
            probability += p
            tokens += 1
    return E * sum(load / tokens * probability / tokens)


def test_the_balance_loss_pools_layers_and_real_tokens():
    """One pot for all layers, then one sum; a mean of per-layer losses is another number."""
    rng = np.random.default_rng(0)
    layers, real = [rng.standard_normal((2, 4, 6)) * 3 for _ in range(3)], rng.random((2, 4)) < 0.6
    assert ops.load_balancing_loss(layers, 2, real) == pytest.approx(balance(layers, 2, real), rel=1e-14)
    assert ops.load_balancing_loss(layers, 2) == pytest.approx(balance(layers, 2, np.ones((2, 4))), rel=1e-14)
    one_by_one = np.mean([ops.load_balancing_loss([layer], 2, real) for layer in layers])
    assert abs(one_by_one - balance(layers, 2, real)) > 0.05


def test_an_even_load_costs_k():
    """Each expert is chosen equally often, with equal probability: E · E · (K/E) · (1/E) = K."""
    even = np.log(np.array([[[2.0, 2.0, 1.0, 1.0], [1.0, 1.0, 2.0, 2.0]]]))
    assert ops.load_balancing_loss([even], 2) == pytest.approx(2, rel=1e-14)


def test_a_task_head_takes_its_loss_from_its_labels():
    """Integers name a class; floats say how much of each class, or, with one output, which number to hit."""
    logits = np.random.default_rng(0).standard_normal((3, 4))
    assert ops.classification_loss(logits, np.array([1, 0, 3])) == ops.cross_entropy(logits, np.array([1, 0, 3]))
    much = np.array([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0.5, 1]])
    p = 1 / (1 + np.exp(-logits))
    want = -(much * np.log(p) + (1 - much) * np.log(1 - p)).mean()
    assert_same(ops.classification_loss(logits, much), want)
    numbers = np.array([1.0, 2.0, 3.0])
    assert_same(ops.classification_loss(logits[:, :1], numbers), ((logits[:, 0] - numbers) ** 2).mean())
