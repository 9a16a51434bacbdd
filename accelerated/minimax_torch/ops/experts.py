"""Twin of `minimax_numpy.ops.experts`: same names, same order, on tensors."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..kernels import choose
from ..shapes import RouterLogits, RoutingIndices, RoutingWeights
from .attention import softmax
from .pointwise import activate
from .projections import linear


def route(logits: RouterLogits, top_k: int) -> tuple[RoutingWeights, RoutingIndices]:
    """Twin of [route][minimax_numpy.ops.experts.route]."""
    indices = logits.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    chosen = softmax(logits).gather(-1, indices)
    return chosen / chosen.sum(dim=-1, keepdim=True), indices


def swiglu(
    x: Float[Tensor, "*tokens D"],
    gate_up: Float[Any, "twoF D"],
    down: Float[Any, "D F"],
    hidden_act: str = "silu",
) -> Float[Tensor, "*tokens D"]:
    """Twin of [swiglu][minimax_numpy.ops.experts.swiglu]."""
    hidden = linear(x, gate_up)  # (…, 2F)
    F = down.shape[1]
    return linear(activate(hidden[..., :F], hidden_act) * hidden[..., F:], down)


def mix_experts(
    x: Float[Tensor, "*tokens D"],
    weights: RoutingWeights,
    indices: RoutingIndices,
    gate_up: Float[Any, "E twoF D"],
    down: Float[Any, "E D F"],
    hidden_act: str = "silu",
) -> Float[Tensor, "*tokens D"]:
    """Twin of [mix_experts][minimax_numpy.ops.experts.mix_experts]."""
    faster = choose.anywhere("mix_experts")
    if faster is not None:
        return faster(x, weights, indices, gate_up, down, hidden_act)
    flat, K = x.reshape(-1, x.shape[-1]), weights.shape[-1]
    weights, indices = weights.reshape(-1, K), indices.reshape(-1, K)
    y = torch.zeros_like(flat, dtype=torch.promote_types(x.dtype, torch.float32))
    for expert in indices.unique().tolist():
        token, choice = torch.nonzero(indices == expert, as_tuple=True)
        said = swiglu(flat[token], gate_up[expert], down[expert], hidden_act)
        y = y.index_add(0, token, (weights[token, choice, None] * said).to(y.dtype))
    return y.to(x.dtype).reshape(x.shape)
