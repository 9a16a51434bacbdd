"""Twin of `minimax_numpy.cache`: same names, same order, on tensors. What is the same for both is the reference's."""

import os
from typing import Any
from weakref import WeakSet

import minimax_numpy.cache as reference
import numpy as np
import torch
from jaxtyping import Float, Int
from minimax_numpy.cache import LightningMemory, Snapshot, check_rows, check_whole, fingerprint_of
from minimax_numpy.cache_file import read_cache, save_cache
from minimax_numpy.config import MiniMaxConfig
from torch import Tensor

from .shapes import GroupedKeys, GroupedValues, Lengths, Mask, Positions

__all__ = [
    "Cache",
    "LightningMemory",
    "Snapshot",
    "SoftmaxMemory",
    "check_rows",
    "check_whole",
    "fingerprint_of",
    "held_positions",
]


def held_positions(lengths: Lengths, window: int) -> Int[Tensor, "B J"]:
    """Twin of [held_positions][minimax_numpy.cache.held_positions]."""
    last = lengths[:, None] - 1
    return last - (last - torch.arange(min(window, int(lengths.max())), device=lengths.device)) % window


class SoftmaxMemory:
    """Twin of [SoftmaxMemory][minimax_numpy.cache.SoftmaxMemory].

    While gradients flow, each call writes into a copy, so that an earlier call's graph stays whole; so does the first
    one after ``torch.inference_mode``, whose tensors are not written to outside of it.
    """

    def __init__(self, window: int | None = None):
        self.window = window
        self._slots: Float[Tensor, "2 B G capacity d"] | None = None  # keys and values side by side
        self._lengths: Lengths | None = None  # real tokens seen by each row
        self._used = 0  # slots in use: a number of the host's, so that the device is asked once a call
        self._readers: WeakSet[SoftmaxMemory] = WeakSet((self,))  # all that look at these slots

    @property
    def keys(self) -> GroupedKeys | None:
        """(B, G, J, d), a view; slots past a row's own length hold nothing of it."""
        return None if self._slots is None else self._slots[0, :, :, : self._used]

    @property
    def values(self) -> GroupedValues | None:
        """(B, G, J, d), a view."""
        return None if self._slots is None else self._slots[1, :, :, : self._used]

    @property
    def nbytes(self) -> int:
        """Bytes held, reserve included; what is shared with a fork is counted in both."""
        return 0 if self._slots is None else self._slots.nbytes

    def fork(self) -> "SoftmaxMemory":
        """Another memory of the same past, in the same slots until either writes over what the other reads."""
        other = SoftmaxMemory(self.window)
        other._slots, other._lengths, other._used = self._slots, self._lengths, self._used
        other._readers = self._readers
        self._readers.add(other)
        return other

    def __getstate__(self) -> dict[str, Any]:
        """What `copy.deepcopy` and `pickle` take: slots of its own, which nobody else reads."""
        slots = None if self._slots is None else self._slots[:, :, :, : self._used].clone()
        return {"window": self.window, "_slots": slots, "_lengths": self._lengths, "_used": self._used}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _readers=WeakSet((self,)))

    def reorder(self, rows: Int[np.ndarray, "rows"]) -> None:
        """Remember these rows' past instead, in this order."""
        if self._slots is not None and self._lengths is not None:
            self._keep(self._slots[:, rows], self._lengths[rows])

    def append(
        self,
        k: Float[Tensor, "B G T d"],
        v: Float[Tensor, "B G T e"],
        positions: Positions,
        mask: Mask | None,
    ) -> tuple[GroupedKeys, GroupedValues]:
        """Write each real token's key and value into its slot; return all that this call's queries may look at."""
        B, T = len(k), positions.shape[1]
        real = (positions >= 0 if mask is None else mask).expand(B, T)
        positions = positions.expand(B, T)
        ends = torch.where(real, positions + 1, 0).amax(dim=1)  # (B,)
        before = torch.zeros_like(ends) if self._lengths is None else self._lengths
        new, seen = torch.stack([k, v]), None  # (2, B, G, T, d)
        if self.window is not None and T > 1:
            clean = torch.where(real[:, None, :, None], new, 0)  # by selection: 0 · NaN would be NaN
            held = () if self._slots is None else (self._slots[:, :, :, : self._used],)
            seen = torch.cat([*held, clean], dim=3)  # (2, B, G, J, d)
            real = real & (positions >= ends[:, None] - self.window)
        slots = positions if self.window is None else positions % self.window

        after = torch.maximum(before, ends)
        longest = int(after.max())
        room, first = self._room(longest, before, k), longest - T
        together = torch.arange(first, longest, device=positions.device).expand(B, T)
        if mask is None and self.window is None and first >= 0 and torch.equal(positions, together):
            room[:, :, :, first:longest] = new  # as a prompt's tokens are: side by side, and alike in every row
        else:
            row, t = real.nonzero(as_tuple=True)
            room[:, row, :, slots[row, t]] = new[:, row, :, t]  # (real tokens, 2, G, d)
        self._lengths, self._used = after, self._needed(longest)
        seen = room[:, :, :, : self._used] if seen is None else seen
        return seen[0], seen[1]

    def make_room(
        self, positions: Positions, like: Float[Tensor, "B G T d"]
    ) -> tuple[Float[Tensor, "2 B G capacity d"], Int[Tensor, "B"], Lengths]:
        """For one real token a row, written by whoever asks: all slots, each row's one, and how many it then has."""
        here = positions.expand(len(like), 1)[:, 0]
        before = torch.zeros_like(here) if self._lengths is None else self._lengths
        after = torch.maximum(before, here + 1)
        longest = int(after.max())
        room = self._room(longest, before, like)
        self._lengths, self._used = after, self._needed(longest)
        if self.window is None:
            return room, here.contiguous(), after
        return room, here % self.window, after.clamp(max=self.window)

    def _needed(self, longest: int) -> int:
        return longest if self.window is None else min(longest, self.window)

    def _room(self, longest: int, before: Lengths, like: Float[Tensor, "B G T d"]) -> Float[Tensor, "2 B G capacity d"]:
        needed, capacity = self._needed(longest), 0 if self._slots is None else self._slots.shape[3]
        in_place = not like.requires_grad and not self._overwrites(before)
        if self._slots is not None and self._slots.is_inference():
            in_place = in_place and torch.is_inference_mode_enabled()
        if self._slots is not None and needed <= capacity and in_place:
            return self._slots
        B, G, _, d = like.shape
        if needed > capacity:
            capacity = self._needed(max(longest, 2 * capacity))
        own = like.new_zeros((2, B, G, capacity, d))
        if self._slots is not None:
            own[:, :, :, : self._used] = self._slots[:, :, :, : self._used]
        self._keep(own, before)
        return own

    def _overwrites(self, before: Lengths) -> bool:
        others = [other._lengths for other in self._readers if other is not self and other._lengths is not None]
        return any(self.window is not None or bool((lengths > before).any()) for lengths in others)

    def _keep(self, slots: Float[Tensor, "2 B G capacity d"], lengths: Lengths) -> None:
        self._readers.discard(self)
        self._slots, self._lengths, self._readers = slots, lengths, WeakSet((self,))
        self._used = self._needed(int(lengths.max()))


class Cache(reference.Cache):
    """Twin of [Cache][minimax_numpy.cache.Cache]."""

    _softmax_memory = SoftmaxMemory

    def __init__(self, config: MiniMaxConfig, batch_size: int, device: torch.device | str | None = None):
        super().__init__(config, batch_size)
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)

    def save(self, path: str | os.PathLike) -> None:
        """Twin of [save][minimax_numpy.cache.Cache.save]."""
        check_whole(self)
        save_cache(path, self, str(self.dtype).removeprefix("torch."), to_bits)

    @classmethod
    def load(cls, path: str | os.PathLike, device: torch.device | str | None = None) -> "Cache":
        """Twin of [load][minimax_numpy.cache.Cache.load]; bfloat16 stays what it is."""
        config, dtype, lengths, layers, fingerprint = read_cache(path)
        cache = cls(config, len(lengths))
        cache.belong_to(fingerprint)
        cache.lengths = torch.from_numpy(lengths).to(device)
        cache.dtype = None if dtype is None else getattr(torch, dtype)
        for layer, found in zip(cache.layers, layers, strict=True):
            if isinstance(layer, LightningMemory):
                layer.state = torch.from_numpy(found["state"]).to(device) if found else None
            elif found:
                slots = torch.stack([torch.from_numpy(found[name]) for name in ("keys", "values")])
                layer._keep(slots.to(device, cache.dtype), cache.lengths)
        return cache


def to_bits(x: Tensor):
    """A tensor as NumPy holds it; bfloat16 becomes uint16, its bits."""
    x = x.detach().cpu().contiguous()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()
