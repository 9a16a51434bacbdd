"""Experts with their tokens sorted once: every expert reads its tokens as one stretch, and nobody else's.

    order = argsort(indices)        choices, expert by expert; choice c is of token c // K
    given = x[order // K]           stretch e is what expert e is given
    y[t]  = Σ_k w[t, k] · said[back[t K + k]]

A mask an expert, as the op writes it, looks through all choices E times, and its backward adds up E gradients as large
as the whole stack of experts.
"""

from typing import Any

import torch
from torch import Tensor

from ..ops.pointwise import activate
from ..ops.projections import linear


def mix_experts(
    x: Tensor, weights: Tensor, indices: Tensor, gate_up: Any, down: Any, hidden_act: str = "silu"
) -> Tensor:
    """Compute [mix_experts][minimax_torch.ops.experts.mix_experts]; stacks may be quantised or read from disk."""
    flat, K = x.reshape(-1, x.shape[-1]), weights.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    weights, chosen = weights.reshape(-1, K).to(wide), indices.reshape(-1)
    mix = differentiable if torch.is_grad_enabled() else one_token if len(flat) == 1 else in_place
    return mix(flat, weights, chosen, gate_up, down, hidden_act).to(x.dtype).reshape(x.shape)


def differentiable(flat: Tensor, weights: Tensor, chosen: Tensor, gate_up: Any, down: Any, hidden_act: str) -> Tensor:
    """Nothing is written over, and each stack gets one gradient, not one of its size for every expert."""
    if isinstance(gate_up, Tensor) and isinstance(down, Tensor):
        gate_up, down = gate_up.unbind(), down.unbind()
    K, order = weights.shape[1], chosen.argsort(stable=True)
    given = flat.index_select(0, order // K).split(chosen.bincount(minlength=len(gate_up)).tolist())
    said = [swiglu(t, gate_up[e], down[e], hidden_act) for e, t in enumerate(given) if len(t)] or [flat]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    heard = torch.cat(said).index_select(0, back).unflatten(0, (-1, K))  # (tokens, K, D)
    return (weights[:, None] @ heard.to(weights.dtype)).squeeze(1)


def one_token(flat: Tensor, weights: Tensor, chosen: Tensor, gate_up: Any, down: Any, hidden_act: str) -> Tensor:
    """Nothing to sort."""
    said = [swiglu(flat, gate_up[e], down[e], hidden_act) for e in chosen.tolist()]
    return weights @ torch.cat(said).to(weights.dtype)


def in_place(flat: Tensor, weights: Tensor, chosen: Tensor, gate_up: Any, down: Any, hidden_act: str) -> Tensor:
    """Every expert adds to its tokens' rows: memory of one expert's tokens at a time."""
    K, order = weights.shape[1], chosen.argsort(stable=True)
    mixed = torch.zeros_like(flat, dtype=weights.dtype)
    loads = chosen.bincount(minlength=len(gate_up)).tolist()
    tokens, shares = (order // K).split(loads), weights.reshape(-1, 1)[order].split(loads)
    for e, (t, share) in enumerate(zip(tokens, shares, strict=True)):
        if len(t):
            y = swiglu(flat.index_select(0, t), gate_up[e], down[e], hidden_act)
            mixed.index_add_(0, t, y.to(weights.dtype).mul_(share))
    return mixed


def swiglu(x: Tensor, gate_up: Any, down: Any, hidden_act: str) -> Tensor:
    """Compute [swiglu][minimax_torch.ops.experts.swiglu], in place where no gradient asks."""
    gate, up = linear(x, gate_up).chunk(2, dim=-1)  # (…, F) each
    gate = activate(gate, hidden_act)
    return linear(gate * up if torch.is_grad_enabled() else gate.mul_(up), down)
