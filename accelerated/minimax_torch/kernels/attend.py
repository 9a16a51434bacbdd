r"""Softmax attention for one token more: the keys are cut into stretches that are read at one time, then joined.

$$o = \frac{\sum_j e^{x_j - m} v_j}{\sum_j e^{x_j - m}}, \qquad
x_j = \frac{q \cdot k_j}{\sqrt d}, \quad m = \max_j x_j$$

At decode a softmax layer's time is that of its keys and values, each of which is wanted once by the H/G queries of its
key head. One walk along them would keep B · G programs busy, too few for a GPU, so

1. *Read.* Every program walks along one stretch of one key head's keys with all H/G queries at once. It keeps the
   largest score m, the sum below the line and the sum above it, and scales both whenever a larger score turns up.
2. *Join.* The sums of a query's stretches, each times $e^{m_{\text{stretch}} - m}$, are added up.

How many stretches there are is fixed by the memory's capacity, how long they are by the row's own length: a launch has
one shape whatever the rows hold, so a CUDA graph may repeat it, and what lies past a row's end is not read.
"""

import math
from typing import Any, NamedTuple, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from ..shapes import GroupedKeys, GroupedValues, Lengths
from .lightning import InterpretedFunction, tile, tl, triton

LOG2E = math.log2(math.e)
WIDEST = 256  # channels of a head, at most
MOST_SHARED = 128  # queries of one key head, at most
MOST_SPLITS = 256  # stretches that one program joins
LONGEST = 8192  # keys of a stretch, so that rows much longer than others are shared out as well
PROGRAMS = 16  # for each multiprocessor: enough that the last ones to end keep nobody waiting for long
LIFT = tl.constexpr(15.0)  # weights are counted in units of 2⁻¹⁵: float16 has none below 2⁻²⁴


@triton.jit
@no_type_check
def plus(a, b):
    """The sum, for `tl.reduce`."""
    return a + b


@triton.jit
@no_type_check
def larger(a, b):
    """The maximum, for `tl.reduce`."""
    return tl.maximum(a, b)


@triton.jit(do_not_specialize=["G", "capacity"])
@no_type_check
def read(
    q, keys, values, peaks, totals, mixed, lengths,
    q_strides, k_strides, v_strides, length_stride, G, capacity,
    SHARED: tl.constexpr, d: tl.constexpr, e: tl.constexpr,
    R: tl.constexpr, D: tl.constexpr, E: tl.constexpr, N: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr,
    SCALE: tl.constexpr, WIDE: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: one stretch of one key head's keys, N at a time, into peaks, totals and mixed (B·G, SPLITS, H/G)."""
    pair = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    b = pair // G
    g = pair % G
    n = tl.minimum(tl.load(lengths + b * length_stride), capacity).to(tl.int64)
    each = tl.maximum((n + SPLITS * N - 1) // (SPLITS * N), LEAST) * N
    first = split * each
    last = tl.minimum(first + each, n)
    if first >= n:
        return

    r = tl.arange(0, R)  # the queries of this key head; `tl.dot` takes 16 at least
    i = tl.arange(0, D)
    c = tl.arange(0, E)
    j = tl.arange(0, N)
    is_query = r < SHARED
    q += b * q_strides[0] + (g * SHARED + r[:, None]) * q_strides[1] + i[None, :] * q_strides[3]
    qs = tl.load(q, mask=is_query[:, None] & (i[None, :] < d), other=0).to(FACTOR)  # (R, D)
    keys += b * k_strides[0] + g * k_strides[1]
    values += b * v_strides[0] + g * v_strides[1]
    k_tile = j[:, None].to(tl.int64) * k_strides[2] + i[None, :] * k_strides[3]  # (N, D)
    v_tile = j[:, None].to(tl.int64) * v_strides[2] + c[None, :] * v_strides[3]  # (N, E)

    peak = tl.full((R,), -float("inf"), WIDE)
    total = tl.full((R,), 0, WIDE)
    mix = tl.full((R, E), 0, WIDE)
    for block in range(0, ((last - first + N - 1) // N).to(tl.int32)):
        start = first + block * N
        exists = j < last - start
        key = exists[:, None] if d == D else exists[:, None] & (i[None, :] < d)
        value = exists[:, None] if e == E else exists[:, None] & (c[None, :] < e)
        ks = tl.load(keys + start * k_strides[2] + k_tile, mask=key, other=0).to(FACTOR)
        vs = tl.load(values + start * v_strides[2] + v_tile, mask=value, other=0).to(FACTOR)
        scores = tl.dot(qs, tl.trans(ks), input_precision=PRECISION, out_dtype=WIDE) * SCALE  # (R, N), of base 2
        scores = tl.where(exists[None, :], scores, -float("inf"))
        higher = tl.maximum(peak, tl.reduce(scores, 1, larger))
        shrink = tl.exp2(peak - higher)
        weights = tl.exp2(scores - higher[:, None] + LIFT)
        total = total * shrink + tl.reduce(weights, 1, plus)
        mix = tl.dot(weights.to(FACTOR), vs, mix * shrink[:, None], input_precision=PRECISION, out_dtype=WIDE)
        peak = higher

    at = (pair * SPLITS + split) * SHARED + r
    tl.store(peaks + at, peak, mask=is_query)
    tl.store(totals + at, total, mask=is_query)
    tl.store(mixed + at[:, None] * e + c[None, :], mix, mask=is_query[:, None] & (c[None, :] < e))


@triton.jit(do_not_specialize=["H", "G", "capacity"])
@no_type_check
def join(
    peaks, totals, mixed, out, lengths, out_strides, length_stride, H, G, capacity,
    SHARED: tl.constexpr, e: tl.constexpr, E: tl.constexpr,
    N: tl.constexpr, S: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One program: E channels of one query's answer, from all its stretches; 0 where the row has no key."""
    pair = tl.program_id(0).to(tl.int64)
    b = pair // H
    h = pair % H
    n = tl.minimum(tl.load(lengths + b * length_stride), capacity).to(tl.int64)
    each = tl.maximum((n + SPLITS * N - 1) // (SPLITS * N), LEAST) * N
    s = tl.arange(0, S)
    c = tl.program_id(1) * E + tl.arange(0, E)
    exists = s * each < n
    at = ((b * G + h // SHARED) * SPLITS + s) * SHARED + h % SHARED
    peak = tl.load(peaks + at, mask=exists, other=-float("inf"))
    total = tl.load(totals + at, mask=exists, other=0)
    mix = tl.load(mixed + at[:, None] * e + c[None, :], mask=exists[:, None] & (c[None, :] < e), other=0)
    highest = tl.where(n > 0, tl.reduce(peak, 0, larger), 0)
    weights = tl.exp2(peak - highest)
    below = tl.where(n > 0, tl.reduce(weights * total, 0, plus), 1)
    answer = tl.reduce(weights[:, None] * mix, 0, plus) / below
    out += b * out_strides[0] + h * out_strides[1] + c * out_strides[3]
    tl.store(out, answer.to(out.dtype.element_ty), mask=c < e)


class Tiles(NamedTuple):
    """How the kernels cut the work; nothing of what is computed depends on it."""

    keys: int = 64  # that are multiplied together: a power of two, at least 16
    least: int = 4  # times so many make the shortest stretch, so that there is more to read than to join
    splits: int | None = None  # stretches of a row, at most; None: as many as keep the GPU busy
    warps: int = 4
    stages: int = 3  # tiles under way at one time


def tiles_for(keys: Tensor, values: Tensor) -> Tiles:
    """What suits these types and head dims: about 64 KB under way."""
    bytes_of_a_key = tile(max(keys.shape[3], values.shape[3]), WIDEST) * keys.element_size()
    return Tiles() if bytes_of_a_key <= 256 else Tiles(keys=32, least=8, stages=3 if bytes_of_a_key <= 512 else 2)


def splits_for(tiles: Tiles, pairs: int, capacity: int, device: torch.device) -> int:
    """How many stretches the launch has room for; it depends on nothing that changes from step to step."""
    wanted = tiles.splits or 1
    if tiles.splits is None and device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        wanted = max(-(-PROGRAMS * processors // pairs), -(-capacity // LONGEST))
    return max(min(wanted, -(-capacity // (tiles.keys * tiles.least)), MOST_SPLITS), 1)


def attend(
    q: Float[Tensor, "B H 1 d"],
    keys: GroupedKeys,
    values: GroupedValues,
    lengths: Lengths,
    *,
    tiles: Tiles | None = None,
) -> Float[Tensor, "B H 1 e"]:
    """Compute [softmax_attention][minimax_torch.ops.attention.softmax_attention] for one query a row.

    Row b sees its first ``lengths[b]`` keys, or all where there are fewer; what lies behind them is not read. A row
    without a key gets 0. Inputs may be strided views, in bfloat16, float16, float32 or, for the proof, float64; keys
    and values are multiplied as they are, sums are float32. It is for decoding: no gradient passes.

    Raises ValueError where there is more than one query a row, heads do not fit, a head has more than 256 channels, or
    more than 128 queries share a key head.
    """
    (B, H, T, d), (G, capacity), e = q.shape, keys.shape[1:3], values.shape[3]
    if T != 1 or keys.shape != (B, G, capacity, d) or values.shape[:3] != (B, G, capacity) or H % G:
        shapes = f"q is {tuple(q.shape)}, keys {tuple(keys.shape)}, values {tuple(values.shape)}"
        raise ValueError(f"{shapes}: a row has one query and as many keys as values, and G divides H.")
    if max(d, e) > WIDEST or H // G > MOST_SHARED:
        raise ValueError(
            f"Heads have {max(d, e)} channels and {H // G} queries share a key head; this kernel holds {WIDEST} "
            f"channels and {MOST_SHARED} queries at most."
        )
    interpreted, wide = not q.is_cuda, torch.promote_types(q.dtype, torch.float32)
    kind = tl.float64 if wide == torch.float64 else tl.float32
    # The interpreter multiplies bfloat16 wrongly, and cuts one off where a GPU rounds it.
    narrow = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(q.dtype, kind)
    stored, factor = (wide, kind) if interpreted else (q.dtype, narrow)
    tiles = tiles or tiles_for(keys, values)
    splits = splits_for(tiles, B * G, capacity, q.device)
    out = torch.empty((B, 1, H, e), dtype=stored, device=q.device).transpose(1, 2)
    peaks, totals = (q.new_empty((B * G, splits, H // G), dtype=wide) for _ in range(2))
    mixed = q.new_empty((B * G, splits, H // G, e), dtype=wide)
    cut = {"N": tiles.keys, "SPLITS": splits, "LEAST": tiles.least, "WIDE": kind}
    launch(
        read, (B * G, splits),
        q, keys, values, peaks, totals, mixed, lengths,
        q.stride(), keys.stride(), values.stride(), lengths.stride(0), G, capacity,
        SHARED=H // G, d=d, e=e, R=tile(H // G, MOST_SHARED), D=tile(d, WIDEST), E=tile(e, WIDEST), **cut,
        SCALE=LOG2E * d**-0.5, FACTOR=factor, PRECISION="tf32x3" if factor == tl.float32 else "ieee",
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    columns = tile(e, 32)
    launch(
        join, (B * H, triton.cdiv(e, columns)),
        peaks, totals, mixed, out, lengths, out.stride(), lengths.stride(0), H, G, capacity,
        SHARED=H // G, e=e, E=columns, S=triton.next_power_of_2(splits), **cut,
    )  # fmt: skip
    return out.to(q.dtype)


def launch(kernel: Any, grid: tuple[int, ...], q: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run a compiled kernel on a GPU, and the same lines in the interpreter elsewhere."""
    (kernel if q.is_cuda else InterpretedFunction(kernel.fn))[grid](q, *arguments, **constants)
