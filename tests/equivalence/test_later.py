"""Queries that come after cached keys: the same numbers without a mask, whatever heads share."""

import pytest
import torch
from minimax_torch import ops
from minimax_torch.kernels import choose, later

CASES = [(1, 4, 4, 3, 10), (2, 6, 2, 5, 12), (1, 8, 1, 7, 8), (2, 4, 2, 2, 70)]


def drawn(B, H, G, T, J, dtype=torch.float64):
    made = torch.Generator().manual_seed(T)
    sizes = ((B, H, T, 16), (B, G, J, 16), (B, G, J, 16))
    return [torch.randn(size, generator=made, dtype=torch.float64).to(dtype) for size in sizes]


def off(got, want) -> float:
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("case", CASES)
def test_later_queries_see_what_the_op_says(case):
    q, k, v = drawn(*case)
    want = ops.softmax_attention(q, k, v, implementation="eager")
    assert off(later.softmax_attention(q, k, v), want) < 1e-11
    shifted = later.softmax_attention(q, k[:, :, 1:], v[:, :, 1:])  # a key less: noticed
    assert off(shifted, want) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_round_no_worse_than_the_op(dtype):
    q, k, v = drawn(2, 6, 2, 5, 40, dtype)
    want = ops.softmax_attention(*(x.double() for x in (q, k, v)), implementation="eager")
    plain = ops.softmax_attention(q, k, v, implementation="eager")
    assert off(later.softmax_attention(q, k, v), want) <= 2 * off(plain, want) + 4 * torch.finfo(dtype).eps


def test_gradients_pass():
    q, k, v = (x.requires_grad_() for x in drawn(1, 4, 2, 3, 8))
    want = torch.autograd.grad(ops.softmax_attention(q, k, v, implementation="eager").square().sum(), (q, k, v))
    got = torch.autograd.grad(later.softmax_attention(q, k, v).square().sum(), (q, k, v))
    assert all(off(a, b) < 1e-11 for a, b in zip(got, want, strict=True))


def test_on_a_cpu_the_op_computes_it_itself():
    q, k, _ = drawn(*CASES[1])
    assert choose.softmax(q, k) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_chosen_and_keeps_no_mask():
    q, k, v = (x.cuda() for x in drawn(1, 8, 1, 4096, 65_536, torch.bfloat16))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    got = ops.softmax_attention(q, k, v)
    assert torch.cuda.max_memory_allocated() - before < 4096 * 65_536  # a byte for each pair
    want = ops.softmax_attention(q[:, :, -3:].double(), k.double(), v.double(), implementation="eager")
    assert off(got[:, :, -3:], want) < 1e-2
