"""Every op has a body that is read beside the reference's; what is computed in its place is the same."""

import pytest
import torch
from close import TORCH, assert_same, every_configuration, lively, prompts, small
from hypothesis import given
from hypothesis import strategies as st
from minimax_numpy.check import crosscheck
from minimax_torch import ops
from minimax_torch.kernels.choose import is_plain, plain


@every_configuration
def test_the_plain_model_is_the_truth(config):
    """The cross-check, in the plain form: what is chosen is cross-checked everywhere else."""
    truth = lively(config)
    with plain():
        report = crosscheck(truth, TORCH.model(truth), length=11, decode=3)
    assert report.ok, report


def test_gradients_are_those_of_the_plain_form():
    model, ids = TORCH.model(lively(small())), torch.tensor(prompts(small(), 2, 13))
    found = []
    for form in (True, False):
        model.zero_grad()
        with plain() if form else torch.enable_grad():
            assert is_plain() is form
            model(ids, labels=ids).loss.backward()
        found.append({name: x.grad for name, x in model.named_parameters()})
    for name, x in found[0].items():
        if x is not None:
            assert_same(found[1][name], x)


@given(T=st.integers(0, 40), chunk=st.integers(1, 20), d=st.integers(1, 9), e=st.integers(1, 9), padded=st.booleans())
def test_lightning_attention(T, chunk, d, e, padded):
    made = torch.Generator().manual_seed(T)
    q, k = torch.randn(2, 2, 3, T, d, generator=made, dtype=torch.float64)
    v, state = (torch.randn(2, 3, n, e, generator=made, dtype=torch.float64) for n in (T, d))
    mask = {"mask": torch.rand(2, T, generator=made) < 0.7} if padded else {}
    slopes = ops.decay_slopes(3, 0, 4)
    with plain():
        want = ops.lightning_attention_chunked(q, k, v, slopes, state, chunk=chunk, **mask)
    for mine, theirs in zip(ops.lightning_attention_chunked(q, k, v, slopes, state, chunk=chunk, **mask), want):
        assert_same(mine, theirs)


@pytest.mark.parametrize("n", [1, 7])
def test_norms(n):
    x = torch.randn(2, 3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gain = torch.linspace(0.5, 2, n, dtype=torch.float64)
    with plain():
        want = ops.rms_norm(x, gain)
    assert_same(ops.rms_norm(x, gain), want)


def test_a_block_that_fails_is_left_as_well():
    with pytest.raises(ZeroDivisionError), plain():
        raise ZeroDivisionError
    assert not is_plain()
