"""Twin of `minimax_numpy.ops.norms`: same names, same order, on tensors."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..kernels.norm import Normed


def rms_norm(x: Float[Tensor, "*axes n"], weight: Float[Tensor, "n"], eps: float = 1e-5) -> Float[Tensor, "*axes n"]:
    """Twin of [rms_norm][minimax_numpy.ops.norms.rms_norm]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.is_cuda:  # one kernel; on a CPU it is five passes, each into an array of its own
        return F.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps).to(x.dtype)
    return Normed.apply(x.to(wide), weight.to(wide), eps).to(x.dtype)


def inner_norm(x: Float[Tensor, "B T Hd"], weight: Float[Tensor, "Hd"], eps: float = 1e-6) -> Float[Tensor, "B T Hd"]:
    """Twin of [inner_norm][minimax_numpy.ops.norms.inner_norm]."""
    return rms_norm(x, weight, eps)
