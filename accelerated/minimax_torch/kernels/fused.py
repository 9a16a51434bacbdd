r"""What lies between a layer's matmuls, each in one reading and one writing; and experts who are asked little.

With c the carried stream, u the update and g the next norm's gain:

$$x = \alpha c + \beta u, \qquad n = \frac{x}{\sqrt{\mathrm{mean}(x^2) + \varepsilon}} \odot g$$

where u is a matmul's output, or that times one factor a token (the inner norm's, which commutes with the matmul), or
the sum of what a token's K experts said, $u_t = \sum_k w_{tk} s_{tk}$, gathered from where they said it.
"""

from typing import Any, no_type_check

import torch
from torch import Tensor

from .decode import plus
from .lightning import InterpretedFunction, tile, tl, triton
from .norm import INNER_EPS


@triton.jit(do_not_specialize=["alpha", "beta", "eps", "inner_eps"])
@no_type_check
def add_norm_kernel(
    carried, update, square, back, shares, gain, x, n, alpha, beta, eps, inner_eps,
    D: tl.constexpr, width: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One program: one token. The sum is rounded before it is normed: the stream that goes on is what is normed."""
    t = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    here = i < D
    if back is not None:
        u = tl.full((BLOCK,), 0, WIDE)
        for k in tl.static_range(K):
            said = tl.load(update + tl.load(back + t * K + k) * D + i, mask=here, other=0).to(WIDE)
            u += tl.load(shares + t * K + k).to(WIDE) * said
    else:
        u = tl.load(update + t * D + i, mask=here, other=0).to(WIDE)
        if square is not None:
            u /= tl.sqrt(tl.load(square + t).to(WIDE) / width + inner_eps)
    y = alpha * tl.load(carried + t * D + i, mask=here, other=0).to(WIDE) + beta * u
    y = y.to(x.dtype.element_ty)
    tl.store(x + t * D + i, y, mask=here)
    y = y.to(WIDE)
    y /= tl.sqrt(tl.reduce(y * y, 0, plus) / D + eps)
    y *= tl.load(gain + i, mask=here, other=0).to(WIDE)
    tl.store(n + t * D + i, y.to(n.dtype.element_ty), mask=here)


def add_norm(
    carried: Tensor,
    update: Tensor,
    alpha: float,
    beta: float,
    gain: Tensor,
    eps: float,
    *,
    square: Tensor | None = None,
    width: int = 1,
    back: Tensor | None = None,
    shares: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Residual and the norm after it: x and n, (B, T, D).

    update is (B, T, D), each token's divided by √(square / width + 1e-6) where square (B, T) is given; or it is
    (choices, D), what experts said, with back (B · T · K,) and shares (…, K).
    """
    D = carried.shape[-1]
    wide = torch.promote_types(carried.dtype, torch.float32)
    carried, update = carried.contiguous(), update.contiguous()
    square, shares = (x if x is None else x.contiguous() for x in (square, shares))
    stored = carried.dtype if carried.is_cuda else wide  # the interpreter cuts a bfloat16 off, and does not round it
    x, n = (torch.empty(carried.shape, dtype=stored, device=carried.device) for _ in range(2))
    run(
        add_norm_kernel, (carried.numel() // D,),
        carried, update, square, back, shares, gain, x, n, float(alpha), float(beta), eps, INNER_EPS,
        D=D, width=width, K=1 if shares is None else shares.shape[-1], BLOCK=triton.next_power_of_2(D),
        WIDE=tl.float64 if wide == torch.float64 else tl.float32, num_warps=8 if D > 2048 else 4,
    )  # fmt: skip
    return x.to(carried.dtype), n.to(carried.dtype)


@triton.jit
@no_type_check
def silu_up_kernel(hidden, out, F: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """One program: BLOCK numbers of one row, silu(gate) ⊙ up."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(hidden + row * 2 * F + i, mask=i < F, other=0).to(WIDE)
    up = tl.load(hidden + row * 2 * F + F + i, mask=i < F, other=0).to(WIDE)
    tl.store(out + row * F + i, (gate / (1 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=i < F)


def silu_up(hidden: Tensor) -> Tensor:
    """silu(gate) ⊙ up of hidden (N, 2F) = gate | up."""
    N, F = hidden.shape[0], hidden.shape[1] // 2
    wide = torch.promote_types(hidden.dtype, torch.float32)
    out = torch.empty((N, F), dtype=hidden.dtype if hidden.is_cuda else wide, device=hidden.device)
    WIDE = tl.float64 if wide == torch.float64 else tl.float32
    run(silu_up_kernel, (N, triton.cdiv(F, 1024)), hidden.contiguous(), out, F=F, BLOCK=1024, WIDE=WIDE)
    return out.to(hidden.dtype)


@triton.jit(do_not_specialize=["n"])
@no_type_check
def sort_kernel(chosen, order, back, ends, n, E: tl.constexpr, BLOCK: tl.constexpr):
    """One program: where BLOCK choices go, behind those that are sooner; and where BLOCK experts' stretches end."""
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = tl.load(chosen + r, mask=r < n, other=E)
    place = tl.full((BLOCK,), 0, tl.int32)
    end = tl.full((BLOCK,), 0, tl.int32)
    for i in range(0, n):
        one = tl.load(chosen + i)
        place += ((one < mine) | ((one == mine) & (i < r))).to(tl.int32)
        end += (one <= r).to(tl.int32)
    tl.store(back + r, place.to(tl.int64), mask=r < n)
    tl.store(order + place, r.to(tl.int64), mask=r < n)
    tl.store(ends + r, end, mask=r < E)


def sort(chosen: Tensor, E: int) -> tuple[Tensor, Tensor, Tensor]:
    """[sort][minimax_torch.kernels.experts.sort] of few choices (n,) in one kernel: each looks at all others."""
    n, chosen = len(chosen), chosen.contiguous()  # of one expert a token, the router's first column is a strided view
    order, back = (torch.empty_like(chosen) for _ in range(2))
    ends = torch.empty(E, dtype=torch.int32, device=chosen.device)
    run(sort_kernel, (triton.cdiv(max(n, E), 128),), chosen, order, back, ends, n, E=E, BLOCK=128)
    return order, back, ends


@triton.jit
@no_type_check
def few_kernel(
    x, stack, out, order, ends,
    K: tl.constexpr, E: tl.constexpr, N: tl.constexpr, M: tl.constexpr, GATED: tl.constexpr, FEWER: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, EXPERTS: tl.constexpr,
    WIDE: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """One program: COLUMNS outputs of one expert, for all the choices that fell on it, ROWS at a time.

    x is (tokens, N), gathered by order where there is one, else (choices, N); stack is (E, M or 2M, N). Where choices
    are FEWER than experts, there is a program for each of them, and an expert's first one works for all of its.
    """
    p = tl.program_id(1)
    e = p
    if FEWER:
        i = tl.arange(0, EXPERTS)
        e = tl.reduce((tl.load(ends + i, mask=i < E, other=p + 1) <= p).to(tl.int32), 0, plus)
    first = 0
    if e > 0:
        first = tl.load(ends + e - 1)
    last = tl.load(ends + e)
    if FEWER:
        last = tl.where(first == p, last, first)
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    i = tl.arange(0, DEPTH)
    r = tl.arange(0, ROWS)
    sides: tl.constexpr = 2 if GATED else 1
    w = stack + e.to(tl.int64) * (sides * M * N)
    for start in range(first, last, ROWS):
        here = start + r < last
        row = start + r
        if order is not None:
            row = tl.load(order + row, mask=here, other=0) // K
        given = x + row[:, None].to(tl.int64) * N
        a = tl.full((ROWS, COLUMNS), 0, WIDE)
        b = tl.full((ROWS, COLUMNS), 0, WIDE)
        for c in range(0, N, DEPTH):
            inner = c + i < N
            at = j[None, :].to(tl.int64) * N + c + i[:, None]
            there = (j < M)[None, :] & inner[:, None]
            xc = tl.load(given + c + i[None, :], mask=here[:, None] & inner[None, :], other=0).to(FACTOR)
            wc = tl.load(w + at, mask=there, other=0).to(FACTOR)
            a = tl.dot(xc, wc, a, input_precision="ieee", out_dtype=WIDE)
            if GATED:
                up = tl.load(w + M * N + at, mask=there, other=0).to(FACTOR)
                b = tl.dot(xc, up, b, input_precision="ieee", out_dtype=WIDE)
        if GATED:
            a = a / (1 + tl.exp(-a)) * b
        to = out + (start + r)[:, None].to(tl.int64) * M + j[None, :]
        tl.store(to, a.to(out.dtype.element_ty), mask=here[:, None] & (j < M)[None, :])


def few(x: Tensor, stack: Tensor, ends: Tensor, order: Tensor | None = None, top_k: int = 1) -> Tensor:
    """A stack of matrices (E, m, n) over few rows, sorted by expert, whose stretches end at ends (E,).

    With order, x is (tokens, n), choice c is of token order[c] // K, and gate | up become silu(gate) ⊙ up.
    """
    E, m, n = stack.shape
    gated, choices = order is not None, len(x) if order is None else len(order)
    M = m // 2 if gated else m
    wide = torch.promote_types(x.dtype, torch.float32)
    out = torch.empty((choices, M), dtype=x.dtype if x.is_cuda else wide, device=x.device)
    WIDE = tl.float64 if wide == torch.float64 else tl.float32
    FACTOR = tl.bfloat16 if x.dtype == torch.bfloat16 and x.is_cuda else WIDE
    run(
        few_kernel, (triton.cdiv(M, 32), min(choices, E)), x.contiguous(), stack, out, order, ends,
        K=top_k, E=E, N=n, M=M, GATED=gated, FEWER=choices < E,
        ROWS=tile(2 * choices // E, 64),  # twice what an expert gets, lest its weights be read again for one row
        COLUMNS=32, DEPTH=256 // x.itemsize, EXPERTS=triton.next_power_of_2(E), WIDE=WIDE, FACTOR=FACTOR,
        num_warps=4, num_stages=4,
    )  # fmt: skip
    return out.to(x.dtype)


def run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a compiled kernel, or the same lines in the interpreter where there is no GPU."""
    on_gpu = any(isinstance(x, Tensor) and x.is_cuda for x in arguments)
    (kernel if on_gpu else InterpretedFunction(kernel.fn))[grid](*arguments, **constants)
