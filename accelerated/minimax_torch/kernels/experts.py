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

grouped = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm


def mix_experts(
    x: Tensor, weights: Tensor, indices: Tensor, gate_up: Any, down: Any, hidden_act: str = "silu"
) -> Tensor:
    """Compute [mix_experts][minimax_torch.ops.experts.mix_experts]; stacks may be quantised or read from disk."""
    flat, K = x.reshape(-1, x.shape[-1]), weights.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    weights, chosen = weights.reshape(-1, K).to(wide), indices.reshape(-1)
    if groups(x, gate_up, down):
        mix = at_once
    else:
        mix = differentiable if torch.is_grad_enabled() else one_token if len(flat) == 1 else in_place
    return mix(flat, weights, chosen, gate_up, down, hidden_act).to(x.dtype).reshape(x.shape)


def groups(x: Tensor, *stacks: Any) -> bool:
    """Whether a GPU multiplies all experts' stretches in one call: bfloat16, rows of whole 16 bytes."""
    return x.is_cuda and all(
        isinstance(w, Tensor) and w.dtype == x.dtype == torch.bfloat16 and w.shape[-1] % 8 == 0 for w in stacks
    )


def sort(chosen: Tensor, E: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choices expert by expert: order, back (where each choice went), and where each expert's stretch ends, int32.

    Nothing is asked of the device, so that a CUDA graph may hold it.
    """
    by, order = chosen.sort(stable=True)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    ends = torch.searchsorted(by, torch.arange(E, device=by.device), right=True)
    return order, back, ends.to(torch.int32)


def by_expert(x: Tensor, stack: Tensor, ends: Tensor) -> Tensor:
    """Each expert's rows times its matrix: x (choices, n), stack (E, m, n), ends (E,) → (choices, m)."""
    if groups(x, stack):
        return grouped(x, stack.mT, offs=ends)
    parts = x.tensor_split(ends[:-1].tolist())
    return torch.cat([linear(part, w) for part, w in zip(parts, stack, strict=True)])


def at_once(flat: Tensor, weights: Tensor, chosen: Tensor, gate_up: Any, down: Any, hidden_act: str) -> Tensor:
    """Grouped matmuls, through which gradients pass."""
    K = weights.shape[1]
    order, back, ends = sort(chosen, len(gate_up))
    gate, up = by_expert(flat.index_select(0, order // K), gate_up, ends).chunk(2, dim=-1)
    said = by_expert(activate(gate, hidden_act) * up, down, ends)
    return (weights[:, None] @ said.index_select(0, back).unflatten(0, (-1, K)).to(weights.dtype)).squeeze(1)


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
