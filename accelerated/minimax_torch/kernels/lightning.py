r"""Lightning attention as a kernel walks it: chunk after chunk, with the state kept where the arithmetic is done.

$$o = (e^{-s r} q)\, S + \bigl((q k^\top) \odot M\bigr)\, v, \qquad S \leftarrow e^{-s m} S + (e^{-s(m-r)} k)^\top v$$

A *program* is one walk along one sequence, from the first chunk to the last. It owns E columns of one head's memory;
since a column is written by one value channel alone, programs never wait for each other, and since no two add to one
place, the same inputs give the same bits. There are B · H · e/E of them.

| in memory | is touched |
|---|---|
| v, out | once |
| q, k | once by each of a head's e/E programs: the price of having more of them |
| the state | once before the walk and once after it; in between it lies in registers |

On a GPU the function is compiled. On a CPU Triton's interpreter walks through the same lines with NumPy: slow, exact,
and no proof that they compile.
"""

import math
from typing import Any, no_type_check

import torch

from ..shapes import Keys, Mask, Outputs, Queries, Slopes, State, Values

try:
    import triton
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed; on Linux pip install 'minimax-twin[kernels]' brings Triton, elsewhere there "
        "is none: use minimax_torch.ops.lightning_attention_chunked there.",
        name=error.name,
    ) from None

PRECISIONS = ("ieee", "tf32x3", "tf32")
"""How float32 numbers are multiplied on a GPU: as they are, as three TF32 products each, or cut to TF32, 11 bits."""


@triton.jit
@no_type_check
def lightning_forward(
    q, k, v, out, state, rates, clock,
    q_strides, k_strides, v_strides, out_strides, clock_stride,
    H, T, d, e,
    C: tl.constexpr, D: tl.constexpr, E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: E columns of one head's memory, and what the queries read in them.

    Arrays come as the address of their first element; a stride is how far the next one along an axis is.
    """
    # Who am I? One of B · H memories, and E of its value channels. Offsets are int64: a large batch passes 2³¹.
    pair = tl.program_id(0).to(tl.int64)
    b = pair // H
    h = pair % H
    r = tl.arange(0, C).to(tl.int64)  # places in a chunk
    i = tl.arange(0, D)  # key channels, in tiles of a power of two …
    j = tl.program_id(1) * E + tl.arange(0, E)  # … and value channels; past d or e nothing is read or written
    wide = state.dtype.element_ty  # float32, or float64 where the inputs are
    q += b * q_strides[0] + h * q_strides[1] + i[None, :] * q_strides[3]  # (1, D)
    k += b * k_strides[0] + h * k_strides[1] + i[None, :] * k_strides[3]
    v += b * v_strides[0] + h * v_strides[1] + j[None, :] * v_strides[3]  # (1, E)
    out += b * out_strides[0] + h * out_strides[1] + j[None, :] * out_strides[3]
    clock += b * clock_stride

    # My columns of the memory. From here to the end of the walk they stay in registers.
    state += pair * d * e + i[:, None] * e + j[None, :]
    mine = (i[:, None] < d) & (j[None, :] < e)
    S = tl.load(state, mask=mine, other=0)  # (D, E)
    rate = tl.load(rates + h)  # −s log₂e, so that 2^(rate · n) = e^(−s n)
    causal = r[:, None] >= r[None, :]

    for start in range(0, T, C):
        # The clock holds, at t, how many real tokens come before position t. It stands still at padding and past the
        # end, so that a padded position and a missing one are one case: not real.
        t = start + r
        here = tl.load(clock + tl.minimum(t + 1, T))
        real = here > tl.load(clock + tl.minimum(t, T))
        before = tl.load(clock + start)
        n = here - before  # 1 … m, in real tokens
        m = tl.load(clock + tl.minimum(start + C, T)) - before  # what this chunk holds: fewer than C in the last one

        # Load. A position that is not real is chosen to be 0; whatever stands there, NaN too, is not read.
        at = t[:, None]
        keys = real[:, None] & (i[None, :] < d)
        values = real[:, None] & (j[None, :] < e)
        qc = tl.load(q + at * q_strides[2], mask=keys, other=0).to(wide)  # (C, D)
        kc = tl.load(k + at * k_strides[2], mask=keys, other=0).to(wide)
        vc = tl.load(v + at * v_strides[2], mask=values, other=0).to(wide)  # (C, E)

        # Every count of tokens is at least 0, so no exponent is positive and nothing overflows.
        inside = tl.where(causal, tl.exp2(rate * tl.where(causal, n[:, None] - n[None, :], 0)), 0)
        from_state = tl.exp2(rate * n)[:, None]
        to_end = tl.exp2(rate * (m - n))[:, None]

        # Read: from the memory what is older than the chunk, from the chunk the rest.
        scores = tl.dot(qc, tl.trans(kc), input_precision=PRECISION) * inside
        o = tl.dot(qc * from_state, S, input_precision=PRECISION) + tl.dot(scores, vc, input_precision=PRECISION)
        tl.store(out + at * out_strides[2], o.to(out.dtype.element_ty), mask=(at < T) & (j[None, :] < e))

        # Decay and write, in that order: by m, not by C.
        S = tl.exp2(rate * m) * S + tl.dot(tl.trans(kc * to_end), vc, input_precision=PRECISION)

    tl.store(state, S, mask=mine)


def lightning_attention(
    q: Queries,
    k: Keys,
    v: Values,
    slopes: Slopes,
    state: State | None = None,
    *,
    chunk: int = 64,
    mask: Mask | None = None,
    precision: str = "ieee",
) -> tuple[Outputs, State]:
    """Compute [lightning_attention_chunked][minimax_torch.ops.lightning.lightning_attention_chunked], forward only.

    It takes the op's place in the whole model:

        with minimax_torch.ops.using(lightning_attention_chunked=lightning_attention):
            model(ids)

    Parameters and returns are the op's. A chunk is how the sum is cut, not what it is: ``chunk`` is rounded
    up to a power of two, at least 16, at most 64. Inputs may be strided views, in float32, bfloat16, float16 or, for
    the proof, float64. ``precision`` is one of `PRECISIONS`; with ``"tf32"`` it is not the op any more.

    Raises ValueError where a key has more than 128 channels, and where a gradient is wanted: there is no backward yet.
    """
    B, H, T, d = q.shape
    e = v.shape[3]
    if k.shape != q.shape or v.shape[:3] != q.shape[:3]:
        shapes = f"q is {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise ValueError(f"{shapes}: all three share B, H and T, and q and k share d.")
    if d > 128:
        raise ValueError(f"A key has {d} channels; a program of this kernel holds 128 at most. Leave the op as it is.")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; a chunk holds at least one position.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; there are {', '.join(PRECISIONS)}.")
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, state)):
        raise ValueError("The kernel has no backward yet; call it under torch.no_grad(), or train with the op.")

    wide = torch.promote_types(q.dtype, torch.float32)
    walk: Any = lightning_forward if q.is_cuda else InterpretedFunction(lightning_forward.fn)
    # The interpreter cuts a bfloat16 off where a GPU rounds it: there torch rounds, in the last line.
    stored = wide if isinstance(walk, InterpretedFunction) else q.dtype
    out = torch.empty_like(v, dtype=stored, memory_format=torch.contiguous_format)
    if state is None:
        state = q.new_zeros((B, H, d, e), dtype=wide)
    state = state.to(wide, copy=True, memory_format=torch.contiguous_format)  # the walk overwrites it
    rates = (slopes.double() * -math.log2(math.e)).to(q.device, wide)
    if mask is None:
        clock = torch.arange(T + 1, dtype=torch.int32, device=q.device).expand(B, -1)
    else:
        clock = torch.nn.functional.pad(mask.cumsum(dim=1, dtype=torch.int32), (1, 0))

    C, D, E = tile(chunk, 64), tile(d, 128), tile(e, 32)
    walk[B * H, triton.cdiv(e, E)](
        q, k, v, out, state, rates, clock,
        q.stride(), k.stride(), v.stride(), out.stride(), clock.stride(0),
        H, T, d, e, C, D, E, precision,
    )  # fmt: skip
    return out.to(q.dtype), state


def tile(n: int, most: int) -> int:
    """The power of two for n things: tiles have such sides, and `tl.dot` takes none below 16.

    >>> tile(1, 128), tile(48, 128), tile(1000, 128)
    (16, 64, 128)
    """
    return min(max(16, triton.next_power_of_2(n)), most)
