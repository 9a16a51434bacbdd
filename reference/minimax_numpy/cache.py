"""What a model remembers between calls: a state for each lightning layer, keys and values for each softmax layer.

A lightning layer's memory has one size for ever. A softmax layer's grows by a slot a token, and **a token's
slot is its position**: padding has none, so nothing in here ever needs a mask.
"""

import numpy as np
from jaxtyping import Float

from .config import LIGHTNING, MiniMaxConfig
from .shapes import GroupedKeys, GroupedValues, Mask, Positions


class LightningMemory:
    """The state of one lightning layer, [B, H, d, d]; ``None`` before the first token."""

    def __init__(self):
        self.state: Float[np.ndarray, "B H d e"] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 0 if self.state is None else self.state.nbytes


class SoftmaxMemory:
    """Keys (after rotary) and values of one softmax layer, in slots."""

    def __init__(self):
        self._slots: Float[np.ndarray, "2 B G capacity d"] | None = None  # keys and values side by side
        self._used = 0

    @property
    def keys(self) -> GroupedKeys | None:
        """(B, G, J, d), a view; slots past a row's own length are zero."""
        return None if self._slots is None else self._slots[0, :, :, : self._used]

    @property
    def values(self) -> GroupedValues | None:
        """(B, G, J, d), a view."""
        return None if self._slots is None else self._slots[1, :, :, : self._used]

    @property
    def nbytes(self) -> int:
        """Bytes held, reserve included."""
        return 0 if self._slots is None else self._slots.nbytes

    def append(
        self,
        k: Float[np.ndarray, "B G T d"],
        v: Float[np.ndarray, "B G T e"],
        slots: Positions,
        mask: Mask | None,
    ) -> tuple[GroupedKeys, GroupedValues]:
        """Write each real token's key and value into its slot; return all of them."""
        real = np.ones(slots.shape, bool) if mask is None else mask
        used = max(self._used, int(slots[real].max(initial=-1)) + 1)
        held = self._reserve(used, k)
        row, t = np.nonzero(real)
        for buffer, new in zip(held, (k, v), strict=True):
            buffer[row, :, slots[row, t]] = new[row, :, t]  # (real tokens, G, d)
        self._used = used
        return held[0, :, :, :used], held[1, :, :, :used]

    def _reserve(self, used: int, like: Float[np.ndarray, "B G T d"]) -> Float[np.ndarray, "2 B G capacity d"]:
        """Make room by doubling, so that a token costs no copy of the whole; return all of it."""
        capacity = 0 if self._slots is None else self._slots.shape[3]
        if self._slots is not None and used <= capacity:
            return self._slots
        B, G, _, d = like.shape
        grown = np.zeros((2, B, G, max(used, 2 * capacity), d), like.dtype)
        if self._slots is not None:
            grown[:, :, :, : self._used] = self._slots[:, :, :, : self._used]
        self._slots = grown
        return grown


class Cache:
    """The memory of a batch of rows, one entry a layer, and how many real tokens each row has seen.

    A forward call with ``cache=`` continues from it and advances it in place.
    """

    def __init__(self, config: MiniMaxConfig, batch_size: int):
        self.config = config
        self.lengths = np.zeros(batch_size, np.int64)
        self.layers = [LightningMemory() if kind == LIGHTNING else SoftmaxMemory() for kind in config.layer_types]

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.nbytes for layer in self.layers)
