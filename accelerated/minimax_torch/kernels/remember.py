r"""One token's query and key turned by their position, and its key and value put into their place, in one kernel.

$$\begin{aligned}
x'_i &= x_i \cos p\theta_i - x_{i + R/2} \sin p\theta_i \\
x'_{i + R/2} &= x_{i + R/2} \cos p\theta_i + x_i \sin p\theta_i
\end{aligned} \qquad i < R/2$$

A program has one head of one row: a query, which goes out turned; a key, turned, or a value, as it is, which go to
place p mod capacity of the row's slot. As the op writes it, these few numbers take some twenty launches a layer.
"""

from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from ..shapes import Lengths
from .lightning import InterpretedFunction, tl, triton


@triton.jit(do_not_specialize=["H", "G", "capacity"])
@no_type_check
def turn(
    q, k, v, turned, slots, positions, frequencies,
    q_strides, k_strides, v_strides, turned_strides, slots_strides, H, G, capacity,
    d: tl.constexpr, D: tl.constexpr, R: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One program: one of a row's H queries, G keys or G values."""
    b = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    p = tl.load(positions + b)
    i = tl.arange(0, D)
    half: tl.constexpr = R // 2
    other = tl.where(i < half, i + half, i - half)  # the channel that this one is turned with
    turns = i < R
    if head < H:
        x = q + b * q_strides[0] + head * q_strides[1]
        x_step = q_strides[3]
        to = turned + b * turned_strides[0] + head * turned_strides[1]
        to_step = turned_strides[3]
    else:
        g = (head - H) % G
        to = slots + b * slots_strides[1] + g * slots_strides[2] + p % capacity * slots_strides[3]
        to_step = slots_strides[4]
        if head < H + G:
            x = k + b * k_strides[0] + g * k_strides[1]
            x_step = k_strides[3]
        else:
            x = v + b * v_strides[0] + g * v_strides[1]
            x_step = v_strides[3]
            to += slots_strides[0]
            turns = i < 0
    mine = tl.load(x + i * x_step, mask=i < d, other=0)
    theirs = tl.load(x + other * x_step, mask=turns, other=0).to(WIDE)
    angle = tl.load(frequencies + tl.where(i < half, i, i - half), mask=turns, other=0) * p
    sine = tl.where(i < half, -tl.sin(angle), tl.sin(angle)).to(WIDE)
    answer = tl.where(turns, (mine.to(WIDE) * tl.cos(angle).to(WIDE) + theirs * sine).to(to.dtype.element_ty), mine)
    tl.store(to + i * to_step, answer, mask=i < d)


def remember(
    q: Float[Tensor, "B H 1 d"],
    k: Float[Tensor, "B G 1 d"],
    v: Float[Tensor, "B G 1 d"],
    slots: Float[Tensor, "2 B G capacity d"],
    positions: Lengths,
    frequencies: Float[Tensor, "half"],
) -> Float[Tensor, "B H 1 d"]:
    """Turn as [apply_rotary][minimax_torch.ops.rotary.apply_rotary] does, one token a row at these positions.

    Key and value are written into ``slots``, keys first; the turned query (B, H, 1, d) is returned. ``frequencies`` are
    those of [rotary_frequencies][minimax_torch.ops.rotary.rotary_frequencies], in float64, as angles are.

    Raises ValueError where there is more than one token a row, or what it is given does not fit the slots.
    """
    (B, H, T, d), G = q.shape, k.shape[1]
    if T != 1 or k.shape != (B, G, 1, d) or v.shape != k.shape or slots.shape[:3] != (2, B, G) or slots.shape[4] != d:
        shapes = f"q is {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, slots {tuple(slots.shape)}"
        raise ValueError(f"{shapes}: there is one token a row, and slots are (2, B, G, capacity, d).")
    if slots.dtype != q.dtype or frequencies.dtype != torch.float64:
        found = f"q is {q.dtype}, slots {slots.dtype}, frequencies {frequencies.dtype}"
        raise ValueError(f"{found}: slots are of q's type, and frequencies float64.")
    wide = torch.promote_types(q.dtype, torch.float32)
    turned = torch.empty_like(q, memory_format=torch.contiguous_format)
    run: Any = turn if q.is_cuda else InterpretedFunction(turn.fn)
    run[B, H + 2 * G](
        q, k, v, turned, slots, positions, frequencies,
        q.stride(), k.stride(), v.stride(), turned.stride(), slots.stride(), H, G, slots.shape[3],
        d, triton.next_power_of_2(d), 2 * len(frequencies), tl.float64 if wide == torch.float64 else tl.float32,
        num_warps=1,
    )  # fmt: skip
    return turned
