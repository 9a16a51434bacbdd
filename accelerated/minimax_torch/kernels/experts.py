"""Experts with their tokens sorted once: every expert reads its tokens as one stretch, and nobody else's.

    order = argsort(indices)        choices, expert by expert; choice c is of token c // K
    given = x[order // K]           stretch e is what expert e is given
    y[t]  = Σ_k w[t, k] · said[back[t K + k]]

A mask an expert, as the op writes it, looks through all choices E times, and its backward adds up E gradients as large
as the whole stack of experts.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.pointwise import activate
from ..ops.projections import linear
from .choose import wants_gradient
from .once import once

grouped = getattr(F, "grouped_mm", None) or torch._grouped_mm
ROWS = 1024  # that an expert is given at one time on a CPU: their hidden numbers take the place of the last ones
WRITTEN_OVER = {"silu": torch.ops.aten.silu_, "gelu": torch.ops.aten.gelu_}
"""Activations that put what they give where they read."""
SLOPES = {"silu": torch.ops.aten.silu_backward.grad_input, "gelu": torch.ops.aten.gelu_backward.grad_input}
"""Of the gradient and the input, the gradient before the activation."""


def mix_experts(
    x: Tensor, weights: Tensor, indices: Tensor, gate_up: Any, down: Any, hidden_act: str = "silu"
) -> Tensor:
    """Compute [mix_experts][minimax_torch.ops.experts.mix_experts]; stacks may be quantised or read from disk."""
    flat, K = x.reshape(-1, x.shape[-1]), weights.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    weights, chosen = weights.reshape(-1, K).to(wide), indices.reshape(-1)
    held = hidden_act in SLOPES and x.dtype == wide and in_memory(x, gate_up, down)
    if groups(x, gate_up, down):
        mix = at_once
    elif wants_gradient(x, weights, *(w for w in (gate_up, down) if isinstance(w, Tensor))):
        mix = Mixed.apply if held else differentiable
    elif len(flat) == 1:
        mix = one_token
    else:
        mix = in_blocks if held else in_place
    return mix(flat, weights, chosen, gate_up, down, hidden_act).to(x.dtype).reshape(x.shape)


def groups(x: Tensor, *stacks: Any) -> bool:
    """Whether a GPU multiplies all stretches in one call: Hopper or later, bfloat16, rows of whole 16 bytes."""
    if not x.is_cuda or torch.cuda.get_device_capability(x.device) < (9, 0):
        return False
    return all(isinstance(w, Tensor) and w.dtype == x.dtype == torch.bfloat16 and w.shape[-1] % 8 == 0 for w in stacks)


def in_memory(x: Tensor, *stacks: Any) -> bool:
    """Whether a CPU holds all of it, in the type that is asked for."""
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    return all(isinstance(w, Tensor) and w.dtype == x.dtype and w.device == x.device for w in stacks)


def sort(chosen: Tensor, E: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choices expert by expert: order, back (where each choice went), and where each expert's stretch ends, int32.

    Nothing is asked of the device, so that a CUDA graph may hold it.
    """
    by, order = chosen.sort(stable=True)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    ends = torch.searchsorted(by, torch.arange(E, device=by.device), right=True)
    return order, back, ends.to(torch.int32)


def stretches(chosen: Tensor, E: int) -> tuple[Tensor, Tensor, list[int]]:
    """The same for who may ask: order, back, and how many choices each expert has."""
    order, back, ends = sort(chosen, E)
    return order, back, ends.diff(prepend=ends.new_zeros(1)).tolist()


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
    K, (order, back, loads) = weights.shape[1], stretches(chosen, len(gate_up))
    given = flat.index_select(0, order // K).split(loads)
    said = [swiglu(t, gate_up[e], down[e], hidden_act) for e, t in enumerate(given) if len(t)] or [flat]
    heard = torch.cat(said).index_select(0, back).unflatten(0, (-1, K))  # (tokens, K, D)
    return (weights[:, None] @ heard.to(weights.dtype)).squeeze(1)


class Mixed(torch.autograd.Function):
    """The same with a backward of its own on a CPU: what the experts' hidden channels held is kept, and nothing else.

    With h = act(g) ⊙ u what an expert makes of a token, and w its share, each choice has

        dw = h · (dy W_down)        dh = w dy W_down        dW_down += w dyᵀ h

    so that what it said need not be known; each stack gets one gradient, written once.
    """

    @staticmethod
    def forward(ctx, flat, weights, chosen, gate_up, down, hidden_act):
        K, width, (order, back, loads) = weights.shape[1], down.shape[2], stretches(chosen, len(down))
        hidden, said = flat.new_empty(len(order), 2 * width), flat.new_empty(len(order), flat.shape[1])
        made = flat.new_empty(max(loads), width)
        for e, (t, h, y) in enumerate(zip(*(x.split(loads) for x in (order // K, hidden, said)), strict=True)):
            torch.mm(flat.index_select(0, t), gate_up[e].mT, out=h)
            inner = torch.mul(activate(h[:, :width], hidden_act), h[:, width:], out=made[: len(t)])
            torch.mm(inner, down[e].mT, out=y)
        ctx.save_for_backward(flat, weights, gate_up, down, order, back, hidden)
        ctx.loads, ctx.hidden_act = loads, hidden_act
        return F.embedding_bag(back.view(-1, K), said, per_sample_weights=weights, mode="sum")

    @staticmethod
    @once
    def backward(ctx, dy):
        flat, weights, gate_up, down, order, back, hidden = ctx.saved_tensors
        loads, K, width, most = ctx.loads, weights.shape[1], down.shape[2], max(ctx.loads)
        dgate_up, ddown = (
            torch.empty_like(w) if n else None for w, n in zip((gate_up, down), ctx.needs_input_grad[3:5])
        )
        given, shares = flat.new_empty(len(order), flat.shape[1]), flat.new_empty(len(order))
        room, wide = flat.new_empty(3, most, width), flat.new_empty(most, 2 * width)
        weight = weights.reshape(-1)[order][:, None]
        for e, (t, w, h, dx, dw) in enumerate(
            zip(*(x.split(loads) for x in (order // K, weight, hidden, given, shares)), strict=True)
        ):
            gate, up, d = h[:, :width], h[:, width:], dy.index_select(0, t)
            acted = activate(gate, ctx.hidden_act)
            inner, dh, product = (x[: len(t)] for x in room)
            torch.mul(acted, up, out=inner)
            torch.mm(d, down[e], out=dh)
            torch.sum(torch.mul(inner, dh, out=product), dim=1, out=dw)
            if ddown is not None:
                torch.mm(d.mT, inner.mul_(w), out=ddown[e])
            dboth = wide[: len(t)]
            torch.mul(dh.mul_(w), acted, out=dboth[:, width:])
            SLOPES[ctx.hidden_act](dh.mul_(up), gate, grad_input=dboth[:, :width])
            torch.mm(dboth, gate_up[e], out=dx)
            if dgate_up is not None:
                torch.mm(dboth.mT, flat.index_select(0, t), out=dgate_up[e])
        dflat = F.embedding_bag(back.view(-1, K), given, mode="sum")
        return dflat, shares[back].view_as(weights), None, dgate_up, ddown, None


def one_token(flat: Tensor, weights: Tensor, chosen: Tensor, gate_up: Any, down: Any, hidden_act: str) -> Tensor:
    """Nothing to sort."""
    said = [swiglu(flat, gate_up[e], down[e], hidden_act) for e in chosen.tolist()]
    return weights @ torch.cat(said).to(weights.dtype)


def in_place(flat: Tensor, weights: Tensor, chosen: Tensor, gate_up: Any, down: Any, hidden_act: str) -> Tensor:
    """Every expert adds to its tokens' rows: memory of one expert's tokens at a time."""
    K, (order, _, loads) = weights.shape[1], stretches(chosen, len(gate_up))
    mixed = torch.zeros_like(flat, dtype=weights.dtype)
    tokens, shares = (order // K).split(loads), weights.reshape(-1, 1)[order].split(loads)
    for e, (t, share) in enumerate(zip(tokens, shares, strict=True)):
        if len(t):
            y = swiglu(flat.index_select(0, t), gate_up[e], down[e], hidden_act)
            mixed.index_add_(0, t, y.to(weights.dtype).mul_(share))
    return mixed


def in_blocks(flat: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor, hidden_act: str) -> Tensor:
    """Nothing is allocated between matmuls; what all experts said is read once, token by token."""
    K, width, (order, back, loads) = weights.shape[1], down.shape[2], stretches(chosen, len(down))
    activate = WRITTEN_OVER[hidden_act]
    said, most = flat.new_empty(len(order), flat.shape[1]), min(max(loads), ROWS)
    given, hidden = flat.new_empty(most, flat.shape[1]), flat.new_empty(most, 2 * width)
    for e, (tokens, answers) in enumerate(zip((order // K).split(loads), said.split(loads), strict=True)):
        several = max(1, -(-len(tokens) // ROWS))
        for t, y in zip(tokens.tensor_split(several), answers.tensor_split(several), strict=True):
            x = torch.index_select(flat, 0, t, out=given[: len(t)])
            h = torch.mm(x, gate_up[e].mT, out=hidden[: len(t)])
            torch.mm(activate(h[:, :width]).mul_(h[:, width:]), down[e].mT, out=y)
    return F.embedding_bag(back.view(-1, K), said, per_sample_weights=weights, mode="sum")


def swiglu(x: Tensor, gate_up: Any, down: Any, hidden_act: str) -> Tensor:
    """Compute [swiglu][minimax_torch.ops.experts.swiglu], in place where no gradient asks."""
    gate, up = linear(x, gate_up).chunk(2, dim=-1)  # (…, F) each
    gate = activate(gate, hidden_act)
    return linear(gate * up if torch.is_grad_enabled() else gate.mul_(up), down)
