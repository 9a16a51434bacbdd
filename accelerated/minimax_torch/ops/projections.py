"""Twin of `minimax_numpy.ops.projections`: same names, same order, on tensors."""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..shapes import Queries
from .pointwise import activate


def linear(
    x: Float[Tensor, "*axes n"],
    weight: Float[Any, "m n"],
    bias: Float[Tensor, "m"] | None = None,
) -> Float[Tensor, "*axes m"]:
    """Twin of [linear][minimax_numpy.ops.projections.linear]."""
    return F.linear(x, weight, bias)


def split_heads(x: Float[Tensor, "B T Hd"], num_heads: int) -> Queries:
    """Twin of [split_heads][minimax_numpy.ops.projections.split_heads]."""
    B, T, width = x.shape
    return x.reshape(B, T, num_heads, width // num_heads).transpose(1, 2)  # (B, H, T, d)


def merge_heads(x: Queries) -> Float[Tensor, "B T Hd"]:
    """Twin of [merge_heads][minimax_numpy.ops.projections.merge_heads]."""
    B, H, T, d = x.shape
    return x.transpose(1, 2).reshape(B, T, H * d)  # (B, T, H·d)


def split_qkv(
    qkv: Float[Tensor, "B T width"], num_heads: int, hidden_act: str = "silu"
) -> tuple[Queries, Queries, Queries]:
    """Twin of [split_qkv][minimax_numpy.ops.projections.split_qkv]."""
    heads = split_heads(activate(qkv, hidden_act), num_heads)  # (B, H, T, 3d)
    q, k, v = heads.chunk(3, dim=-1)
    return q, k, v
