"""Twin of `minimax_numpy.ops.norms`: same names, same order, on tensors."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..kernels import choose


def rms_norm(x: Float[Tensor, "*axes n"], weight: Float[Tensor, "n"], eps: float = 1e-5) -> Float[Tensor, "*axes n"]:
    """Twin of [rms_norm][minimax_numpy.ops.norms.rms_norm]."""
    faster = choose.anywhere("rms_norm")
    if faster is not None:
        return faster(x, weight, eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (weight * (wide * scale)).to(x.dtype)


def inner_norm(x: Float[Tensor, "B T Hd"], weight: Float[Tensor, "Hd"], eps: float = 1e-6) -> Float[Tensor, "B T Hd"]:
    """Twin of [inner_norm][minimax_numpy.ops.norms.inner_norm]."""
    return rms_norm(x, weight, eps)
