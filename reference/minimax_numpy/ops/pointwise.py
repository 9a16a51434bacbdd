r"""Functions of one number at a time, and the two places where streams meet: the gate and the residual.

$$\sigma(x) = \frac{1}{1 + e^{-x}}, \qquad \mathrm{silu}(x) = x\,\sigma(x), \qquad
\mathrm{gelu}(x) = \tfrac{x}{2}\bigl(1 + \mathrm{erf}(x/\sqrt 2)\bigr)$$
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from ..shapes import Hidden


def sigmoid(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    r"""Squash to (0, 1).

    $$\sigma(x) = \frac{1}{1 + e^{-x}}$$

    Where $e^{-x}$ overflows, the answer is 0.

    >>> sigmoid(np.array([0.0, -1000.0]))
    array([0.5, 0. ])
    """
    power = np.asarray(-x)
    with np.errstate(over="ignore"):
        np.exp(power, out=power)  # in place: activations are the widest arrays of a layer
    power += 1
    return np.divide(1, power, out=power)


def silu(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    r"""Multiply by the own sigmoid: $x\,\sigma(x)$."""
    y = sigmoid(x)
    y *= x
    return y


def gelu(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    r"""Multiply by the normal distribution function, with the exact erf.

    $$\tfrac{x}{2}\bigl(1 + \mathrm{erf}(x/\sqrt 2)\bigr)$$
    """
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return (0.5 * x * (1 + erf(x / math.sqrt(2)))).astype(x.dtype)


ACTIVATIONS = {"silu": silu, "gelu": gelu}


def activate(x: Float[np.ndarray, "..."], hidden_act: str = "silu") -> Float[np.ndarray, "..."]:
    """Apply the configuration's activation: ``silu``, or ``gelu`` with the exact erf.

    Raises ValueError for any other name.
    """
    if hidden_act not in ACTIVATIONS:
        raise ValueError(f"hidden_act is {hidden_act!r}; this model knows {' and '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[hidden_act](x)


def output_gate(
    y: Float[np.ndarray, "B T Hd"], x: Hidden, project: Callable[[Hidden], Float[np.ndarray, "B T Hd"]]
) -> Float[np.ndarray, "B T Hd"]:
    r"""Let the layer's input decide how much of each channel of its memory gets out.

    $$\sigma(x\,W_\text{gate}^\top) \odot y$$

    Parameters
    ----------
    y : (B, T, H·d)
        What lightning attention read, normed.
    x : (B, T, D)
        The normed input of the attention, the same one that q, k and v were made from.
    project : function
        Multiplies by $W_\text{gate}^\top$.

    Always a sigmoid, whatever ``hidden_act`` says.
    """
    return sigmoid(project(x)) * y


def add_residual(x: Hidden, normed: Hidden, update: Hidden, alpha: float, beta: float, postnorm: bool = True) -> Hidden:
    r"""Join the stream and a block's update.

    $$\alpha\,n + \beta\,u, \qquad n = \mathrm{RMSNorm}(x)$$

    What is carried on is the **normed** value, not x (the paper calls it post-norm). With ``postnorm``
    false, an option of the original configuration, it is x.
    """
    carried = normed if postnorm else x
    return np.asarray(alpha, x.dtype) * carried + np.asarray(beta, x.dtype) * update
