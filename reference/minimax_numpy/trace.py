"""Every part of a run by name: watch it, round it, or replace it.

The model passes each part through `record`. Outside a `recording` block that does nothing. Inside one, a
`Trace` keeps what it is shown, and may hand something else back: the part rounded to a type, or the truth's
own value, so that what comes after is judged by itself.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

_watchers: list[Callable[[str, np.ndarray], np.ndarray]] = []


def record(name: str, x: np.ndarray) -> np.ndarray:
    """Show a part to whoever is watching; go on with what they hand back."""
    return _watchers[-1](name, x) if _watchers else x


@contextmanager
def recording(watcher: Callable[[str, np.ndarray], np.ndarray]) -> Iterator[None]:
    """Let ``watcher(name, x) -> x`` see every part until the block ends."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.pop()


WIDE = re.compile(r"(self_attn\.state|mlp\.gate(\.weights)?|loss)$")
"""Parts that are float32 at least, whatever the activations' type."""


class Trace(dict[str, np.ndarray]):
    """The parts of one call, name → array.

    Parameters
    ----------
    round_to : {"float16", "bfloat16", "float32", "float64"}, optional
        Round each part before going on: what a model in that type does, computed in the array's own.
    force : mapping, optional
        Go on with these values instead of what was computed; what was computed is kept.
    """

    def __init__(self, round_to: str | None = None, force: Mapping[str, np.ndarray] | None = None):
        super().__init__()
        self.round_to, self.force = round_to, force or {}

    def __call__(self, name: str, x: np.ndarray) -> np.ndarray:
        narrow = self.round_to if np.issubdtype(x.dtype, np.floating) and not WIDE.search(name) else None
        self[name] = x = round_to(x, narrow) if narrow else x
        if name not in self.force:
            return x
        forced = self.force[name]
        return (round_to(forced, narrow) if narrow else forced).astype(x.dtype)


UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of rounding to each type, u."""


def round_to(x: np.ndarray, dtype: str) -> np.ndarray:
    """Round to the nearest number of a type, ties to even, and keep the array's own type.

    bfloat16 is the upper half of a float32, so it is rounded on the bits. Raises ValueError for a type that
    is not in `UNIT_ROUNDOFF`.

    >>> round_to(np.array([1.00390625, 1.01171875]), "bfloat16")
    array([1.      , 1.015625])
    >>> round_to(np.array(1.00390625), "bfloat16").shape
    ()
    """
    if dtype not in UNIT_ROUNDOFF:
        raise ValueError(f"dtype is {dtype!r}; there are {', '.join(UNIT_ROUNDOFF)}.")
    if dtype != "bfloat16":
        return x.astype(dtype).astype(x.dtype)
    return bfloat16_to_float32(float32_to_bfloat16(x.astype(np.float32))).astype(x.dtype)


def float32_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The 16 bits of each bfloat16, as uint16: NumPy has no such type."""
    bits = np.asarray(x, dtype=np.float32, order="C").view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even
    return np.where(np.isnan(x), (bits >> 16) | 0x40, rounded >> 16).astype(np.uint16)


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """The exact float32 of each bfloat16."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)
