"""Twin of `minimax_numpy.cache`: same names, same order, on tensors."""

import torch
from jaxtyping import Float
from minimax_numpy.config import LIGHTNING, MiniMaxConfig
from torch import Tensor

from .shapes import GroupedKeys, GroupedValues, Mask, Positions


class LightningMemory:
    """Twin of [LightningMemory][minimax_numpy.cache.LightningMemory]."""

    def __init__(self):
        self.state: Float[Tensor, "B H d e"] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 0 if self.state is None else self.state.nbytes


class SoftmaxMemory:
    """Twin of [SoftmaxMemory][minimax_numpy.cache.SoftmaxMemory].

    While gradients flow, each call writes into a copy, so that an earlier call's graph stays whole.
    """

    def __init__(self):
        self._slots: Float[Tensor, "2 B G capacity d"] | None = None  # keys and values side by side
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
        k: Float[Tensor, "B G T d"],
        v: Float[Tensor, "B G T e"],
        slots: Positions,
        mask: Mask | None,
    ) -> tuple[GroupedKeys, GroupedValues]:
        """Write each real token's key and value into its slot; return all of them."""
        real = torch.ones_like(slots, dtype=torch.bool) if mask is None else mask
        real = real.expand(k.shape[0], -1)
        used = max(self._used, int(torch.where(real, slots, -1).max()) + 1)
        held = self._reserve(used, k)
        row, t = real.nonzero(as_tuple=True)
        slot = slots.expand(k.shape[0], -1)[row, t]
        held[:, row, :, slot] = torch.stack([k, v])[:, row, :, t]  # (real tokens, 2, G, d)
        self._used = used
        return held[0, :, :, :used], held[1, :, :, :used]

    def _reserve(self, used: int, like: Float[Tensor, "B G T d"]) -> Float[Tensor, "2 B G capacity d"]:
        """Make room by doubling, so that a token costs no copy of the whole; return all of it."""
        capacity = 0 if self._slots is None else self._slots.shape[3]
        if self._slots is not None and used <= capacity:
            if like.requires_grad:
                self._slots = self._slots.clone()
            return self._slots
        B, G, _, d = like.shape
        grown = like.new_zeros((2, B, G, max(used, 2 * capacity), d))
        if self._slots is not None:
            grown[:, :, :, : self._used] = self._slots[:, :, :, : self._used]
        self._slots = grown
        return grown


class Cache:
    """Twin of [Cache][minimax_numpy.cache.Cache]."""

    def __init__(self, config: MiniMaxConfig, batch_size: int, device: torch.device | str | None = None):
        self.config = config
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.layers = [LightningMemory() if kind == LIGHTNING else SoftmaxMemory() for kind in config.layer_types]

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.nbytes for layer in self.layers)
