"""Twin of `minimax_numpy.streaming`: blocks of rows as tensors, on any device.

A `Matrix` stands where a module's parameter stood, and answers `F.linear` and `F.embedding` in its place; so the
layers are those of a model in memory. A streamed model is not trained: its blocks are gone when gradients come.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from minimax_numpy.checkpoint import STORED, Checkpoint, plan_loading
from minimax_numpy.config import MiniMaxConfig, is_router
from minimax_numpy.streaming import Rows, Scratch, cut, rows_of_experts
from torch import Tensor

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Source:
    """Twin of [Source][minimax_numpy.streaming.Source]; each block goes to a device."""

    checkpoint: Checkpoint
    scratch: Scratch
    device: torch.device

    def blocks(self, rows: Rows, width: int, dtype: torch.dtype) -> Iterator[tuple[Rows, Float[Tensor, "r n"]]]:
        """Read rows, as many at a time as BLOCK holds; a block lasts until the next one is asked for."""
        name = self.checkpoint.entry(rows.name).dtype
        kinds = [np.dtype(STORED[name]), np.dtype(f"i{dtype.itemsize}")]  # as stored; bits of what is computed
        for part in cut(rows, width * sum(kind.itemsize for kind in kinds)):
            bits, held = self.scratch.arrays((part.stop - part.start, width), kinds)
            block = torch.from_numpy(self.checkpoint.rows(*part, bits)).view(TYPES[name])
            if self.device.type == "cpu" and block.dtype != dtype:  # a new array a block would break the heap up
                yield part, torch.from_numpy(held).view(dtype).copy_(block)
            else:
                yield part, block.to(self.device).to(dtype)


@dataclass(frozen=True)
class Matrix:
    """Twin of [Matrix][minimax_numpy.streaming.Matrix]; `F.linear` and `F.embedding` take it for a weight."""

    source: Source
    rows: tuple[Rows, ...]
    width: int
    dtype: torch.dtype

    ndim = 2

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        named = named or {}
        if function is F.linear:
            x, matrix, bias = (*arguments, named.get("bias"))[:3]
            y = matrix.multiply(x)
            return y if bias is None else y + bias
        if function is F.embedding:
            return arguments[1][arguments[0]]
        return NotImplemented

    @property
    def shape(self) -> torch.Size:
        """[m, n]."""
        return torch.Size((sum(rows.stop - rows.start for rows in self.rows), self.width))

    @property
    def size(self) -> int:
        """m · n."""
        return len(self) * self.width

    @property
    def nbytes(self) -> int:
        """Bytes that it would take in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: Int[Tensor, "*axes"]) -> Float[Tensor, "*axes n"]:
        found, place = torch.unique(ids, return_inverse=True)
        out = torch.empty(len(found), self.width, dtype=self.dtype, device=self.source.device)
        (rows,) = self.rows
        for i, row in enumerate((rows.start + found).tolist()):
            for part, block in self.source.blocks(Rows(rows.name, row, row + 1), self.width, self.dtype):
                check_finite(self.source.checkpoint, part.name, block)
                out[i] = block[0]
        return out[place]

    def whole(self) -> Tensor:
        """All of it, read."""
        out, at = torch.empty(self.shape, dtype=self.dtype, device=self.source.device), 0
        for part, block in self.blocks():
            check_finite(self.source.checkpoint, part.name, block)
            out[at : at + len(block)] = block
            at += len(block)
        return out

    def blocks(self) -> Iterator[tuple[Rows, Float[Tensor, "r n"]]]:
        """Its rows from the first to the last, a block at a time."""
        for rows in self.rows:
            yield from self.source.blocks(rows, self.width, self.dtype)

    def multiply(self, x: Float[Tensor, "*axes n"]) -> Float[Tensor, "*axes m"]:
        """$x W^\\top$. A block that is not finite shows in every product with it, which is smaller to look at."""
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError("A streamed model has no gradients; load it without stream=True to train it.")
        y, at = x.new_empty((*x.shape[:-1], len(self))), 0
        for part, block in self.blocks():
            product = F.linear(x, block)
            if not all_finite(product):
                check_finite(self.source.checkpoint, part.name, block)
            y[..., at : at + len(block)] = product
            at += len(block)
        return y


@dataclass(frozen=True)
class Stack:
    """Twin of [Stack][minimax_numpy.streaming.Stack]."""

    matrices: tuple[Matrix, ...]
    ndim = 3

    @property
    def shape(self) -> torch.Size:
        """[E, m, n]."""
        return torch.Size((len(self.matrices), *self.matrices[0].shape))

    @property
    def dtype(self) -> torch.dtype:
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

    def __getitem__(self, e: int) -> Matrix:
        return self.matrices[e]

    def whole(self) -> Tensor:
        """All experts, read."""
        return torch.stack([matrix.whole() for matrix in self.matrices])


class Streamed(Mapping):
    """Twin of [Streamed][minimax_numpy.streaming.Streamed]; ``dtype`` None keeps every stored type."""

    def __init__(
        self,
        path: str | os.PathLike,
        config: MiniMaxConfig,
        head: str,
        dtype: torch.dtype | None = None,
        layers: Collection[int] | None = None,
        device: torch.device | str | None = None,
    ):
        self.dtype, self.device = dtype, torch.device(device or "cpu")
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

    def __getitem__(self, name: str) -> Tensor | Matrix | Stack:
        parts, shape = self.plan[name], self.shapes[name]
        source = Source(self.checkpoint, self._scratch, self.device)
        dtype = kept_type(name, self.checkpoint.entry(parts[0][0]).dtype, self.dtype)
        if len(shape) == 3:
            return Stack(tuple(Matrix(source, rows, shape[2], dtype) for rows in rows_of_experts(parts, shape)))
        rows = shape[0] if len(shape) == 2 else 1
        matrix = Matrix(source, (Rows(parts[0][0], 0, rows),), shape[-1], dtype)
        whole = len(shape) == 1 or is_router(name)
        return matrix.whole().reshape(shape) if whole else matrix


def kept_type(name: str, stored: str, dtype: torch.dtype | None) -> torch.dtype:
    """Twin of [kept_type][minimax_numpy.streaming.kept_type]."""
    dtype = dtype or TYPES[stored]
    return torch.promote_types(dtype, torch.float32) if is_router(name) else dtype


def all_finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite, without a copy."""
    return not x.numel() or bool(torch.stack(x.aminmax()).isfinite().all())


def check_finite(checkpoint: Checkpoint, name: str, x: Tensor) -> None:
    """Refuse numbers read from a tensor of which some are NaN or infinite."""
    if not all_finite(x):
        checkpoint.check_finite(name, x.double().cpu().numpy())
