r"""Linear maps, and how their outputs are cut into heads.

Weights are stored as the checkpoint has them, [out, in]: $y = x W^\top + b$.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from ..shapes import Queries
from .pointwise import activate


def linear(
    x: Float[np.ndarray, "*axes n"],
    weight: Float[Any, "m n"],
    bias: Float[np.ndarray, "m"] | None = None,
) -> Float[np.ndarray, "*axes m"]:
    r"""Multiply the last axis by a matrix: $x W^\top$, plus a bias where there is one.

    Where the types differ (a float32 router under float16 activations) the wider one holds. The matrix may be
    anything with a ``.T`` to multiply by, such as a [Quantized][minimax_numpy.quantize.Quantized] one.
    """
    y = (x.reshape(-1, x.shape[-1]) @ weight.T).reshape(*x.shape[:-1], len(weight))
    return y if bias is None else y + bias


def split_heads(x: Float[np.ndarray, "B T Hd"], num_heads: int) -> Queries:
    """Cut the last axis into heads and put them before time: (B, T, H·d) → (B, H, T, d)."""
    B, T, width = x.shape
    return x.reshape(B, T, num_heads, width // num_heads).swapaxes(1, 2)  # (B, H, T, d)


def merge_heads(x: Queries) -> Float[np.ndarray, "B T Hd"]:
    """Undo `split_heads`: (B, H, T, d) → (B, T, H·d)."""
    B, H, T, d = x.shape
    return x.swapaxes(1, 2).reshape(B, T, H * d)  # (B, T, H·d)


def split_qkv(
    qkv: Float[np.ndarray, "B T width"], num_heads: int, hidden_act: str = "silu"
) -> tuple[Queries, Queries, Queries]:
    r"""Activate the packed projection of lightning attention and cut it into q, k and v.

    $$u = \mathrm{silu}(x W_{qkv}^\top), \qquad \text{head } h \text{ owns } u_{[3dh,\;3dh + 3d)} = q \mid k \mid v$$

    Two traps: the rows are head-major (not all q, then all k, then all v), and the activation is on
    q, k **and** v.

    >>> q, k, v = split_qkv(np.full((1, 1, 12), 50.0) * np.arange(12), num_heads=2)
    >>> q[0, :, 0], v[0, :, 0]
    (array([[  0.,  50.],
           [300., 350.]]), array([[200., 250.],
           [500., 550.]]))
    """
    heads = split_heads(activate(qkv, hidden_act), num_heads)  # (B, H, T, 3d)
    d = heads.shape[-1] // 3
    return heads[..., :d], heads[..., d : 2 * d], heads[..., 2 * d :]
