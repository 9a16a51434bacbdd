r"""Mixture of experts: every token is sent to K of E small networks.

$$p = \mathrm{softmax}(x W_r^\top), \qquad w = p_\text{top} / \textstyle\sum p_\text{top}, \qquad
y = \sum_{k} w_k\; W_2^{(k)}\bigl(\mathrm{silu}(W_1^{(k)} x) \odot W_3^{(k)} x\bigr)$$

MiniMax-Text-01 has 32 experts in every layer, takes 2, and drops no token (MiniMax-01, section 2.1).
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from ..shapes import RouterLogits, RoutingIndices, RoutingWeights
from .attention import softmax
from .pointwise import activate
from .projections import linear


def route(logits: RouterLogits, top_k: int) -> tuple[RoutingWeights, RoutingIndices]:
    """Choose the experts of each token and what their outputs are multiplied by.

    The softmax is over **all** experts, in at least float32; the K chosen are then scaled to sum to 1.
    Among equal scores the lower index comes first.

    Parameters
    ----------
    logits : (…, E)
    top_k : int
        K.

    Returns
    -------
    weights : (…, K)
        They sum to 1.
    indices : (…, K)
        Best first.

    >>> weights, indices = route(np.log([[1.0, 4.0, 1.0, 2.0]]), top_k=2)
    >>> weights.round(4), indices
    (array([[0.6667, 0.3333]]), array([[1, 3]]))
    """
    indices = np.argsort(-logits, axis=-1, kind="stable")[..., :top_k]
    chosen = np.take_along_axis(softmax(logits), indices, axis=-1)
    return chosen / chosen.sum(axis=-1, keepdims=True), indices


def swiglu(
    x: Float[np.ndarray, "*tokens D"],
    gate_up: Float[Any, "twoF D"],
    down: Float[Any, "D F"],
    hidden_act: str = "silu",
) -> Float[np.ndarray, "*tokens D"]:
    r"""Run one expert: $W_2\bigl(\mathrm{silu}(W_1 x) \odot W_3 x\bigr)$, with W₁'s rows before W₃'s in ``gate_up``."""
    hidden = linear(x, gate_up)  # (…, 2F)
    F = down.shape[1]
    return linear(activate(hidden[..., :F], hidden_act) * hidden[..., F:], down)


def mix_experts(
    x: Float[np.ndarray, "*tokens D"],
    weights: RoutingWeights,
    indices: RoutingIndices,
    gate_up: Float[Any, "E twoF D"],
    down: Float[Any, "E D F"],
    hidden_act: str = "silu",
) -> Float[np.ndarray, "*tokens D"]:
    r"""Send each token through its experts and add up what they say.

    $$y = \sum_k w_k\, \mathrm{expert}_{i_k}(x)$$

    Parameters
    ----------
    x : (…, D)
    weights, indices : (…, K)
        From [route][minimax_numpy.ops.experts.route].
    gate_up : (E, 2F, D)
        W₁'s rows, then W₃'s, for each expert.
    down : (E, D, F)
        W₂ of each expert.

    Each expert runs once, on all of its tokens together.
    """
    flat, K = x.reshape(-1, x.shape[-1]), weights.shape[-1]
    weights, indices = weights.reshape(-1, K), indices.reshape(-1, K)
    y = np.zeros(flat.shape, np.promote_types(x.dtype, np.float32))
    for expert in np.unique(indices):
        token, choice = np.nonzero(indices == expert)
        y[token] += weights[token, choice, None] * swiglu(flat[token], gate_up[expert], down[expert], hidden_act)
    return y.astype(x.dtype, copy=False).reshape(x.shape)
