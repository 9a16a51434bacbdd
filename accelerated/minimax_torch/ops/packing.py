"""Twin of `minimax_numpy.ops.packing`: same names, same order, on tensors."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..shapes import Mask

Boundaries = Int[Tensor, "N_plus_1"]
"""Where each of N documents starts, and where the last one ends: 0 … T."""


def document_rows(cu_seqlens: Boundaries) -> tuple[Int[Tensor, "N longest"], Mask]:
    """Twin of [document_rows][minimax_numpy.ops.packing.document_rows]."""
    starts, lengths = cu_seqlens[:-1, None], cu_seqlens.diff()[:, None]
    local = torch.arange(int(lengths.max()), device=cu_seqlens.device)
    mask = local < lengths  # (N, longest)
    return torch.where(mask, starts + local, 0), mask


def unpack(x: Float[Tensor, "1 H T d"], rows: Int[Tensor, "N longest"]) -> Float[Tensor, "N H longest d"]:
    """Twin of [unpack][minimax_numpy.ops.packing.unpack]."""
    return x[0][:, rows].transpose(0, 1)


def pack(x: Float[Tensor, "N H longest d"], mask: Bool[Tensor, "N longest"]) -> Float[Tensor, "1 H T d"]:
    """Twin of [pack][minimax_numpy.ops.packing.pack]."""
    return x.transpose(1, 2)[mask].transpose(0, 1)[None]  # (N, longest, H, d) → (T, H, d) → (1, H, T, d)
