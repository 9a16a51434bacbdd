"""Twin of `minimax_numpy.ops.experts`: same names, same order, on tensors."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..shapes import RouterLogits, RoutingIndices, RoutingWeights
from .pointwise import activate
from .projections import linear


def route(logits: RouterLogits, top_k: int) -> tuple[RoutingWeights, RoutingIndices]:
    """Twin of [route][minimax_numpy.ops.experts.route]."""
    indices = logits.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    chosen = torch.softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1).gather(-1, indices)
    return chosen / chosen.sum(dim=-1, keepdim=True), indices


def swiglu(
    x: Float[Tensor, "*tokens D"],
    gate_up: Float[Any, "twoF D"],
    down: Float[Any, "D F"],
    hidden_act: str = "silu",
) -> Float[Tensor, "*tokens D"]:
    """Twin of [swiglu][minimax_numpy.ops.experts.swiglu]."""
    gate, up = linear(x, gate_up).chunk(2, dim=-1)  # (…, F) each
    gate = activate(gate, hidden_act)
    return linear(gate * up if torch.is_grad_enabled() else gate.mul_(up), down)


def mix_experts(
    x: Float[Tensor, "*tokens D"],
    weights: RoutingWeights,
    indices: RoutingIndices,
    gate_up: Float[Any, "E twoF D"],
    down: Float[Any, "E D F"],
    hidden_act: str = "silu",
) -> Float[Tensor, "*tokens D"]:
    """Twin of [mix_experts][minimax_numpy.ops.experts.mix_experts]."""
    flat, K = x.reshape(-1, x.shape[-1]), weights.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    weights, chosen = weights.reshape(-1, K).to(wide), indices.reshape(-1)
    if torch.is_grad_enabled():
        if isinstance(gate_up, Tensor) and isinstance(down, Tensor):  # one gradient for all: not one as large for each
            gate_up, down = gate_up.unbind(), down.unbind()
        order = chosen.argsort(stable=True)  # choices, expert by expert
        given = flat.index_select(0, order // K).split(chosen.bincount(minlength=len(gate_up)).tolist())
        said = [swiglu(t, gate_up[e], down[e], hidden_act) for e, t in enumerate(given) if len(t)] or [flat]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=x.device)
        heard = torch.cat(said).index_select(0, back).unflatten(0, (-1, K))  # (tokens, K, D)
        return (weights[:, None] @ heard.to(wide)).to(x.dtype).reshape(x.shape)
    if len(flat) == 1:
        said = [swiglu(flat, gate_up[e], down[e], hidden_act) for e in chosen.tolist()]
        return (weights @ torch.cat(said).to(wide)).to(x.dtype).reshape(x.shape)
    mixed = torch.zeros_like(flat, dtype=wide)
    order = chosen.argsort(stable=True)
    loads = chosen.bincount(minlength=len(gate_up)).tolist()
    tokens, shares = (order // K).split(loads), weights.reshape(-1, 1)[order].split(loads)
    for e, (t, share) in enumerate(zip(tokens, shares)):
        if len(t):
            y = swiglu(flat.index_select(0, t), gate_up[e], down[e], hidden_act)
            mixed.index_add_(0, t, y.to(wide).mul_(share))
    return mixed.to(x.dtype).reshape(x.shape)
