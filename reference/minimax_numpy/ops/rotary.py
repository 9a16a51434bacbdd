r"""Rotary position embedding on the first R channels of a head; the others carry no position.

$$\theta_{t,i} = t \cdot b^{-2i/R}, \qquad
\begin{pmatrix} x_i \\ x_{i+R/2} \end{pmatrix} \mapsto
\begin{pmatrix} x_i\cos\theta - x_{i+R/2}\sin\theta \\ x_{i+R/2}\cos\theta + x_i\sin\theta \end{pmatrix},
\qquad i < R/2$$

MiniMax-Text-01 has d = 128, R = 64 and b = 10,000,000, in softmax layers only. It is **not** a slice of a
rotation of the whole head: the frequencies and the pairs both differ.
"""

import numpy as np
from jaxtyping import Float

from ..shapes import Positions, Queries


def rotary_frequencies(rotary_dim: int, base: float = 10_000_000.0) -> Float[np.ndarray, "half"]:
    r"""Angle per token of each rotated pair, in float64: $b^{-2i/R}$ for $i < R/2$.

    >>> rotary_frequencies(4, base=100.0)
    array([1. , 0.1])
    """
    return base ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)


def apply_rotary(x: Queries, positions: Positions, rotary_dim: int, base: float = 10_000_000.0) -> Queries:
    """Turn each query or key by its position.

    Parameters
    ----------
    x : (B, H, T, d)
        Queries, or keys with their own number of heads.
    positions : (B, T)
        Number of real tokens before each one. Only differences matter to the logits.
    rotary_dim : int
        R, even, at most d. Channels from R on pass through.
    base : float
        ``rope_theta``.

    Angles are formed in float64, their sines and cosines used in at least float32.
    """
    half = rotary_dim // 2
    angles = positions[:, None, :, None] * rotary_frequencies(rotary_dim, base)  # (B, 1, T, R/2)
    wide = np.promote_types(x.dtype, np.float32)
    cos, sin = np.cos(angles).astype(wide), np.sin(angles).astype(wide)
    a, b = x[..., :half], x[..., half:rotary_dim]
    turned = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    return np.concatenate([turned, x[..., rotary_dim:]], axis=-1)
