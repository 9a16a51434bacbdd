"""Packed documents: several sequences end to end in one row, each blind to the others.

A packed row is a batch of short rows written without its padding. So attention takes it apart into that
batch, where padding already does no harm, and puts the result together again; everything else in the model
looks at one token at a time and need not know.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from ..shapes import Mask

Boundaries = Int[np.ndarray, "N_plus_1"]
"""Where each of N documents starts, and where the last one ends: 0 … T."""


def document_rows(cu_seqlens: Boundaries) -> tuple[Int[np.ndarray, "N longest"], Mask]:
    """Position in the packed row of each token of each document, and which of them are real.

    >>> rows, mask = document_rows(np.array([0, 3, 5]))
    >>> rows
    array([[0, 1, 2],
           [3, 4, 0]])
    """
    starts, lengths = cu_seqlens[:-1, None], np.diff(cu_seqlens)[:, None]
    local = np.arange(lengths.max())
    mask = local < lengths  # (N, longest)
    return np.where(mask, starts + local, 0), mask


def unpack(x: Float[np.ndarray, "1 H T d"], rows: Int[np.ndarray, "N longest"]) -> Float[np.ndarray, "N H longest d"]:
    """Give each document a row of its own."""
    return x[0][:, rows].swapaxes(0, 1)


def pack(x: Float[np.ndarray, "N H longest d"], mask: Bool[np.ndarray, "N longest"]) -> Float[np.ndarray, "1 H T d"]:
    """Undo `unpack`, leaving the padding out."""
    return x.swapaxes(1, 2)[mask].swapaxes(0, 1)[None]  # (N, longest, H, d) → (T, H, d) → (1, H, T, d)
