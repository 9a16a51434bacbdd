"""Every op has a body that is read beside the reference's; what is computed in its place is the same."""

import shutil

import pytest
import torch
from close import ROUNDING, TORCH, assert_same, assert_same_cache, every_configuration, lively, prompts, small
from hypothesis import given
from hypothesis import strategies as st
from minimax_numpy.check import crosscheck
from minimax_numpy.config import LIGHTNING, SOFTMAX
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


@pytest.mark.parametrize("gradients", [False, True], ids=["plain", "with gradients"])
@pytest.mark.parametrize("beta", [1.0, 0.6])
@pytest.mark.parametrize("postnorm", [True, False])
def test_residuals(postnorm, beta, gradients):
    made = torch.Generator().manual_seed(0)
    x = [torch.randn(2, 5, 7, dtype=torch.float64, generator=made, requires_grad=gradients) for _ in range(3)]
    before = [y.detach().clone() for y in x]
    with plain():
        want = ops.add_residual(*x, 1.7, beta, postnorm)
    assert_same(ops.add_residual(*x, 1.7, beta, postnorm), want)
    assert all(torch.equal(a, b) for a, b in zip(x, before, strict=True))


@pytest.mark.parametrize("gradients", [False, True], ids=["plain", "with gradients"])
def test_gates(gradients):
    """The product may take the sigmoid's place, and no other: what was projected is still there."""
    made = torch.Generator().manual_seed(0)
    y, x = (torch.randn(2, 5, 7, dtype=torch.float64, generator=made, requires_grad=gradients) for _ in range(2))
    before = y.detach().clone(), x.detach().clone()
    with torch.set_grad_enabled(gradients):
        with plain():
            want = ops.output_gate(y, x, lambda z: z)
        assert_same(ops.output_gate(y, x, lambda z: z), want)
    assert torch.equal(y, before[0]) and torch.equal(x, before[1])


@pytest.mark.parametrize("gradients", [False, True], ids=["plain", "with gradients"])
@pytest.mark.parametrize("kind", [LIGHTNING, SOFTMAX])
def test_nan_passes_through(kind, gradients):
    """A token of NaN is NaN to all that come after it, and to nobody in another row."""
    model = TORCH.model(lively(small(kind)))
    x = torch.randn(2, 301, model.config.hidden_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0, 200] = torch.nan
    with torch.set_grad_enabled(gradients):
        logits = model(inputs_embeds=x).logits
    assert logits[0, 200:].isnan().all() and logits[1].isfinite().all()
    if kind == LIGHTNING:  # its chunk is spoiled, and no earlier one; softmax may multiply what is unseen by 0
        assert logits[0, :128].isfinite().all()


@pytest.mark.parametrize("T", [1, 2, 63, 65, 129])
@pytest.mark.parametrize("B", [1, 3])
def test_odd_lengths(B, T):
    model, ids = TORCH.model(lively(small())), torch.tensor(prompts(small(), B, T))
    with torch.no_grad():
        got = model(ids, use_cache=True)
        with plain():
            want = model(ids, use_cache=True)
    assert_same(got.logits, want.logits)
    assert_same_cache(got.cache, want.cache)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_torch_compile_takes_the_model():
    """In float32: what it makes of the slopes, which NumPy computes, is no more exact than that."""
    model, ids = TORCH.model(lively(small())).float(), torch.tensor(prompts(small(), 2, 37))
    with torch.no_grad():
        assert_same(torch.compile(model)(ids).logits, model(ids).logits, ROUNDING)


def test_a_block_that_fails_is_left_as_well():
    with pytest.raises(ZeroDivisionError), plain():
        raise ZeroDivisionError
    assert not is_plain()
