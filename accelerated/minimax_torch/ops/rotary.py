"""Twin of `minimax_numpy.ops.rotary`: same names, same order, on tensors."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..shapes import Positions, Queries


def rotary_frequencies(
    rotary_dim: int, base: float = 10_000_000.0, device: torch.device | None = None
) -> Float[Tensor, "half"]:
    """Twin of [rotary_frequencies][minimax_numpy.ops.rotary.rotary_frequencies]."""
    return base ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=device) / rotary_dim)


def apply_rotary(x: Queries, positions: Positions, rotary_dim: int, base: float = 10_000_000.0) -> Queries:
    """Twin of [apply_rotary][minimax_numpy.ops.rotary.apply_rotary]."""
    half = rotary_dim // 2
    angles = positions[:, None, :, None] * rotary_frequencies(rotary_dim, base, x.device)  # (B, 1, T, R/2)
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angles.cos().to(wide), angles.sin().to(wide)
    a, b = x[..., :half], x[..., half:rotary_dim]
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
    return turned if rotary_dim == x.shape[-1] else torch.cat([turned, x[..., rotary_dim:]], dim=-1)
