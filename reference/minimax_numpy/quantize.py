r"""Weights in 8 and in 4 bits: a code for each weight, a scale for each row or block, and no more than that kept.

$$\hat w = s \cdot \ell_c, \qquad s = \max |w|, \qquad c = \arg\min_k |w / s - \ell_k|$$

| kind | levels ℓ | a scale s, the largest magnitude, for | bytes a weight |
|---|---|---|---|
| ``int8`` | −127 … 127, over 127 | each row, float32 | 1 + 4 / columns |
| ``nf4`` | 16 quantiles of a normal distribution | each block of 64, float32 | 0.5625 |
| ``nf4-double`` | the same | each block of 64, itself in 8 bits | 0.5159 |

NF4 is QLoRA's (Dettmers et al. 2023, section 3), and codes and scales are those of bitsandbytes to the bit. Two
codes share a byte, the first in its upper half. Blocks run through a matrix row after row and end with it: the
last one is shorter where 64 does not divide the matrix, and an expert never shares a block with the next.

Double quantisation keeps the scales as $s \approx \bar s + g\, m_c$: their mean, one float32 $g = \max|s - \bar s|$
for 256 of them, and the nearest of 256 levels m, dense near 0 (`dynamic_levels`).

Attention's projections, experts and shared experts are quantised (`is_quantized`). Embedding, head, norms and
routers stay as they are: 0.5 % of the released model, and what they decide is decided for every token.
"""

import re
from collections.abc import Iterator
from functools import cache
from math import prod
from operator import index
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float, Int8, UInt8

KINDS = ("int8", "nf4", "nf4-double")
BLOCK, GROUP = 64, 256
TINY = np.float32(1e-38)  # far smaller scales have no finite reciprocal
AT_A_TIME = 1 << 18  # weights: what is computed on the way to a code takes forty times its room
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""The levels of NF4, from QLoRA's appendix E, to the last bit of float32."""


def is_quantized(name: str) -> bool:
    """Whether the parameter of that name is a matrix of attention or of experts.

    >>> is_quantized("model.layers.0.mlp.experts.gate_up_proj"), is_quantized("model.layers.0.mlp.gate.weight")
    (True, False)
    """
    return bool(re.search(r"\.(self_attn|shared_mlp)\.\w+_(proj|gate)\.weight$|\.experts\.\w+_proj$", name))


def check_kind(kind: str | None, stream: bool = False) -> None:
    """Refuse a kind that there is not, and weights that are to be quantised but not held. None is no quantisation."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"quantization is {kind!r}; there are {', '.join(KINDS)}, and None.")
    if kind is not None and stream:
        raise ValueError("quantization holds all weights in few bits and stream holds none; give one of the two.")


def layout(shape: tuple[int, ...], kind: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name → shape and type of what is kept of a matrix [m, n], or of a stack of them [E, m, n].

    >>> layout((2, 100), "nf4")
    {'codes': ((100,), 'uint8'), 'scales': ((4,), 'float32')}
    """
    *stack, m, n = shape
    blocks = -(-m * n // BLOCK)
    parts: dict[str, tuple[tuple[int, ...], str]]
    if kind == "int8":
        parts = {"codes": ((m, n), "int8"), "scales": ((m,), "float32")}
    else:
        parts = {"codes": ((-(-m * n // 2),), "uint8"), "scales": ((blocks,), "float32")}
    if kind == "nf4-double":
        groups = -(-blocks // GROUP)
        parts |= {"scales": ((blocks,), "uint8"), "group_scales": ((groups,), "float32"), "offset": ((), "float32")}
    return {name: ((*stack, *part), dtype) for name, (part, dtype) in parts.items()}


class Quantized:
    """A matrix [m, n] as codes and scales, or a stack of matrices [E, m, n].

    It stands where an array would: ``shape``, ``dtype``, ``len``, ``q.T``, in a stack ``q[e]``, and NumPy takes it for
    one. ``dtype`` is what `dequantize` returns; without ``parts`` there is room, to be filled matrix by matrix.
    A matrix is wide only while somebody multiplies by it, and alone: ``q.T`` makes it.
    """

    def __init__(self, kind: str, shape: tuple[int, ...], dtype, parts: dict[str, np.ndarray] | None = None):
        self.kind, self.shape, self.dtype = kind, tuple(shape), np.dtype(dtype)
        self.parts = parts or {name: np.empty(part, t) for name, (part, t) in layout(shape, kind).items()}

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """2 for a matrix, 3 for a stack."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many weights."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales; the tables of levels are the program's, not the model's."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def T(self) -> Float[np.ndarray, "n m"]:
        """The matrix, dequantised and transposed: what a linear map multiplies by."""
        return self.dequantize().T

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.dequantize().astype(dtype or self.dtype, copy=False)

    def __iter__(self) -> Iterator["Quantized"]:
        return (self[expert] for expert in range(len(self)))

    def __getitem__(self, expert: SupportsIndex) -> "Quantized":
        if self.ndim != 3:
            raise TypeError("A quantised matrix has no rows to pick; dequantize() it first.")
        e = index(expert)  # one, never a slice of them
        return Quantized(self.kind, self.shape[1:], self.dtype, {name: x[e] for name, x in self.parts.items()})

    def __setitem__(self, expert: SupportsIndex, matrix: "Quantized") -> None:
        for name, x in self.parts.items():
            x[expert] = matrix.parts[name]

    def dequantize(self) -> Float[np.ndarray, "*E m n"]:
        r"""The weights again: $\hat w = s\,\ell_c$ in float32, then in ``dtype``. A stack comes out whole."""
        if self.ndim == 3:
            return np.stack([matrix.dequantize() for matrix in self])
        if self.kind == "int8":
            wide = self.parts["codes"].astype(np.float32)
            wide /= 127
            wide *= self.parts["scales"][:, None]
        else:
            wide = pad(pairs_of_levels()[self.parts["codes"]], BLOCK)
            wide *= block_scales(self)[:, None]
            wide = wide.reshape(-1)[: self.size].reshape(self.shape)
        return wide.astype(self.dtype, copy=False)


def quantize(w: Float[np.ndarray, "*E m n"], kind: str, dtype=None) -> Quantized:
    """Quantise a matrix, or each matrix of a stack by itself.

    Parameters
    ----------
    w : (m, n) or (E, m, n)
        Of any float type; the codes are those of its float32.
    kind : {"int8", "nf4", "nf4-double"}
    dtype : NumPy dtype, optional
        What it dequantises to; by default w's own.

    Raises ValueError or TypeError, one sentence long, on anything but finite floats in two or three axes.

    >>> q = quantize(np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16), "nf4")
    >>> q.nbytes, q.dequantize()[1, :4].round(3)
    (36, array([-0.525, -0.525, -0.395, -0.395], dtype=float32))
    """
    check_weights(w, kind)
    dtype = w.dtype if dtype is None else dtype
    if w.ndim == 3:
        stack = Quantized(kind, w.shape, dtype)
        for expert, matrix in enumerate(w):
            stack[expert] = quantize(matrix, kind)
        return stack
    if kind == "int8":
        pieces = [encode_int8(x) for x in np.array_split(w, -(-w.size // AT_A_TIME))]
    else:
        flat = w.reshape(-1)
        pieces = [encode_nf4(flat[i : i + AT_A_TIME]) for i in range(0, w.size, AT_A_TIME)]
    codes, scales = (np.concatenate(part) for part in zip(*pieces))
    parts = {"codes": codes, "scales": scales}
    return Quantized(kind, w.shape, dtype, parts | (compress(scales) if kind == "nf4-double" else {}))


def error_bound(q: Quantized) -> Float[np.ndarray, "m n"]:
    r"""How far a matrix may be from what it was made of, weight by weight.

    $$|w - \hat w| \le s \cdot \tfrac12 \max_k (\ell_{k+1} - \ell_k)$$

    The nearest level is at most half the widest gap away from w/s, which lies between the outermost levels: 0.152
    of the block's largest weight in NF4, between −1 and −0.696; s/254 in int8, half a step of s/127. Double
    quantisation moves s itself by at most half the widest gap of its levels, 0.0071 g. Added are four roundings
    of float32, and below 1e-38, where reciprocals overflow, that much.
    """
    if q.kind == "int8":
        return np.broadcast_to(bound_of(q.parts["scales"], 1 / 127)[:, None], q.shape)
    bound = bound_of(block_scales(q), float(np.diff(NF4).max()))
    if q.kind == "nf4-double":
        moved = bound_of(q.parts["group_scales"], float(np.diff(dynamic_levels()).max()) + 2 / 65535)
        bound = np.abs(bound) + 1.2 * np.repeat(moved, GROUP)[: len(bound)]
    return np.repeat(bound, BLOCK)[: q.size].reshape(q.shape)


def bound_of(scales: Float[np.ndarray, "n"], gap: float) -> Float[np.ndarray, "n"]:
    """Half a gap between levels, at those scales, and room for rounding."""
    return scales.astype(np.float64) * (gap / 2 + 2.0**-22) + float(TINY)


def check_weights(w, kind: str) -> None:
    """Refuse what cannot be quantised, in one sentence. Arrays and tensors are looked at alike."""
    check_kind(kind)
    if kind is None:
        raise ValueError(f"quantization is None; there are {', '.join(KINDS)}.")
    if "float" not in str(w.dtype):
        raise TypeError(f"The weights have dtype {w.dtype}; floats are quantised, and nothing else.")
    if w.ndim not in (2, 3) or 0 in w.shape:
        raise ValueError(f"The weights have shape {tuple(w.shape)}; a matrix or a stack of them is quantised.")
    largest = float(np.finfo(np.float32).max)
    if not (float(w.min()) >= -largest and float(w.max()) <= largest):  # NaN fails both
        raise ValueError("The weights hold NaN, infinity or numbers beyond float32; they have no scale.")


def encode_int8(w: Float[np.ndarray, "m n"]) -> tuple[Int8[np.ndarray, "m n"], Float[np.ndarray, "m"]]:
    """Codes −127 … 127 of some rows, to nearest, ties to even; and the rows' scales. A row of zeros has scale 0."""
    w = w.astype(np.float32, copy=False)
    scales = np.abs(w).max(axis=1)
    return np.rint(w / np.where(scales, scales, 1)[:, None] * 127).astype(np.int8), scales


def encode_nf4(w: Float[np.ndarray, "n"]) -> tuple[UInt8[np.ndarray, "half_n"], Float[np.ndarray, "blocks"]]:
    """Codes of some whole blocks, or of the last and shorter one too, two a byte; and their scales.

    Half way between two levels the lower is taken. A whole block is multiplied by the reciprocal of its scale,
    the shorter one divided by it, and its scale is never below 1e-38: so does bitsandbytes.
    """
    blocks = pad(w.astype(np.float32, copy=False), BLOCK)
    scales = np.abs(blocks).max(axis=1)
    scaled = blocks * (1 / np.maximum(scales, TINY))[:, None]
    if len(w) % BLOCK:
        scales[-1] = max(scales[-1], TINY)
        scaled[-1] = blocks[-1] / scales[-1]
    codes = np.searchsorted((NF4[:-1] + NF4[1:]) / 2, scaled).astype(np.uint8).reshape(-1, 2)
    return (codes[:, 0] << 4 | codes[:, 1])[: -(-len(w) // 2)], scales


def compress(scales: Float[np.ndarray, "blocks"], offset: np.float32 | None = None) -> dict[str, np.ndarray]:
    r"""Scales in 8 bits: $s \approx \bar s + g\,m_c$, one g for 256 of them. ``offset`` is the mean, $\bar s$.

    The mean is taken in float64 and rounded once, so that it is the same whatever the order. bitsandbytes on a
    CPU first rounds $(s - \bar s) / g$ to one of 65,536 even steps, and looks the code up; so do we.
    """
    offset = np.float32(scales.mean(dtype=np.float64)) if offset is None else offset
    groups = pad(scales - offset, GROUP)
    group_scales = np.abs(groups).max(axis=1)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # no spread: 0 · ∞, which has code 0
        scaled = np.clip(np.nan_to_num(groups * (1 / group_scales)[:, None], nan=-1), -1, 1)
    steps = ((scaled + 1) * np.float32(0.5) * 65535 + np.float32(0.5)).astype(np.uint16)
    codes = dynamic_codes()[steps].reshape(-1)[: len(scales)]
    return {"scales": codes, "group_scales": group_scales, "offset": np.array(offset)}


def block_scales(q: Quantized) -> Float[np.ndarray, "blocks"]:
    """The scale of each block of a matrix in NF4, decompressed where it was compressed."""
    if q.kind == "nf4":
        return q.parts["scales"]
    scales = pad(dynamic_levels()[q.parts["scales"]], GROUP) * q.parts["group_scales"][:, None]
    return scales.reshape(-1)[: len(q.parts["scales"])] + q.parts["offset"]


def pad(x: np.ndarray, width: int) -> np.ndarray:
    """Rows of that width, the last one filled up with zeros."""
    flat = x.reshape(-1)
    short = -len(flat) % width
    return (np.concatenate([flat, np.zeros(short, x.dtype)]) if short else flat).reshape(-1, width)


@cache
def pairs_of_levels() -> Float[np.ndarray, "256 2"]:
    """The two levels that a byte of NF4 codes stands for, upper half first."""
    byte = np.arange(256)
    return NF4[np.stack([byte >> 4, byte & 15], axis=1)]


@cache
def dynamic_levels() -> Float[np.ndarray, "256"]:
    r"""The 8-bit dynamic type: a float whose exponent and fraction share seven bits (Dettmers 2015, arXiv:1511.04561).

    After the sign, k zeros say the power $10^{-k}$, k = 0 … 6; a one ends them; the 6 − k bits left count even
    parts of 0.1 … 1, and the middle of a part is its level. With 0 and 1 they are 256.

    >>> dynamic_levels()[[0, 127, 128, 254, 255]]
    array([-9.9296874e-01,  0.0000000e+00,  5.5000004e-07,  9.9296874e-01,
            1.0000000e+00], dtype=float32)
    """
    low, high = np.float32(0.1), np.float32(1)
    levels = [np.zeros(1, np.float32), np.ones(1, np.float32)]
    for k in range(7):
        parts = 2 ** (6 - k)
        step, i = np.float64(high - low) / parts, np.arange(parts + 1)
        up, down = (low + step * i).astype(np.float32), (high - step * (parts - i)).astype(np.float32)
        edges = np.where(i < (parts + 1) // 2, up, down)  # counted from the nearer end: as torch.linspace rounds
        middles = (edges[:-1] + edges[1:]) / 2 * np.float32(10.0**-k)
        levels += [middles, -middles]
    return np.sort(np.concatenate(levels))


@cache
def dynamic_codes() -> UInt8[np.ndarray, "65536"]:
    """The nearest dynamic level of each of 65,536 even steps from −1 to 1."""
    levels = dynamic_levels()
    return np.searchsorted((levels[:-1] + levels[1:]) / 2, np.linspace(-1, 1, 65536, dtype=np.float32)).astype(np.uint8)
