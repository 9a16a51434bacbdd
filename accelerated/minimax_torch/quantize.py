r"""Twin of `minimax_numpy.quantize`: the same codes and scales to the bit, on tensors of any device.

`Quantized` is a module here, its parts buffers, so that a model's moves take it along. It stands where a parameter
stood (`replace_parameter`): torch functions take it for the matrix that it is, and dequantise it then and there.
"""

from collections.abc import Callable
from functools import cache
from math import prod
from operator import index
from typing import SupportsIndex

import minimax_numpy.quantize as reference
import numpy as np
import torch
from jaxtyping import Float, Int8, UInt8
from minimax_numpy.quantize import (
    AT_A_TIME,
    BLOCK,
    GROUP,
    NF4,
    TINY,
    check_weights,
    dynamic_codes,
    dynamic_levels,
    layout,
    pairs_of_levels,
)
from torch import Tensor, nn


class Quantized(nn.Module):
    """Twin of [Quantized][minimax_numpy.quantize.Quantized].

    ``module.to(dtype)`` and its like say what it is dequantised to; its scales stay as they are.
    """

    codes: Tensor
    scales: Tensor
    group_scales: Tensor
    offset: Tensor

    def __init__(
        self,
        kind: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        parts: dict[str, Tensor] | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.kind, self.shape, self.dtype = kind, tuple(shape), dtype
        for name, (part, t) in layout(shape, kind).items():
            x = torch.empty(part, dtype=getattr(torch, t), device=device) if parts is None else parts[name]
            self.register_buffer(name, x)

    @classmethod
    def from_reference(cls, q: reference.Quantized, dtype: torch.dtype | None = None, device=None) -> "Quantized":
        """The twin of a quantised array: the same codes and scales, copied."""
        dtype = getattr(torch, q.dtype.name) if dtype is None else dtype
        return cls(q.kind, q.shape, dtype, {name: torch.tensor(x, device=device) for name, x in q.parts.items()})

    @property
    def parts(self) -> dict[str, Tensor]:
        """Name → tensor, as in [layout][minimax_numpy.quantize.layout]."""
        return dict(self.named_buffers())

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
    def T(self) -> Float[Tensor, "n m"]:
        """The matrix, dequantised and transposed."""
        return self.dequantize().T

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        def wide(x):
            return x.dequantize() if isinstance(x, Quantized) else x

        return function(*map(wide, args), **{name: wide(x) for name, x in (kwargs or {}).items()})

    def __iter__(self):
        return (self[expert] for expert in range(len(self)))

    def __getitem__(self, expert: SupportsIndex) -> "Quantized":
        if self.ndim != 3:
            raise TypeError("A quantised matrix has no rows to pick; dequantize() it first.")
        e = index(expert)  # one, never a slice of them
        return Quantized(self.kind, self.shape[1:], self.dtype, {name: x[e] for name, x in self.parts.items()})

    def __setitem__(self, expert: SupportsIndex, matrix: "Quantized") -> None:
        for name, x in self.parts.items():
            x[expert] = matrix.parts[name]

    def _apply(self, fn, recurse=True):
        moved = fn(torch.empty(0, dtype=self.dtype, device=self.codes.device))
        self.dtype = moved.dtype
        return super()._apply(lambda x: x.to(moved.device), recurse)

    def dequantize(self) -> Float[Tensor, "*E m n"]:
        """Twin of [dequantize][minimax_numpy.quantize.Quantized.dequantize]."""
        if self.ndim == 3:
            return torch.stack([matrix.dequantize() for matrix in self])
        if self.kind == "int8":
            wide = self.codes.float()
            wide /= wide.new_full((1,), 127)  # by a plain number CUDA multiplies with its inverse, which rounds twice
            wide *= self.scales[:, None]
        else:
            wide = pad(table(pairs_of_levels, self.codes.device)[self.codes.int()], BLOCK)
            wide *= block_scales(self)[:, None]
            wide = wide.reshape(-1)[: self.size].reshape(self.shape)
        return wide.to(self.dtype)


def quantize(w: Float[Tensor, "*E m n"], kind: str, dtype: torch.dtype | None = None) -> Quantized:
    """Twin of [quantize][minimax_numpy.quantize.quantize]."""
    check_weights(w, kind)
    w, dtype = w.detach(), w.dtype if dtype is None else dtype
    if w.ndim == 3:
        stack = Quantized(kind, w.shape, dtype, device=w.device)
        for expert, matrix in enumerate(w):
            stack[expert] = quantize(matrix, kind)
        return stack
    if kind == "int8":
        pieces = [encode_int8(x) for x in w.chunk(-(-w.numel() // AT_A_TIME))]
    else:
        pieces = [encode_nf4(x) for x in w.reshape(-1).split(AT_A_TIME)]
    codes, scales = (torch.cat(part) for part in zip(*pieces))
    parts = {"codes": codes, "scales": scales}
    return Quantized(kind, w.shape, dtype, parts | (compress(scales) if kind == "nf4-double" else {}))


def error_bound(q: Quantized) -> Float[Tensor, "m n"]:
    """Twin of [error_bound][minimax_numpy.quantize.error_bound], which it asks."""
    parts = {name: x.cpu().numpy() for name, x in q.parts.items()}
    bound = reference.error_bound(reference.Quantized(q.kind, q.shape, np.float32, parts))
    return torch.tensor(bound, device=q.codes.device)


def encode_int8(w: Float[Tensor, "m n"]) -> tuple[Int8[Tensor, "m n"], Float[Tensor, "m"]]:
    """Twin of [encode_int8][minimax_numpy.quantize.encode_int8]."""
    w = w.float()
    scales = w.abs().amax(dim=1)
    return torch.round(w / torch.where(scales > 0, scales, 1)[:, None] * 127).to(torch.int8), scales


def encode_nf4(w: Float[Tensor, "n"]) -> tuple[UInt8[Tensor, "half_n"], Float[Tensor, "blocks"]]:
    """Twin of [encode_nf4][minimax_numpy.quantize.encode_nf4]."""
    blocks = pad(w.float(), BLOCK)
    scales = blocks.abs().amax(dim=1)
    scaled = blocks * (1 / scales.clamp(min=float(TINY)))[:, None]
    if len(w) % BLOCK:
        scales[-1].clamp_(min=float(TINY))
        scaled[-1] = blocks[-1] / scales[-1]
    levels = torch.tensor(NF4, device=w.device)
    codes = torch.bucketize(scaled, (levels[:-1] + levels[1:]) / 2).to(torch.uint8).reshape(-1, 2)
    return (codes[:, 0] << 4 | codes[:, 1])[: -(-len(w) // 2)], scales


def compress(scales: Float[Tensor, "blocks"], offset: Tensor | None = None) -> dict[str, Tensor]:
    """Twin of [compress][minimax_numpy.quantize.compress]."""
    offset = scales.double().mean().float() if offset is None else offset
    groups = pad(scales - offset, GROUP)
    group_scales = groups.abs().amax(dim=1)
    scaled = (groups * (1 / group_scales)[:, None]).nan_to_num(nan=-1).clamp(-1, 1)
    steps = ((scaled + 1) * 0.5 * 65535 + 0.5).int()
    codes = table(dynamic_codes, scales.device)[steps].reshape(-1)[: len(scales)]
    return {"scales": codes, "group_scales": group_scales, "offset": offset}


def block_scales(q: Quantized) -> Float[Tensor, "blocks"]:
    """Twin of [block_scales][minimax_numpy.quantize.block_scales]."""
    if q.kind == "nf4":
        return q.scales
    scales = pad(table(dynamic_levels, q.codes.device)[q.scales.int()], GROUP) * q.group_scales[:, None]
    return scales.reshape(-1)[: len(q.scales)] + q.offset


def pad(x: Tensor, width: int) -> Tensor:
    """Twin of [pad][minimax_numpy.quantize.pad]."""
    flat = x.reshape(-1)
    short = -len(flat) % width
    return (nn.functional.pad(flat, (0, short)) if short else flat).reshape(-1, width)


@cache
def table(of: Callable[[], np.ndarray], device: torch.device) -> Tensor:
    """One of the reference's tables on a device, made once."""
    return torch.tensor(of(), device=device)


def replace_parameter(model: nn.Module, name: str, q: Quantized) -> None:
    """Put a quantised matrix where the parameter of that name was."""
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    delattr(module, last)
    module.register_module(last, q)
