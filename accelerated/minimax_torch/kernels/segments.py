r"""Lightning attention at the speed of memory: segments walk at one time, and the backward is three more walks.

One walk from the first token to the last keeps B · H · e/E programs busy (`lightning.py` is that walk, to be read
first): too few for a GPU where the batch is small. So a long sequence is cut into G segments:

1. *Ends.* What does each stretch of tokens add to the state? A sum over its keys and values, all stretches at once.
2. *Hand on.* An exact decayed sum over stretches, elementwise, gives every segment the state that it begins with.
3. *Walk.* Every segment goes through its chunks, as if it were a sequence with a history.

Only G − 1 segments need their end, so keys and values are read (G − 1)/G times more. With G = 1 the walk is all.

**Backward.** Where S decays, then takes k vᵀ, then is read by q, its gradient dS takes q doᵀ, is read, then decays,
from the last token to the first. So each gradient is such a walk, with the roles dealt anew:

| | reads with | keys | values | memory | goes |
|---|---|---|---|---|---|
| out | q | k | v | S | forwards |
| dq | do | v | k | Sᵀ | forwards |
| dv | k | q | do | dS | backwards, decays after it is read |
| dk | v | do | q | dSᵀ | backwards, decays after it is read |

What is kept for it is the inputs and one state a segment.

**Rounding.** bfloat16 tiles are multiplied as they are, sums are float32. What the kernel makes itself in float32 (the
state, the scores, the decayed values) is handed to the multiplier in ``parts`` bfloat16 pieces, x ≈ high + low: two
pieces keep 16 bits, at one more product. Other types are multiplied in float32, as three TF32 products.
"""

import math
from typing import Any, NamedTuple, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.pointwise import silu
from ..shapes import Keys, Mask, Outputs, Queries, Slopes, State, Values
from .choose import WIDEST, wants_gradient
from .decode import check, launch, plus
from .lightning import InterpretedFunction, tile, tl, triton
from .once import once

LOG2E = tl.constexpr(math.log2(math.e))
ANY_LENGTH = ["H", "T", "origin", "until", "length"]  # numbers that must not make the compiler start again


@triton.jit(do_not_specialize=ANY_LENGTH)
@no_type_check
def walk(
    q, k, v, out, before, after, slopes, clock, gate, gain, square,
    q_strides, k_strides, v_strides, out_strides, before_strides, after_strides, clock_stride, gate_strides,
    H, T, origin, until, length,
    d: tl.constexpr, e: tl.constexpr, C: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    BACKWARDS: tl.constexpr, RAGGED: tl.constexpr, FAR: tl.constexpr, READ: tl.constexpr, WRITTEN: tl.constexpr,
    WIDE: tl.constexpr, PART: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: one segment, E columns of one head's memory, and what the queries read in them.

    Positions are counted as one walks: backwards, position 0 is the last token. It goes from origin until another one,
    in whole chunks unless it is RAGGED. The memory lies transposed, (E, D), and
    so do answers: thus whatever the program makes itself is a left factor, which a GPU takes out of registers.
    """
    blocks: tl.constexpr = (e + E - 1) // E
    pair = (tl.program_id(0) // blocks).to(tl.int64)  # blocks of one head are neighbours: they share q and k in L2
    segment = tl.program_id(1).to(tl.int64)
    b = pair // H
    h = pair % H
    first = origin + segment * length
    last = tl.minimum(first + length, until)

    # Tiles of addresses, from the segment's first position on; a chunk adds one number to all of them.
    r = tl.arange(0, C)
    i = tl.arange(0, D)
    j = (tl.program_id(0) % blocks) * E + tl.arange(0, E)
    q_step = q_strides[2]
    k_step = k_strides[2]
    v_step = v_strides[2]
    out_step = out_strides[2]
    q += b * q_strides[0] + h * q_strides[1]
    k += b * k_strides[0] + h * k_strides[1]
    v += b * v_strides[0] + h * v_strides[1]
    out += b * out_strides[0] + h * out_strides[1]
    if BACKWARDS:
        end = (T - 1).to(tl.int64)
        q += end * q_step
        k += end * k_step
        v += end * v_step
        out += end * out_step
        q_step = -q_step
        k_step = -k_step
        v_step = -v_step
        out_step = -out_step
    at = r.to(tl.int64) if FAR else r
    q_tile = at[None, :] * q_step + i[:, None] * q_strides[3]  # (D, C)
    k_tile = at[:, None] * k_step + i[None, :] * k_strides[3]  # (C, D)
    v_tile = at[None, :] * v_step + j[:, None] * v_strides[3]  # (E, C)
    out_tile = at[None, :] * out_step + j[:, None] * out_strides[3]
    is_key = i < d
    is_value = j < e
    if gain is not None:
        gains = tl.load(gain + h * e + j, mask=is_value, other=0).to(WIDE)
        square += (pair * blocks + tl.program_id(0) % blocks) * T
    if gate is not None:
        gate += b * gate_strides[0] + h * gate_strides[1]
        gate_tile = at[None, :] * gate_strides[2] + j[:, None] * gate_strides[3]

    # The memory as it is before the segment.
    mine = is_value[:, None] & is_key[None, :]
    if before is not None:
        before += pair * before_strides[0] + segment * before_strides[1]
        S = tl.load(before + i[None, :] * before_strides[2] + j[:, None] * before_strides[3], mask=mine, other=0)
        S = S.to(WIDE)  # (E, D)
    else:
        S = tl.full((E, D), 0, WIDE)

    # A factor that is multiplied into the state again and again is built in float64. Exponents are never positive.
    slope = tl.load(slopes + h).to(tl.float64) * -LOG2E
    rate = slope.to(WIDE)
    full = tl.exp2(slope * C).to(WIDE)
    late: tl.constexpr = 1 if BACKWARDS else 0  # backwards, the memory is read before it decays
    causal = r[None, :] >= r[:, None]  # a key's row, a query's column
    if clock is not None:
        clock += b * clock_stride

    for c in range(0, ((last - first + C - 1) // C).to(tl.int32)):
        start = first + c * C
        left = C  # positions from here to the segment's end, as far as this chunk goes
        if RAGGED:
            left = tl.minimum(last - start, C).to(tl.int32)
        real = r < left
        n = r + 1  # how many tokens the chunk holds up to this one …
        m = left  # … and in all
        if clock is not None:  # at t it holds how many real tokens come before t, and stands still at padding
            here = tl.load(clock + start + tl.minimum(r + 1, left))
            real = here > tl.load(clock + start + tl.minimum(r, left))
            passed = tl.load(clock + start)
            n = here - passed
            m = tl.load(clock + start + left) - passed
        if RAGGED:
            full = tl.exp2(slope * m).to(WIDE)

        query = real[None, :] if d == D else real[None, :] & is_key[:, None]
        key = real[:, None] if d == D else real[:, None] & is_key[None, :]
        value = real[None, :] if e % E == 0 else real[None, :] & is_value[:, None]
        exists = (r < left)[None, :] if e % E == 0 else (r < left)[None, :] & is_value[:, None]
        if RAGGED or d != D:
            qc = tl.load(q + start * q_step + q_tile, mask=query, other=0).to(PART)
            kc = tl.load(k + start * k_step + k_tile, mask=key, other=0).to(PART)
        else:
            qc = tl.load(q + start * q_step + q_tile).to(PART)
            kc = tl.load(k + start * k_step + k_tile).to(PART)
        if RAGGED or e % E != 0:
            vc = tl.load(v + start * v_step + v_tile, mask=value, other=0).to(PART)
        else:
            vc = tl.load(v + start * v_step + v_tile).to(PART)

        inside = tl.where(causal, tl.exp2(rate * tl.where(causal, n[None, :] - n[:, None], 0)), 0)
        from_state = tl.exp2(rate * tl.maximum(n - late, 0))
        to_end = tl.exp2(rate * tl.maximum(m - n + late, 0))

        # Read: from the memory what is older than the chunk, from the chunk the rest.
        high = S.to(PART)
        o = tl.dot(high.to(FACTOR), qc.to(FACTOR), input_precision=PRECISION, out_dtype=WIDE)  # (E, C)
        if READ == 2:
            low = (S - high.to(WIDE)).to(PART)
            o = tl.dot(low.to(FACTOR), qc.to(FACTOR), o, input_precision=PRECISION, out_dtype=WIDE)
        o *= from_state[None, :]
        scores = tl.dot(kc.to(FACTOR), qc.to(FACTOR), input_precision=PRECISION, out_dtype=WIDE) * inside
        high = scores.to(PART)
        o = tl.dot(vc.to(FACTOR), high.to(FACTOR), o, input_precision=PRECISION, out_dtype=WIDE)
        if READ == 2:
            low = (scores - high.to(WIDE)).to(PART)
            o = tl.dot(vc.to(FACTOR), low.to(FACTOR), o, input_precision=PRECISION, out_dtype=WIDE)
        if gain is not None:  # the norm's own factor, one a token, waits for the sum over all heads
            tl.store(square + start + r, tl.reduce(o * o, 0, plus), mask=r < left)
            o *= gains[:, None]
        if gate is not None:
            logits = tl.load(gate + start * gate_strides[2] + gate_tile, mask=exists, other=0).to(WIDE)
            o /= 1 + tl.exp(-logits)
        if RAGGED or e % E != 0:
            tl.store(out + start * out_step + out_tile, o.to(out.dtype.element_ty), mask=exists)
        else:
            tl.store(out + start * out_step + out_tile, o.to(out.dtype.element_ty))

        # Decay and write.
        decayed = vc.to(WIDE) * to_end[None, :]
        high = decayed.to(PART)
        S = tl.dot(high.to(FACTOR), kc.to(FACTOR), S * full, input_precision=PRECISION, out_dtype=WIDE)
        if WRITTEN == 2:
            low = (decayed - high.to(WIDE)).to(PART)
            S = tl.dot(low.to(FACTOR), kc.to(FACTOR), S, input_precision=PRECISION, out_dtype=WIDE)

    if after is not None:  # noqa: SIM102 - the compiler decides the outer one, the program the inner one
        if last == until:
            after += pair * after_strides[0]
            tl.store(after + i[None, :] * after_strides[1] + j[:, None] * after_strides[2], S, mask=mine)


@triton.jit(do_not_specialize=ANY_LENGTH)
@no_type_check
def ends(
    k, v, end, slopes, clock,
    k_strides, v_strides, clock_stride,
    H, T, length,
    d: tl.constexpr, e: tl.constexpr, C: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    BACKWARDS: tl.constexpr, FAR: tl.constexpr, WRITTEN: tl.constexpr,
    WIDE: tl.constexpr, PART: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: what one whole stretch of tokens adds to E columns of one head's memory, into end (B·H, F, d, e).

    Every value decays to the end of the stretch at once, so that the sum is a plain one.
    """
    blocks: tl.constexpr = (e + E - 1) // E
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    stretch = tl.program_id(1).to(tl.int64)
    b = pair // H
    h = pair % H
    first = stretch * length

    r = tl.arange(0, C)
    i = tl.arange(0, D)
    j = (tl.program_id(0) % blocks) * E + tl.arange(0, E)
    k_step = k_strides[2]
    v_step = v_strides[2]
    k += b * k_strides[0] + h * k_strides[1]
    v += b * v_strides[0] + h * v_strides[1]
    if BACKWARDS:
        k += (T - 1).to(tl.int64) * k_step
        v += (T - 1).to(tl.int64) * v_step
        k_step = -k_step
        v_step = -v_step
    at = r.to(tl.int64) if FAR else r
    k_tile = at[:, None] * k_step + i[None, :] * k_strides[3]  # (C, D)
    v_tile = at[None, :] * v_step + j[:, None] * v_strides[3]  # (E, C)
    is_key = i < d
    is_value = j < e

    rate = (tl.load(slopes + h).to(tl.float64) * -LOG2E).to(WIDE)
    late: tl.constexpr = 1 if BACKWARDS else 0
    if clock is not None:
        clock += b * clock_stride + first
        total = tl.load(clock + length)
    S = tl.full((E, D), 0, WIDE)
    for c in range(0, length // C):
        start = first + c * C
        if clock is None:
            real = r < C
            to_end = tl.exp2(rate * (length - c * C - 1 - r + late))
        else:
            here = tl.load(clock + c * C + r + 1)
            real = here > tl.load(clock + c * C + r)
            to_end = tl.exp2(rate * (total - here + late))
        key = real[:, None] if d == D else real[:, None] & is_key[None, :]
        value = real[None, :] if e % E == 0 else real[None, :] & is_value[:, None]
        kc = tl.load(k + start * k_step + k_tile, mask=key, other=0)
        vc = tl.load(v + start * v_step + v_tile, mask=value, other=0)
        kc = kc.to(PART)
        vc = vc.to(PART)
        decayed = vc.to(WIDE) * to_end[None, :]
        high = decayed.to(PART)
        S = tl.dot(high.to(FACTOR), kc.to(FACTOR), S, input_precision=PRECISION, out_dtype=WIDE)
        if WRITTEN == 2:
            low = (decayed - high.to(WIDE)).to(PART)
            S = tl.dot(low.to(FACTOR), kc.to(FACTOR), S, input_precision=PRECISION, out_dtype=WIDE)
    end += (pair * tl.num_programs(1) + stretch) * (d * e)
    tl.store(end + i[None, :] * e + j[:, None], S, mask=is_value[:, None] & is_key[None, :])


@triton.jit(do_not_specialize=["H", "length", "each", "G"])
@no_type_check
def hand_on(
    end, state, before, slopes, clock, state_strides, clock_stride, H, length, each, G,
    d: tl.constexpr, e: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK numbers of one head's memory, from segment to segment. A segment has ``each`` stretches.

    It goes from end (B·H, F, d, e) into before (B·H, G, d, e).
    """
    pair = tl.program_id(0).to(tl.int64)
    x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mine = x < e * d
    b = pair // H
    if state is not None:
        state += pair * state_strides[0] + (x // e) * state_strides[1] + (x % e) * state_strides[2]
        S = tl.load(state, mask=mine, other=0).to(WIDE)
    else:
        S = tl.full((BLOCK,), 0, WIDE)
    slope = tl.load(slopes + pair % H).to(tl.float64) * -LOG2E
    keep = tl.exp2(slope * length).to(WIDE)
    if clock is not None:
        clock += b * clock_stride
    before += pair * G * (e * d) + x
    end += pair * (G - 1) * each * (e * d) + x
    tl.store(before, S, mask=mine)
    for _ in range(1, G):
        for _ in range(0, each):
            if clock is not None:
                keep = tl.exp2(slope * (tl.load(clock + length) - tl.load(clock))).to(WIDE)
                clock += length
            S = keep * S + tl.load(end, mask=mine, other=0)
            end += e * d
        before += e * d
        tl.store(before, S, mask=mine)


# --- How it is cut ---------------------------------------------------------------------------------------------------


class Tiles(NamedTuple):
    """How the kernels cut the work; none of it changes what is computed, ``read`` and ``written`` how it is rounded."""

    chunk: int = 64  # positions that are multiplied together: a power of two, at least 16
    columns: int = 128  # value channels of a program, at most
    warps: int = 8
    stages: int = 3  # chunks under way at one time
    read: int = 1  # bfloat16 parts of what is read: the state and the scores …
    written: int = 2  # … and of the decayed values that are written
    segment: int | None = None  # positions of a segment; None: as many segments as fill the GPU
    stretch: int = 1024  # positions of a stretch whose end is computed by one program, at least


def tiles_for(q: Tensor, v: Tensor) -> Tiles:
    """What suits these types and head dims: measured where heads have 128 channels, and what fits elsewhere."""
    d, e = q.shape[3], v.shape[3]
    if q.dtype == torch.bfloat16:
        if max(d, e) > 128:
            return Tiles(columns=64, stages=2)
        return Tiles() if e > 64 else Tiles(warps=4)
    if max(d, e) > 128:
        return Tiles(chunk=16, columns=16, warps=8, stages=1, written=1)
    return Tiles(chunk=16, columns=32, warps=4, stages=2, written=1)


class Cut(NamedTuple):
    """G segments of ``length`` positions (the last may be shorter), each of ``each`` stretches."""

    G: int
    length: int
    each: int


def cut_for(tiles: Tiles, programs: int, T: int, device: torch.device) -> Cut:
    """As few segments as fill the GPU: each but one costs another reading of its keys and values."""
    stretch = -(-tiles.stretch // tiles.chunk) * tiles.chunk
    if tiles.segment is not None:
        length = -(-tiles.segment // tiles.chunk) * tiles.chunk
        stretch = math.gcd(length, stretch)
    else:
        room = programs  # the interpreter walks one program after the other
        if device.type == "cuda":  # about 8 warps of such a program find room on a multiprocessor
            room = torch.cuda.get_device_properties(device).multi_processor_count * max(8 // tiles.warps, 1)
        length = max(-(-T // max(room // max(programs, 1), 1) // stretch) * stretch, stretch)
        ended = max(-(-T // length), 1) - 1  # segments whose end is asked for: in stretches as long as still fill it
        while length % (2 * stretch) == 0 and ended * programs * (length // (2 * stretch)) >= room:
            stretch *= 2
    length = max(length, stretch)
    return Cut(max(-(-T // length), 1), length, length // stretch)


class Walks:
    """The kernels over one problem: what stays the same from walk to walk."""

    def __init__(self, q: Tensor, v: Tensor, slopes: Slopes, mask: Mask | None, tiles: Tiles | None):
        (self.B, self.H, self.T, _), e = q.shape, v.shape[3]
        self.tiles = tiles or tiles_for(q, v)
        self.slopes = slopes.to(q.device).contiguous()
        self.wide = torch.promote_types(q.dtype, torch.float32)
        self.interpreted = not q.is_cuda
        # The interpreter cuts a bfloat16 off where a GPU rounds it: there torch rounds what leaves the kernel.
        self.stored, self.returned = self.wide if self.interpreted else q.dtype, q.dtype
        wide = tl.float64 if self.wide == torch.float64 else tl.float32
        narrow = q.dtype == torch.bfloat16
        self.types = {
            "WIDE": wide,
            "PART": tl.bfloat16 if narrow else wide,
            # The interpreter multiplies bfloat16 wrongly; in float32 the same parts have the same products.
            "FACTOR": tl.bfloat16 if narrow and not self.interpreted else wide,
            "PRECISION": "ieee" if self.interpreted or wide is tl.float64 else "tf32x3",
        }
        self.cut = cut_for(self.tiles, self.B * self.H * triton.cdiv(e, tile(e, self.tiles.columns)), self.T, q.device)
        self.clocks: list[Tensor | None] = [None, None]  # forwards, backwards: how many real tokens one has passed
        if mask is not None:
            ways = (mask, mask.flip(1))
            self.clocks = [torch.nn.functional.pad(x.cumsum(1, dtype=torch.int32), (1, 0)) for x in ways]

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Run a compiled kernel, or the same lines in the interpreter."""
        (InterpretedFunction(kernel.fn) if self.interpreted else kernel)[grid](*arguments, **constants)

    def sides(self, k: Tensor, v: Tensor) -> dict[str, int]:
        """Head dims, and the tiles that hold them."""
        d, e = k.shape[3], v.shape[3]
        return {"d": d, "e": e, "C": self.tiles.chunk, "D": tile(d, WIDEST), "E": tile(e, self.tiles.columns)}

    def begins(self, k: Tensor, v: Tensor, state: Tensor | None, backwards: bool = False) -> Tensor | None:
        """The state with which each segment begins, (B·H, G, d, e); None where that is nothing."""
        (G, length, each), clock, sides, pairs = self.cut, self.clocks[backwards], self.sides(k, v), self.B * self.H
        d, e, tick = sides["d"], sides["e"], strides(clock, 2)[0]
        state = None if state is None else state.reshape(pairs, d, e)
        if G == 1:
            return None if state is None else state[:, None]
        stretch = length // each
        end = k.new_empty((pairs, (G - 1) * each, d, e), dtype=self.wide)
        before = k.new_empty((pairs, G, d, e), dtype=self.wide)
        self.launch(
            ends, (pairs * triton.cdiv(e, sides["E"]), (G - 1) * each),
            k, v, end, self.slopes, clock, k.stride(), v.stride(), tick, self.H, self.T, stretch,
            **sides, BACKWARDS=backwards, FAR=far(self.tiles.chunk, k, v),
            WRITTEN=self.tiles.written, **self.types,
            num_warps=self.tiles.warps, num_stages=self.tiles.stages + 1,
        )  # fmt: skip
        self.launch(
            hand_on, (pairs, triton.cdiv(d * e, 1024)),
            end, state, before, self.slopes, clock, strides(state, 3), tick, self.H, stretch, each, G,
            d=d, e=e, BLOCK=1024, WIDE=self.types["WIDE"],
        )  # fmt: skip
        return before

    def walk(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        before: Tensor | None,
        backwards: bool = False,
        onward: bool = True,
        gate: Tensor | None = None,
        gain: Tensor | None = None,
        square: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """What the queries read, and the state at the end of the walk, unless nobody goes ``onward`` from there."""
        clock, sides, pairs = self.clocks[backwards], self.sides(k, v), self.B * self.H
        d, e = sides["d"], sides["e"]
        out = torch.empty((self.B, self.T, self.H, e), dtype=self.stored, device=q.device).transpose(1, 2)
        chunk, length = self.tiles.chunk, self.cut.length
        whole = 0 if clock is not None else self.T - self.T % chunk
        parts = [(0, whole, False)] if whole else []
        if whole < self.T or not parts:  # the rest begins with what whole chunks end with
            parts.append((whole, self.T, True))
        after = k.new_empty((pairs, d, e), dtype=self.wide) if onward or len(parts) > 1 else None
        for origin, until, ragged in parts:
            self.launch(
                walk, (pairs * triton.cdiv(e, sides["E"]), max(triton.cdiv(until - origin, length), 1)),
                q, k, v, out, before, after, self.slopes, clock, gate, gain, square,
                q.stride(), k.stride(), v.stride(), out.stride(), strides(before, 4), strides(after, 3),
                strides(clock, 2)[0], strides(gate, 4), self.H, self.T, origin, until, length,
                **sides, BACKWARDS=backwards, RAGGED=ragged, FAR=far(chunk, q, k, v, out, gate),
                READ=self.tiles.read, WRITTEN=self.tiles.written, **self.types,
                num_warps=self.tiles.warps, num_stages=self.tiles.stages,
            )  # fmt: skip
            before = None if after is None else after[:, None]
        return out.to(self.returned), after.reshape(self.B, self.H, d, e) if after is not None and onward else None


def strides(x: Tensor | None, n: int) -> tuple[int, ...]:
    """How far the next element along each of n axes is, of what may be absent."""
    return (0,) * n if x is None else x.stride()


def far(chunk: int, *arrays: Tensor | None) -> bool:
    """Whether a chunk's addresses are further apart than 32 bits count."""
    there = (x for x in arrays if x is not None)
    return any((chunk - 1) * x.stride(2) + (x.shape[3] - 1) * x.stride(3) >= 2**31 for x in there)


# --- As an op --------------------------------------------------------------------------------------------------------


class Segmented(torch.autograd.Function):
    """(q, k, v, state, slopes, mask, tiles) → (out, state); slopes get no gradient."""

    @staticmethod
    def forward(ctx, q, k, v, state, slopes, mask, tiles):
        walks = Walks(q, v, slopes, mask, tiles)
        before = walks.begins(k, v, state)
        out, after = walks.walk(q, k, v, before)
        ctx.save_for_backward(q, k, v, before)
        ctx.walks = walks
        ctx.set_materialize_grads(False)
        return out, after

    @staticmethod
    @once
    def backward(ctx, do, dS):
        (q, k, v, before), walks = ctx.saved_tensors, ctx.walks
        do = torch.zeros_like(v) if do is None else do
        dq, _ = walks.walk(do, v, k, transposed(before), onward=False)
        behind = walks.begins(q, do, dS, backwards=True)
        dv, dS = walks.walk(k, q, do, behind, backwards=True, onward=ctx.needs_input_grad[3])
        dk, _ = walks.walk(v, do, q, transposed(behind), backwards=True, onward=False)
        return dq, dk, dv, dS, None, None, None


def transposed(states: Tensor | None) -> Tensor | None:
    """States with keys and values in each other's place."""
    return None if states is None else states.mT


def lightning_attention(
    q: Queries,
    k: Keys,
    v: Values,
    slopes: Slopes,
    state: State | None = None,
    *,
    mask: Mask | None = None,
    tiles: Tiles | None = None,
) -> tuple[Outputs, State]:
    """Compute [lightning_attention_chunked][minimax_torch.ops.lightning.lightning_attention_chunked], and its gradient.

    Inputs may be strided views, in bfloat16, float16, float32 or, for the proof, float64. What stands at padding is
    not read: a padded query's output is 0. ``tiles`` is for measuring; without it the kernels choose.

    Raises ValueError where a head has more than 256 channels, or something does not fit.
    """
    check(q, k, v, slopes, state, mask)
    return Segmented.apply(q, k, v, state, slopes, mask, tiles)


# --- Straight from the projection ------------------------------------------------------------------------------------


def lightning_packed(
    qkv: Float[Tensor, "B T width"],
    gate: Float[Tensor, "B T Hd"] | None,
    gain: Float[Tensor, "Hd"],
    slopes: Slopes,
    state: State | None = None,
    *,
    mask: Mask | None = None,
    into: State | None = None,
    tiles: Tiles | None = None,
) -> tuple[Float[Tensor, "B T Hd"], Float[Tensor, "B T"], State]:
    r"""Compute all that lies between a lightning layer's projections, and what is left of its inner norm.

    $$y = \sigma(g) \odot w \odot o, \qquad o = \mathrm{lightning}(\mathrm{silu}(\text{qkv})), \qquad
    \text{square} = \textstyle\sum o^2$$

    q, k and v are read where they lie; the gate's sigmoid (1 without a gate) and the norm's gain are taken on the way
    out. SiLU is taken on the way in for one token alone: a walk's tiles go from memory to the multiplier, and by way of
    registers, where SiLU is computed, a walk takes four times as long (H100, 32,768 tokens); so it has a pass of its
    own. The norm's own factor, $(\text{square}/Hd + \varepsilon)^{-1/2}$, is one a token: it may wait until after the
    output's projection, with which it commutes. The new state goes ``into`` a tensor that is given, which may be the
    old one's. No gradient passes.

    Raises ValueError where a gradient is wanted, a head has more than 256 channels, or something does not fit.
    """
    (B, T, width), H = qkv.shape, len(slopes)
    d = width // (3 * H)
    if width != 3 * H * d or gain.shape != (H * d,) or (gate is not None and gate.shape != (B, T, H * d)):
        gated = "no gate" if gate is None else f"gate {tuple(gate.shape)}"
        raise ValueError(
            f"qkv is {tuple(qkv.shape)}, {gated}, gain {tuple(gain.shape)}, and there are {H} heads: "
            "qkv is three times as wide as the gate, and the gate as wide as the gain and all heads together."
        )
    if wants_gradient(qkv, gate, gain, state):
        raise ValueError("No gradient passes through lightning_packed; use torch.no_grad(), or the op.")
    q, k, v = (qkv if T == 1 else silu(qkv)).unflatten(2, (H, 3, d)).transpose(1, 2).unbind(3)  # (B, H, T, d) each
    check(q, k, v, slopes, state, mask, into)
    gates, gain = None if gate is None else gate.unflatten(2, (H, d)).transpose(1, 2), gain.contiguous()
    if T == 1:
        y, square, state = launch(q, k, v, slopes, state, mask, into, gates, gain, silu=True)
        return y.transpose(1, 2).flatten(2), square.sum(dim=1, keepdim=True), state
    walks = Walks(q, v, slopes, mask, tiles)
    blocks = triton.cdiv(d, walks.sides(k, v)["E"])
    square = qkv.new_empty((B, H * blocks, T), dtype=walks.wide)
    before = walks.begins(k, v, state)
    y, after = walks.walk(q, k, v, before, gate=gates, gain=gain, square=square)
    assert after is not None
    return y.transpose(1, 2).flatten(2), square.sum(dim=1), after if into is None else into.copy_(after)
