r"""Root-mean-square norm: divide by the length, forget the direction of nothing.

$$\mathrm{RMSNorm}(x) = \frac{g \odot x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}}$$
"""

import numpy as np
from jaxtyping import Float


def rms_norm(
    x: Float[np.ndarray, "*axes n"], weight: Float[np.ndarray, "n"], eps: float = 1e-5
) -> Float[np.ndarray, "*axes n"]:
    r"""Scale each vector to a root-mean-square of one, then by a learned gain per channel.

    $$g \odot x \,/\, \sqrt{\mathrm{mean}(x^2) + \epsilon}$$

    The mean is taken in at least float32.

    >>> rms_norm(np.array([3.0, 4.0]), np.ones(2), eps=0.0)
    array([0.84852814, 1.13137085])
    """
    wide = x.astype(np.promote_types(x.dtype, np.float32), copy=False)
    scale = 1 / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + np.asarray(eps, wide.dtype))
    return (weight * (wide * scale)).astype(x.dtype, copy=False)


def inner_norm(
    x: Float[np.ndarray, "B T Hd"], weight: Float[np.ndarray, "Hd"], eps: float = 1e-6
) -> Float[np.ndarray, "B T Hd"]:
    r"""Norm what all heads of lightning attention read, **as one vector**.

    $$g \odot o \,/\, \sqrt{\mathrm{mean}_{H d}(o^2) + 10^{-6}}$$

    Its epsilon is fixed at 1e-6: ``rms_norm_eps`` does not reach it. Lightning attention has no
    normaliser of its own; this is it.
    """
    return rms_norm(x, weight, eps)
