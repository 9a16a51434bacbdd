"""Every planted defect, in the reference and in the twin: caught, and named in the report."""

import numpy as np
import pytest
import torch
from minimax_numpy import MiniMaxConfig, MiniMaxForCausalLM
from minimax_numpy import ops as numpy_ops
from minimax_numpy.check import DEFECTS, check_op, crosscheck
from minimax_numpy.check.single import CASES
from minimax_numpy.check.targets import NumpyTarget
from minimax_torch import MiniMaxForCausalLM as Twin
from minimax_torch import ops as torch_ops

PACKAGES = {"minimax_numpy": numpy_ops, "minimax_torch": torch_ops}


@pytest.fixture(scope="module")
def truth() -> MiniMaxForCausalLM:
    """Three lightning layers and a softmax layer, a sliding window, gains that are not all one."""
    kinds = ("linear_attention",) * 3 + ("full_attention",)
    model = MiniMaxForCausalLM(MiniMaxConfig.tiny(layer_types=kinds, sliding_window=9), dtype=np.float64)
    rng = np.random.default_rng(5)
    for name, x in model.weights.items():
        if x.ndim == 1:
            model.weights[name] = x * (1 + 0.2 * rng.standard_normal(x.shape))
    return model


def test_there_are_at_least_twenty_and_each_says_what_to_do():
    assert len(DEFECTS) >= 20
    assert len({defect.says for defect in DEFECTS.values()}) == len(DEFECTS)
    assert all(defect.cure for defect in DEFECTS.values())


@pytest.mark.parametrize("key", DEFECTS)
def test_planted_in_the_reference(key, truth):
    planted = NumpyTarget(truth, DEFECTS[key].plant(numpy_ops))
    report = crosscheck(truth, planted, dtype="float64", length=41, decode=2)
    assert not report.ok
    assert report.looks_like == DEFECTS[key].says, report


@pytest.mark.parametrize("key", DEFECTS)
def test_planted_in_the_twin(key, truth):
    twin = Twin.from_reference(truth)
    with torch_ops.using(**DEFECTS[key].plant(torch_ops)):
        report = crosscheck(truth, twin, length=41, decode=2)
    assert not report.ok
    assert report.looks_like == DEFECTS[key].says, report


# Mistakes smaller than float32 resolves at these lengths, or that the type's own rounding covers.
BELOW_FLOAT32 = {"follows_the_other_rule", "takes_the_inner_eps", "takes_the_outer_eps", "leaves_out_the_epsilon"}


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(DEFECTS.keys() - BELOW_FLOAT32))
def test_planted_in_a_float32_twin(key, truth):
    twin = Twin.from_reference(truth, dtype=torch.float32)
    with torch_ops.using(**DEFECTS[key].plant(torch_ops)):
        report = crosscheck(truth, twin, dtype="float32", length=41, decode=2)
    assert not report.ok
    assert report.looks_like == DEFECTS[key].says, report


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("key", sorted(DEFECTS.keys() - {"gates_by_the_unnormed_input"}))  # that one is between two ops
def test_planted_in_a_single_op(key, package):
    planted = DEFECTS[key].plant(PACKAGES[package])
    for name in planted.keys() & CASES.keys() - {"merge_heads"}:  # merge_heads only remembers the number of heads
        report = check_op(name, planted[name])
        assert not report.ok
        assert report.looks_like == DEFECTS[key].says, report


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("garbage", ["zeros", "noise", "NaN"])
def test_garbage_never_passes(name, garbage):
    """A kernel that returns zeros must fail, whatever the type: tolerances are for rounding."""
    right, rng = getattr(numpy_ops, name), np.random.default_rng(0)
    spoil = {
        "zeros": np.zeros_like,
        "noise": lambda x: rng.standard_normal(np.shape(x)).astype(np.asarray(x).dtype) + 2,
        "NaN": lambda x: np.full(np.shape(x), np.nan),
    }[garbage]

    def wrong(*arguments, **options):
        result = right(*arguments, **options)
        return tuple(map(spoil, result)) if isinstance(result, tuple) else spoil(result)

    for dtype in ("float64", "float32", "bfloat16", "float16"):
        assert not check_op(name, wrong, dtype=dtype).ok, dtype
