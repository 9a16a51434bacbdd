"""RMSNorm in few passes, with a backward of its own, in plain PyTorch on any device.

With n channels, r = (mean(x²) + ε)^(−1/2) and a = g ⊙ dy, the gradient of the output times the gain:

    y = g ⊙ r x          dx = r a − (r³ / n) (a · x) x          dg = Σ r x ⊙ dy

Kept for the backward are x, the gain and one r a vector.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .once import once

INNER_EPS = 1e-6  # of the norm over all heads: the layers have no setting for it


class Normed(torch.autograd.Function):
    """(x, weight, eps) → y, all of one type."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    @once
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, r = ctx.saved_tensors
        dx = dweight = None
        if ctx.needs_input_grad[1]:
            dweight = (x * r).mul_(dy).reshape(-1, x.shape[-1]).sum(dim=0)
        if ctx.needs_input_grad[0]:
            dx = dy * weight
            along = (dx * x).sum(dim=-1, keepdim=True).mul_(r.pow(3)).div_(-x.shape[-1])
            dx = dx.mul_(r).addcmul_(x, along)
        return dx, dweight, None


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """r, one a vector, (…, 1)."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Compute [rms_norm][minimax_torch.ops.norms.rms_norm]; on a GPU PyTorch has one kernel for it."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.is_cuda:
        return F.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps).to(x.dtype)
    return Normed.apply(x.to(wide), weight.to(wide), eps).to(x.dtype)
