r"""One token more: $S \leftarrow e^{-s} S + k v^\top$, $o = S^\top q$, in one reading and one writing of the state.

At decode a layer's time is that of its state: 2 · B · H · d · e numbers in float32 pass through memory, whatever came
before. So the state stays float32, nothing else is kept, and the new state may be written over the old one: a program
reads E columns, and nobody else reads them.
"""

import math
from typing import Any, no_type_check

import torch
from torch import Tensor

from ..shapes import Keys, Mask, Outputs, Queries, Slopes, State, Values
from .choose import WIDEST
from .lightning import InterpretedFunction, tile, tl, triton

LOG2E = tl.constexpr(math.log2(math.e))


@triton.jit
@no_type_check
def plus(a, b):
    """The sum, for `tl.reduce`."""
    return a + b


@triton.jit(do_not_specialize=["H"])
@no_type_check
def step(
    q, k, v, out, state, after, slopes, mask, gate, gain, square,
    q_strides, k_strides, v_strides, out_strides, state_strides, after_strides, mask_stride, gate_strides,
    H, d: tl.constexpr, e: tl.constexpr, D: tl.constexpr, E: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """One program: E columns of one head's memory, a step on. ``state`` and ``after`` may be one."""
    pair = tl.program_id(0).to(tl.int64)
    b = pair // H
    h = pair % H
    i = tl.arange(0, D)
    j = tl.program_id(1) * E + tl.arange(0, E)
    wide = after.dtype.element_ty
    mine = (i[:, None] < d) & (j[None, :] < e)
    n = 1  # real tokens: at padding nothing is read, and the memory stays as it is
    if mask is not None:
        n = tl.load(mask + b * mask_stride).to(tl.int32)
    keep = tl.exp2(tl.load(slopes + h).to(tl.float64) * -LOG2E * n).to(wide)
    qc = tl.load(q + b * q_strides[0] + h * q_strides[1] + i * q_strides[3], mask=i < d, other=0)
    kc = tl.load(k + b * k_strides[0] + h * k_strides[1] + i * k_strides[3], mask=i < d * n, other=0)
    vc = tl.load(v + b * v_strides[0] + h * v_strides[1] + j * v_strides[3], mask=j < e * n, other=0)
    if SILU:  # rounded as the op rounds it
        x = qc.to(wide)
        qc = (x / (1 + tl.exp(-x))).to(qc.dtype)
        x = kc.to(wide)
        kc = (x / (1 + tl.exp(-x))).to(kc.dtype)
        x = vc.to(wide)
        vc = (x / (1 + tl.exp(-x))).to(vc.dtype)
    qc = qc.to(wide)
    kc = kc.to(wide)
    vc = vc.to(wide)
    if state is not None:
        state += b * state_strides[0] + h * state_strides[1]
        S = tl.load(state + i[:, None] * state_strides[2] + j[None, :] * state_strides[3], mask=mine, other=0)
        S = S.to(wide) * keep + kc[:, None] * vc[None, :]
    else:
        S = kc[:, None] * vc[None, :]
    o = tl.reduce(qc[:, None] * S, 0, plus)
    after += b * after_strides[0] + h * after_strides[1]
    tl.store(after + i[:, None] * after_strides[2] + j[None, :] * after_strides[3], S, mask=mine)
    if gain is not None:  # as in segments.py
        tl.store(square + pair * tl.num_programs(1) + tl.program_id(1), tl.reduce(o * o, 0, plus))
        o *= tl.load(gain + h * e + j, mask=j < e, other=0).to(wide)
    if gate is not None:
        gate += b * gate_strides[0] + h * gate_strides[1]
        o /= 1 + tl.exp(-tl.load(gate + j * gate_strides[3], mask=j < e, other=0).to(wide))
    out += b * out_strides[0] + h * out_strides[1]
    tl.store(out + j * out_strides[3], o.to(out.dtype.element_ty), mask=j < e)


def lightning_step(
    q: Queries,
    k: Keys,
    v: Values,
    slopes: Slopes,
    state: State | None = None,
    *,
    mask: Mask | None = None,
    into: State | None = None,
    columns: int = 32,
    warps: int = 4,
) -> tuple[Outputs, State]:
    """Compute [lightning_attention_recurrent][minimax_torch.ops.lightning.lightning_attention_recurrent] for T = 1.

    The new state goes ``into`` a tensor that is given, which may be the old one's; without it, into a new one. It is
    for decoding: no gradient passes.

    Raises ValueError where T is not 1, a head has more than 256 channels, or something does not fit.
    """
    if q.shape[2] != 1:
        raise ValueError(f"q is {tuple(q.shape)}; a step takes one token.")
    check(q, k, v, slopes, state, mask, into)
    out, _, state = launch(q, k, v, slopes, state, mask, into, columns=columns, warps=warps)
    return out, state


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    state: Tensor | None,
    mask: Tensor | None,
    into: Tensor | None = None,
) -> None:
    """Raise ValueError for what does not fit: a kernel reads and writes wherever shapes send it."""
    if k.shape != q.shape or v.shape[:3] != q.shape[:3]:
        shapes = f"q is {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise ValueError(f"{shapes}: all three share B, H and T, and q and k share d.")
    (B, H, T, d), e = q.shape, v.shape[3]
    if max(d, e) > WIDEST:
        raise ValueError(f"A head has {max(d, e)} channels; a program of this kernel holds {WIDEST} at most.")
    fits = (("slopes", slopes, (H,)), ("state", state, (B, H, d, e)), ("mask", mask, (B, T)))
    for name, x, shape in (*fits, ("into", into, (B, H, d, e))):
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} is {tuple(x.shape)}; beside q {tuple(q.shape)} it is {shape}.")
    wide = torch.promote_types(q.dtype, torch.float32)
    if into is not None and into.dtype != wide:
        raise ValueError(f"into is {into.dtype}; this state is {wide}.")


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    state: Tensor | None,
    mask: Tensor | None,
    into: Tensor | None,
    gate: Tensor | None = None,
    gain: Tensor | None = None,
    silu: bool = False,
    columns: int = 32,
    warps: int = 4,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the step: out (B, H, 1, e); with a gain, squares of what it scales, in parts of a sum (B, n); the state."""
    (B, H, _, d), e = q.shape, v.shape[3]
    wide = torch.promote_types(q.dtype, torch.float32)
    if into is None:
        into = q.new_empty((B, H, d, e), dtype=wide)
    # The interpreter cuts a bfloat16 off where a GPU rounds it: there torch rounds, in the last line.
    out = torch.empty((B, 1, H, e), dtype=q.dtype if q.is_cuda else wide, device=q.device).transpose(1, 2)
    run: Any = step if q.is_cuda else InterpretedFunction(step.fn)
    E = tile(e, columns)
    blocks = triton.cdiv(e, E)
    square = q.new_empty((B, 0 if gain is None else H * blocks), dtype=wide)
    run[B * H, blocks](
        q, k, v, out, state, into, slopes.to(q.device).contiguous(), None if mask is None else mask.view(torch.uint8),
        gate, gain, square,
        q.stride(), k.stride(), v.stride(), out.stride(), (0,) * 4 if state is None else state.stride(),
        into.stride(), 0 if mask is None else mask.stride(0), (0,) * 4 if gate is None else gate.stride(),
        H, d, e, tile(d, WIDEST), E, silu, num_warps=warps,
    )  # fmt: skip
    return out.to(q.dtype), square, into
