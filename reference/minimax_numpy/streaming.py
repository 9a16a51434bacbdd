r"""A model larger than memory: weights stay in their shards and are read as they are multiplied.

$$y = x W^\top = \bigl[\,x W_{0:r}^\top \;\big|\; x W_{r:2r}^\top \;\big|\; \dots\,\bigr]$$

Rows of W are columns of y, so a block of rows is read, multiplied and forgotten. A `Matrix` does that wherever
an array would stand, `x @ m.T`; a `Stack` of experts hands out one for each expert that is asked for, so that
experts to which no token was sent are never read. Layers and ops need not know.
"""

import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from .checkpoint import STORED, Checkpoint, all_finite, plan_loading
from .config import MiniMaxConfig, is_router
from .trace import round_to

BLOCK = 16 * 2**20
"""Bytes of working memory for the rows read at a time, as stored and as computed; a single row may be larger."""
NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""How safetensors calls each type."""


class Rows(NamedTuple):
    """Rows ``start`` … ``stop`` − 1 of a tensor on disk, whose leading axes are taken as one."""

    name: str
    start: int
    stop: int


def cut(rows: Rows, row_bytes: int) -> Iterator[Rows]:
    """Cut rows into blocks of as many as BLOCK holds, one at least, where each takes so many bytes."""
    held = max(1, BLOCK // row_bytes)
    for start in range(rows.start, rows.stop, held):
        yield Rows(rows.name, start, min(start + held, rows.stop))


class Scratch(threading.local):
    """Working memory of one thread, taken again for every block."""

    def __init__(self):
        self.memory = np.empty(0, np.uint8)

    def __reduce__(self):
        return Scratch, ()  # a copy of a model takes its own

    def arrays(self, shape: tuple[int, ...], dtypes: list[np.dtype]) -> list[np.ndarray]:
        """An array for each dtype, side by side; whatever an earlier call returned is overwritten."""
        sizes = [prod(shape) * dtype.itemsize for dtype in dtypes]
        starts = [0, *accumulate(-(-size // 64) * 64 for size in sizes)]  # each is aligned
        if starts[-1] > len(self.memory):
            self.memory = np.empty(starts[-1], np.uint8)
        places = zip(starts, sizes, dtypes)
        return [self.memory[start : start + size].view(dtype).reshape(shape) for start, size, dtype in places]


@dataclass(frozen=True)
class Source:
    """The shards, and what becomes of each block that is read: a type, and perhaps a function of the block."""

    checkpoint: Checkpoint
    scratch: Scratch
    change: Callable[[np.ndarray], np.ndarray] | None = None

    def blocks(self, rows: Rows, width: int, dtype: np.dtype) -> Iterator[tuple[Rows, Float[np.ndarray, "r n"]]]:
        """Read rows, as many at a time as BLOCK holds; a block lasts until the next one is asked for."""
        stored = np.dtype(STORED[self.checkpoint.entry(rows.name).dtype])
        wide = [np.dtype(np.float32)] if stored == np.uint16 else []  # bfloat16 is the upper half of a float32
        kinds = list({stored, *wide, dtype})
        for part in cut(rows, width * sum(kind.itemsize for kind in kinds)):
            arrays = dict(zip(kinds, self.scratch.arrays((part.stop - part.start, width), kinds)))
            block = self.checkpoint.rows(*part, arrays[stored])
            if wide:
                np.left_shift(block, 16, out=arrays[wide[0]].view(np.uint32), dtype=np.uint32)
                block = arrays[wide[0]]
            if block.dtype != dtype:
                arrays[dtype][...] = block
                block = arrays[dtype]
            if self.change is not None:
                block[...] = self.change(block)
            yield part, block


@dataclass(frozen=True)
class Matrix:
    """A matrix [m, n] on disk: rows of one tensor, or of several, one above the other.

    ``x @ matrix.T`` multiplies it a block of rows at a time, ``matrix[ids]`` reads those rows alone, and
    ``np.asarray`` all of it. Raises ValueError, naming the tensor, where a number that is read is not finite.
    """

    source: Source
    rows: tuple[Rows, ...]
    width: int
    dtype: np.dtype

    __array_ufunc__ = None  # so that x @ matrix.T is asked of the matrix
    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        """[m, n]."""
        return sum(rows.stop - rows.start for rows in self.rows), self.width

    @property
    def size(self) -> int:
        """m · n."""
        return len(self) * self.width

    @property
    def nbytes(self) -> int:
        """Bytes that it would take in memory."""
        return self.size * self.dtype.itemsize

    @property
    def T(self) -> "Transposed":
        """The other side of a product."""
        return Transposed(self)

    def __len__(self) -> int:
        return self.shape[0]

    def __abs__(self) -> "Matrix":
        first = self.source.change or np.asarray
        return replace(self, source=replace(self.source, change=lambda block: np.abs(first(block))))

    def __getitem__(self, ids: int | Int[np.ndarray, "*axes"]) -> Float[np.ndarray, "*axes n"]:
        found, place = np.unique(ids, return_inverse=True)
        out = np.empty((len(found), self.width), self.dtype)
        (rows,) = self.rows
        for i, row in enumerate((rows.start + found).tolist()):
            for part, block in self.source.blocks(Rows(rows.name, row, row + 1), self.width, self.dtype):
                self.source.checkpoint.check_finite(part.name, block)
                out[i] = block
        return out[place.reshape(np.shape(ids))]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        out, at = np.empty(self.shape, self.dtype), 0
        for part, block in self.blocks():
            self.source.checkpoint.check_finite(part.name, block)
            out[at : at + len(block)] = block
            at += len(block)
        return out if dtype is None else out.astype(dtype, copy=False)

    def blocks(self) -> Iterator[tuple[Rows, Float[np.ndarray, "r n"]]]:
        """Its rows from the first to the last, a block at a time."""
        for rows in self.rows:
            yield from self.source.blocks(rows, self.width, self.dtype)

    def multiply(self, x: Float[np.ndarray, "*axes n"]) -> Float[np.ndarray, "*axes m"]:
        """$x W^\\top$. A block that is not finite shows in every product with it, which is smaller to look at."""
        x = x.astype(np.result_type(x.dtype, self.dtype), copy=False)
        y, at = np.empty((*x.shape[:-1], len(self)), x.dtype), 0
        for part, block in self.blocks():
            product = x @ block.T
            if not all_finite(product):
                self.source.checkpoint.check_finite(part.name, block)
            y[..., at : at + len(block)] = product
            at += len(block)
        return y


@dataclass(frozen=True)
class Transposed:
    """What ``x @ matrix.T`` multiplies by."""

    matrix: Matrix
    __array_ufunc__ = None

    def __rmatmul__(self, x: Float[np.ndarray, "*axes n"]) -> Float[np.ndarray, "*axes m"]:
        return self.matrix.multiply(x)


@dataclass(frozen=True)
class Stack:
    """A stack of experts [E, m, n] on disk; ``stack[e]`` is a `Matrix`, and nothing is read before it is used."""

    matrices: tuple[Matrix, ...]
    ndim = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """[E, m, n]."""
        return len(self.matrices), *self.matrices[0].shape

    @property
    def dtype(self) -> np.dtype:
        """The type its experts are computed in."""
        return self.matrices[0].dtype

    @property
    def size(self) -> int:
        """E · m · n."""
        return sum(matrix.size for matrix in self.matrices)

    @property
    def nbytes(self) -> int:
        """Bytes that it would take in memory."""
        return sum(matrix.nbytes for matrix in self.matrices)

    def __len__(self) -> int:
        return len(self.matrices)

    def __getitem__(self, e: int | np.integer) -> Matrix:
        return self.matrices[e]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.stack([np.asarray(matrix, dtype) for matrix in self.matrices])


class Streamed(Mapping):
    """The weights of a model, or of some ``layers`` of it, read from their shards whenever they are used.

    Vectors and routers come as arrays, other matrices as `Matrix`, experts as `Stack`. ``dtype`` None keeps the
    stored type where NumPy has it, and takes float32 for bfloat16; routers are float32 at least. ``rounded``
    names a type to which each number is rounded first.

    Raises FileNotFoundError or ValueError, as loading does, before any number is read.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        config: MiniMaxConfig,
        head: str,
        dtype=None,
        layers: Collection[int] | None = None,
        rounded: str | None = None,
    ):
        self.path, self.config, self.head, self.layers = path, config, head, layers
        self.dtype = None if dtype is None else np.dtype(dtype)
        self.rounded = rounded
        self.checkpoint = Checkpoint(path)
        self.plan = plan_loading(self.checkpoint, config, head, layers)
        self.shapes = {name: config.parameter_shapes(head)[name] for name in self.plan}
        self._scratch = Scratch()

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[str]:
        return iter(self.plan)

    def __contains__(self, name) -> bool:
        return name in self.plan

    def __getitem__(self, name: str) -> np.ndarray | Matrix | Stack:
        parts, shape = self.plan[name], self.shapes[name]
        stored = self.checkpoint.entry(parts[0][0]).dtype
        change = None
        if self.rounded and stored != NAMES[self.rounded] and not is_router(name):
            change = self._round
        source = Source(self.checkpoint, self._scratch, change)
        dtype = kept_type(name, stored, self.dtype)
        if len(shape) == 3:
            return Stack(tuple(Matrix(source, rows, shape[2], dtype) for rows in rows_of_experts(parts, shape)))
        rows = shape[0] if len(shape) == 2 else 1
        matrix = Matrix(source, (Rows(parts[0][0], 0, rows),), shape[-1], dtype)
        whole = len(shape) == 1 or is_router(name)
        return np.asarray(matrix).reshape(shape) if whole else matrix

    def again(self, dtype, rounded: str | None = None) -> "Streamed":
        """The same weights in another type."""
        return Streamed(self.path, self.config, self.head, dtype, self.layers, rounded)

    def _round(self, block: np.ndarray) -> np.ndarray:
        return round_to(block, self.rounded or "float64")


def kept_type(name: str, stored: str, dtype: np.dtype | None) -> np.dtype:
    """The type that a weight is computed in; routers are at least float32 where a type is asked for."""
    if dtype is None:
        return np.dtype(np.float32 if stored == "BF16" else STORED[stored])
    return np.promote_types(dtype, np.float32) if is_router(name) else dtype


def rows_of_experts(parts: list[tuple[str, tuple]], shape: tuple[int, ...]) -> list[tuple[Rows, ...]]:
    """Where each expert of a stack [E, m, n] lies: in a stack on disk, or in tensors of its own.

    ``parts`` are those of [pieces][minimax_numpy.checkpoint.pieces].
    """
    E, m = shape[:2]
    if len(parts) == 1 and parts[0][1] == ():
        return [(Rows(parts[0][0], e * m, (e + 1) * m),) for e in range(E)]
    each = m * E // len(parts)  # gate and up are two tensors, m/2 rows each
    return [tuple(Rows(name, 0, each) for name, where in parts if where[0] == e) for e in range(E)]
