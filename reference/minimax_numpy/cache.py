"""What a model remembers between calls: a state for each lightning layer, keys and values for each softmax layer.

A lightning layer's memory has one size for ever. A softmax layer's grows by a slot a token, and **a token's
slot is its position**: padding has none, so nothing in here ever needs a mask. With a sliding window of w the slots
go round: position p lies in slot p mod w, over the key that no later query may see.

A prefill is shared by forking its cache. Forks and snapshots look at the same keys until one of them writes where
another still reads; only then are they copied.
"""

import copy
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ReferenceType, WeakSet, ref

import numpy as np
from jaxtyping import Float, Int

from .cache_file import read_cache, save_cache
from .config import LIGHTNING, MiniMaxConfig
from .shapes import GroupedKeys, GroupedValues, Lengths, Mask, Positions


def held_positions(lengths: Lengths, window: int) -> Int[np.ndarray, "B J"]:
    r"""Position of the key in each slot in use of a window's buffer; negative where a row has none yet.

    >>> held_positions(np.array([5, 2]), window=3)
    array([[ 3,  4,  2],
           [ 0,  1, -1]])
    """
    last = lengths[:, None] - 1
    return last - (last - np.arange(min(window, int(lengths.max())))) % window


class LightningMemory:
    """The state of one lightning layer, [B, H, d, d]; ``None`` before the first token. It is never altered in place."""

    def __init__(self):
        self.state: Any = None  # of either package

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 0 if self.state is None else self.state.nbytes

    def fork(self) -> "LightningMemory":
        """Another memory of the same past."""
        return copy.copy(self)

    def reorder(self, rows: Int[np.ndarray, "rows"]) -> None:
        """Remember these rows' past instead, in this order."""
        self.state = None if self.state is None else self.state[rows]


class SoftmaxMemory:
    """Keys (after rotary) and values of one softmax layer, in slots; with a window, of the last w tokens only."""

    def __init__(self, window: int | None = None):
        self.window = window
        self._slots: Float[np.ndarray, "2 B G capacity d"] | None = None  # keys and values side by side
        self._lengths: Lengths | None = None  # real tokens seen by each row
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

    @property
    def _used(self) -> int:
        """Slots in use."""
        return 0 if self._lengths is None else self._needed(int(self._lengths.max()))

    def _needed(self, longest: int) -> int:
        """Slots that rows of this length take."""
        return longest if self.window is None else min(longest, self.window)

    def fork(self) -> "SoftmaxMemory":
        """Another memory of the same past, in the same slots until either writes over what the other reads."""
        other = SoftmaxMemory(self.window)
        other._slots, other._lengths, other._readers = self._slots, self._lengths, self._readers
        self._readers.add(other)
        return other

    def __getstate__(self) -> dict[str, Any]:
        """What `copy.deepcopy` and `pickle` take: slots of its own, which nobody else reads."""
        slots = None if self._slots is None else self._slots[:, :, :, : self._used].copy()
        return {"window": self.window, "_slots": slots, "_lengths": self._lengths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _readers=WeakSet((self,)))

    def reorder(self, rows: Int[np.ndarray, "rows"]) -> None:
        """Remember these rows' past instead, in this order."""
        if self._slots is not None and self._lengths is not None:
            self._keep(self._slots[:, rows], self._lengths[rows])

    def append(
        self,
        k: Float[np.ndarray, "B G T d"],
        v: Float[np.ndarray, "B G T e"],
        positions: Positions,
        mask: Mask | None,
    ) -> tuple[GroupedKeys, GroupedValues]:
        """Write each real token's key and value into its slot; return all that this call's queries may look at.

        Those are all slots in use. With a window, several tokens at once overwrite keys that the first of them still
        sees: they get the slots as they were, and their own keys after them.
        """
        B, T = len(k), positions.shape[1]
        real = np.broadcast_to(np.ones((1, 1), bool) if mask is None else mask, (B, T))
        positions = np.broadcast_to(positions, (B, T))
        ends = np.where(real, positions + 1, 0).max(axis=1, initial=0)  # (B,)
        before = np.zeros(B, int) if self._lengths is None else self._lengths
        seen = None
        if self.window is not None and T > 1:
            clean = [np.where(real[:, None, :, None], x, 0) for x in (k, v)]  # by selection: 0 · NaN would be NaN
            held = () if self._slots is None else (self._slots[:, :, :, : self._used],)
            seen = np.concatenate([*held, np.stack(clean)], axis=3)  # (2, B, G, J, d)
            real = real & (positions >= ends[:, None] - self.window)
        slots = positions if self.window is None else positions % self.window

        after = np.maximum(before, ends)
        room = self._room(int(after.max()), before, k)
        row, t = np.nonzero(real)
        for buffer, new in zip(room, (k, v), strict=True):
            buffer[row, :, slots[row, t]] = new[row, :, t]  # (real tokens, G, d)
        self._lengths = after
        seen = room[:, :, :, : self._used] if seen is None else seen
        return seen[0], seen[1]

    def _room(
        self, longest: int, before: Lengths, like: Float[np.ndarray, "B G T d"]
    ) -> Float[np.ndarray, "2 B G capacity d"]:
        """Slots to write into: doubled where they are full, so that a token costs no copy of the whole."""
        needed, capacity = self._needed(longest), 0 if self._slots is None else self._slots.shape[3]
        if self._slots is not None and needed <= capacity and not self._overwrites(before):
            return self._slots
        B, G, _, d = like.shape
        if needed > capacity:
            capacity = self._needed(max(longest, 2 * capacity))
        own = np.zeros((2, B, G, capacity, d), like.dtype)
        if self._slots is not None:
            own[:, :, :, : self._used] = self._slots[:, :, :, : self._used]
        self._keep(own, before)
        return own

    def _overwrites(self, before: Lengths) -> bool:
        """Whether writing after these lengths would alter what another memory reads."""
        others = [other._lengths for other in self._readers if other is not self and other._lengths is not None]
        return any(self.window is not None or bool((lengths > before).any()) for lengths in others)

    def _keep(self, slots: Float[np.ndarray, "2 B G capacity d"], lengths: Lengths) -> None:
        """Hold slots of our own."""
        self._readers.discard(self)
        self._slots, self._lengths, self._readers = slots, lengths, WeakSet((self,))


class Snapshot:
    """A moment of a cache, to go back to; it costs no copy until the cache writes over it."""

    def __init__(self, owner: "Cache"):
        self.owner, self.held = owner, owner.fork()

    @property
    def lengths(self) -> Lengths:
        """Real tokens of each row at that moment."""
        return self.held.lengths


class Cache:
    """The memory of a batch of rows, one entry a layer, and how many real tokens each row has seen.

    A forward call with ``cache=`` continues from it and advances it in place. ``dtype`` is that of the model's
    activations, known from the first call on.

    Raises ValueError for a batch of no rows.
    """

    _softmax_memory: Any = SoftmaxMemory  # the twin has its own

    def __init__(self, config: MiniMaxConfig, batch_size: int):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; a cache holds at least one row.")
        self.config = config
        self.dtype: Any = None
        self.fingerprint: int | None = None  # of the model's weights
        self.lengths: Any = np.zeros(batch_size, np.int64)
        self.layers: list[Any] = [
            LightningMemory() if kind == LIGHTNING else self._softmax_memory(config.sliding_window)
            for kind in config.layer_types
        ]
        self.whole = True  # False in the midst of a call
        self._snapshots: list[ReferenceType[Snapshot]] = []  # of this past, from the first to the last

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.nbytes for layer in self.layers)

    def belong_to(self, fingerprint: int | None) -> None:
        """Be the cache of the weights with this fingerprint; None is not known, and is not asked about.

        Raises ValueError where it is that of others: nothing in a state would show it.
        """
        if None not in (self.fingerprint, fingerprint) and self.fingerprint != fingerprint:
            raise ValueError("The cache was made by a model with other weights; start a new one.")
        self.fingerprint = self.fingerprint if fingerprint is None else fingerprint

    @contextmanager
    def advancing(self, lengths: Int[Any, "B"], dtype: Any) -> Iterator[None]:
        """Be written to, layer by layer, and reach these lengths at the end; a call that fails leaves it unusable."""
        self.dtype, self.whole = dtype, False
        yield
        self.lengths, self.whole = lengths, True

    def reorder(self, rows: Sequence[int] | Int[np.ndarray, "rows"]) -> None:
        """Take these rows in this order: beams choose, a row named twice is two, a row not named is forgotten.

        Raises ValueError for a row that is not there, or for none.
        """
        rows = check_rows(rows, len(self.lengths))
        self.lengths = self.lengths[rows]
        for layer in self.layers:
            layer.reorder(rows)

    def fork(self) -> "Cache":
        """An independent cache of the same past; what they share is copied when either writes over it."""
        check_whole(self)
        other = copy.copy(self)
        other.layers, other._snapshots = [layer.fork() for layer in self.layers], []
        return other

    def __getstate__(self) -> dict[str, Any]:
        """All but the snapshots, which are of this very cache."""
        return {**vars(self), "_snapshots": []}

    def snapshot(self) -> Snapshot:
        """This moment, for `restore`."""
        snapshot = Snapshot(self)
        self._snapshots = [known for known in self._snapshots if known() is not None] + [ref(snapshot)]
        return snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a moment of this cache; it may be gone back to again.

        Raises ValueError where it is a moment of another cache.
        """
        if snapshot.owner is not self:
            raise ValueError("The snapshot is of another cache; restore it there, or take a fork of that one.")
        known, moment = [known() for known in self._snapshots], snapshot.held.fork()
        # what was kept after that moment is of another past than the one to come
        self._snapshots = self._snapshots[: known.index(snapshot)] if snapshot in known else []
        self._snapshots.append(ref(snapshot))
        self.lengths, self.layers, self.dtype, self.whole = moment.lengths, moment.layers, moment.dtype, True

    def crop(self, length: int) -> None:
        """Go back to where every row had this many tokens, if a snapshot taken there on the way here is still held.

        Raises ValueError where there is none: a state is a sum, and a token cannot be taken out of it again.
        """
        if (self.lengths == length).all() and self.whole:
            return
        held = (snapshot for known in reversed(self._snapshots) if (snapshot := known()) is not None)
        snapshot = next((s for s in held if (s.lengths == length).all()), None)
        if snapshot is None:
            raise ValueError(
                f"No snapshot of this cache at length {length} is held, and a lightning state is a sum that no token "
                "can be taken out of: take a snapshot before the tokens that may have to go."
            )
        self.restore(snapshot)

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file that `load` reads in either package; whole or not at all."""
        check_whole(self)
        save_cache(path, self, str(self.dtype), lambda x: x)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Cache":
        """Read a file that `save` wrote; bfloat16 becomes float32.

        Raises FileNotFoundError, or ValueError where the file is no cache or is damaged.
        """
        config, dtype, lengths, layers, fingerprint = read_cache(path)
        cache = cls(config, len(lengths))
        cache.belong_to(fingerprint)
        cache.lengths, cache.dtype = lengths, dtype and np.dtype("float32" if dtype == "bfloat16" else dtype)
        for layer, found in zip(cache.layers, layers, strict=True):
            if isinstance(layer, LightningMemory):
                layer.state = found.get("state")
            elif found:
                layer._keep(np.stack([found["keys"], found["values"]]), lengths)
        return cache


def fingerprint_of(router: Float[np.ndarray, "E D"]) -> int:
    """Tells one model's weights from another's: the checksum of its first router, in float32."""
    return zlib.crc32(np.asarray(router, np.float32).tobytes())


def check_rows(rows, batch_size: int) -> Int[np.ndarray, "rows"]:
    """Refuse rows that are not there."""
    rows = np.asarray(rows.cpu() if hasattr(rows, "cpu") else rows)
    if rows.ndim != 1 or not rows.size or rows.dtype.kind not in "iu":
        raise ValueError("Rows are given by a list of whole numbers, at least one.")
    if rows.min() < 0 or rows.max() >= batch_size:
        raise ValueError(f"The cache has rows 0 … {batch_size - 1}, but row {int(rows[rows.argmax()])} is asked for.")
    return rows


def check_whole(cache) -> None:
    """Refuse a cache that a call was interrupted on: some of its layers have seen more than others."""
    if not cache.whole:
        raise ValueError(
            "An earlier call on this cache was interrupted halfway through the layers; restore a snapshot of it, or "
            "start a new one."
        )
