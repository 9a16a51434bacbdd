"""The recall experiment: its task is what it says, and the stored models do what was measured of them."""

import json

import minimax_numpy
import minimax_torch
import numpy as np
import pytest
import torch
from minimax_numpy import ops
from minimax_numpy.trace import Trace, recording
from recall.task import HERE, KEYS, accuracy, config, draw
from recall.train import PATTERNS, train

measured = json.loads((HERE / "measured.json").read_text(encoding="utf-8"))
every_pattern = pytest.mark.parametrize("pattern", PATTERNS)


def test_each_question_has_its_answer_among_the_pairs():
    ids, answers = draw(np.random.default_rng(0), rows=3, pairs=20, keys=24)
    for row, right in zip(ids, answers, strict=True):
        told = dict(zip(row[:40:2], row[1:40:2], strict=True))
        assert len(told) == 20 and max(told) < 24, "no key twice, and only of those allowed"
        assert min(told.values()) >= KEYS
        assert [told[key] for key in row[40:]] == right.tolist()
        assert list(told) != row[40:].tolist(), "asked in another order"


@every_pattern
def test_a_stored_model_is_of_the_experiment(pattern):
    model = minimax_numpy.MiniMaxForCausalLM.from_pretrained(HERE / pattern)
    assert model.config == config(pattern)
    assert sum(x.size for x in model.weights.values()) == measured["parameters"][pattern]


@every_pattern
@pytest.mark.parametrize("package", [minimax_numpy, minimax_torch], ids=lambda package: package.__name__)
def test_a_stored_model_recalls_what_was_measured(pattern, package):
    """In float32 of either package; 2 of 2,048 answers may flip, where two logits are as good as equal."""
    kind = np.float32 if package is minimax_numpy else torch.float32
    model = package.MiniMaxForCausalLM.from_pretrained(HERE / pattern, kind)
    seed, n = 0, measured["pairs"].index(32)
    assert accuracy(model, 32) == pytest.approx(measured["accuracy"][pattern][seed][n], abs=2.5 / 2048)


def test_the_hybrid_recalls_what_lightning_alone_does_not():
    """With every seed, not on average."""
    right = {pattern: np.array(measured["accuracy"][pattern])[:, -1] for pattern in PATTERNS}
    assert right["LLLS"].min() > 0.97 and right["LLLL"].max() < 0.5


@pytest.mark.parametrize("pairs, low, high", [(8, 0.9, 1.0), (64, 0.6, 0.8)])
def test_the_hybrids_softmax_layer_looks_at_the_value_and_past_its_key(pairs, low, high):
    """Three of its four heads do: so the lightning layers have joined the two."""
    model, parts = minimax_numpy.MiniMaxForCausalLM.from_pretrained(HERE / "LLLS"), Trace()
    ids, _ = draw(np.random.default_rng(3), 16, pairs)
    with recording(parts):
        model(ids)
    q, k = (parts[f"model.layers.3.self_attn.{part}"] for part in ("query", "key"))  # (B, T, H, d)
    scores = np.einsum("bthd,bjhd->bhtj", q, k) / 4  # √16
    weights = ops.softmax(np.where(np.tri(3 * pairs, dtype=bool), scores, -np.inf))[:, :, 2 * pairs :]
    keys, asked = ids[:, : 2 * pairs : 2], ids[:, 2 * pairs :]
    own = keys[:, None, :] == asked[:, :, None]  # (B, N, N), one True in each question's row
    on_key, on_value = (
        (weights[..., start : 2 * pairs : 2] * own[:, None]).sum(-1).mean((0, 2))[:3] for start in (0, 1)
    )
    assert on_key.max() < 0.01
    assert low < on_value.min() and on_value.max() < high


def test_the_weights_are_small_enough_to_keep():
    assert sum(file.stat().st_size for file in HERE.glob("*/*")) < 10**6


def test_training_learns():
    """One softmax layer and one pair: all that is to learn is to name the value before the question."""
    _, (first, last) = train("S", seed=0, schedule=((1, 40),))
    assert last < first / 2
