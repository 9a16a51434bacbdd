r"""What a streamed run will read, how long that takes and how much memory it needs: said before it runs.

A pass over n tokens reads every weight that any of them meets, once: all of attention, the head, one embedding a
token, and of each layer's E experts at most $\min(E, nK)$.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path

import numpy as np

from . import streaming
from .checkpoint import Checkpoint, layer_of
from .config import LIGHTNING, MiniMaxConfig
from .ops.attention import QUERIES_AT_A_TIME

SAMPLE = 64 * 2**20
"""Bytes read to measure the rate."""

WORKSPACE = 64 * 2**20
"""Bytes allowed to the libraries that multiply, which copy parts of both sides for themselves."""


@dataclass(frozen=True)
class Forecast:
    """Bytes to read and hold, at most, and the rate at which the shards were found to be read and converted."""

    prefill_bytes: int
    token_bytes: int  # for each token after it, all rows together
    read_bytes: int
    memory_bytes: int
    rate: float  # bytes/s

    @property
    def seconds(self) -> float:
        """Time to read it all, without the products."""
        return self.read_bytes / self.rate

    def __str__(self) -> str:
        return (
            f"reads at most {decimal(self.read_bytes)} ({decimal(self.prefill_bytes)} a prefill, "
            f"{decimal(self.token_bytes)} a token after it), about {duration(self.seconds)} at the "
            f"{decimal(self.rate)}/s just measured on its shards; "
            f"holds at most {decimal(self.memory_bytes)} beside its libraries"
        )


def decimal(n: int | float) -> str:
    """Bytes in words, as disks are sold.

    >>> decimal(24_934_690_816)
    '24.9 GB'
    """
    power = min(max(len(f"{n:.0f}") - 1, 0) // 3, 4)
    return f"{n / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(seconds: float) -> str:
    """Time in words.

    >>> duration(130.2), duration(0.25)
    ('130 s', '0.2 s')
    """
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 10 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def forecast(
    checkpoint: Checkpoint | str | Path,
    config: MiniMaxConfig,
    tokens: int,
    new_tokens: int = 0,
    *,
    rows: int = 1,
    passes: int = 1,
    traces: int = 0,
    kept: int = 1,
    chunk: int | None = None,
    dtype="float64",
    layers: Collection[int] | None = None,
) -> Forecast:
    """Foretell a streamed run of a language model.

    Parameters
    ----------
    checkpoint : Checkpoint or path
    config : MiniMaxConfig
    tokens, new_tokens : int
        Of each row: in the prefill, then one by one.
    rows : int
        B.
    passes, traces : int
        How many times the whole is run, and of how many runs every part is kept.
    kept : int
        Positions whose logits are asked for.
    chunk : int, optional
        Tokens of the prefill at a time; each time the layers are read again.
    dtype : NumPy dtype
        What is computed in.
    layers : collection of int, optional
        Only these, without embedding and head.
    """
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    step, size = max(1, min(chunk or tokens, tokens)), np.dtype(dtype).itemsize
    whole, rest = divmod(tokens, step)
    prefill = whole * pass_bytes(checkpoint, config, rows * step, layers)
    prefill += pass_bytes(checkpoint, config, rows * rest, layers) if rest else 0
    token = pass_bytes(checkpoint, config, rows, layers)
    held = WORKSPACE + memory(config, size, step, tokens - step + new_tokens, rows, kept)
    if traces:  # and eight copies of the largest part while it is judged
        projected = 3 * config.num_attention_heads * config.head_dim * tokens
        largest = rows * max(projected, (kept or tokens) * config.vocab_size)
        held += traces * trace_bytes(config, size, tokens, new_tokens, rows, kept, layers) + 8 * max(size, 4) * largest
    return Forecast(
        prefill_bytes=prefill,
        token_bytes=token,
        read_bytes=passes * (prefill + new_tokens * token),
        memory_bytes=held,
        rate=read_rate(checkpoint, dtype, layers),
    )


def pass_bytes(
    checkpoint: Checkpoint, config: MiniMaxConfig, tokens: int, layers: Collection[int] | None = None
) -> int:
    """Bytes that one call on so many tokens reads of a checkpoint, at most."""
    total = 0
    for name, parts in streaming.plan_loading(checkpoint, config, "MiniMaxForCausalLM", layers).items():
        stored = sum(checkpoint.entry(disk_name).nbytes for disk_name, _ in parts)
        if ".mlp.experts." in name:
            E = config.num_local_experts
            total += stored * min(E, tokens * config.num_experts_per_tok) // E
        elif name == "model.embed_tokens.weight":
            total += stored * min(config.vocab_size, tokens) // config.vocab_size
            total += stored * config.tie_word_embeddings
        else:
            total += stored
    return total


def memory(config: MiniMaxConfig, size: int, tokens: int, new_tokens: int = 0, rows: int = 1, kept: int = 1) -> int:
    r"""Bytes that a streamed model holds above its libraries, at most: weights, cache and the widest moment of a layer.

    ``size`` is bytes a number. Each line below counts the arrays [N, ·] that are alive at once, N tokens in all.
    """
    c = config
    D, H, G, d, F = c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.intermediate_size
    N, T, wide = rows * tokens, tokens, max(size, 4)
    vectors = 8 * D + H * d + c.num_local_experts * D
    block = max(streaming.BLOCK, 16 * max(D, H * d, F)) + 8 * vectors

    lightning = c.layer_types.count(LIGHTNING)
    softmax = c.num_hidden_layers - lightning
    slots = T + new_tokens if c.sliding_window is None else min(T + new_tokens, c.sliding_window)
    cache = wide * rows * (lightning * H * d * d + softmax * 2 * 2 * G * d * slots)  # slots may be twice what is used

    chunk, queries = min(c.block_size, 2 * d, T), min(QUERIES_AT_A_TIME, T)
    moments = [3 * F + 2 * F + 2 * D + max(F, D)]  # an expert that every token is sent to
    if lightning:
        moments.append(11 * H * d + rows * H * (8 * chunk * chunk + 6 * chunk * d + 4 * d * d) // N)
    if softmax:
        seen = T + new_tokens if c.sliding_window is None else min(T, c.sliding_window) + T
        moments.append(8 * H * d + 8 * G * d + rows * H * 4 * queries * seen // N + 2 * G * d * seen // T)
    if c.shared_intermediate_size:
        moments.append(5 * c.shared_intermediate_size + 3 * D)
    stream = 8  # the embedding; x, its norm, an update, their sum, and what makes them
    head = 2 * rows * min(kept or T, T) * c.vocab_size
    return block + cache + wide * (max(N * max(moments), head) + N * D * stream)


def trace_bytes(
    config: MiniMaxConfig,
    size: int,
    tokens: int,
    new_tokens: int,
    rows: int,
    kept: int,
    layers: Collection[int] | None = None,
) -> int:
    """Bytes of every part of one run: what a cross-check keeps of it."""
    c, calls, N = config, 1 + new_tokens, rows * (tokens + new_tokens)
    D, H, G, d = c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim
    every = 6 * D + c.num_local_experts + 2 * c.num_experts_per_tok + 3 * c.shared_intermediate_size + D
    total = 0
    for i in range(c.num_hidden_layers) if layers is None else layers:
        if c.layer_types[i] == LIGHTNING:
            total += N * (every + 3 * H * d + 4 * H * d + D) + calls * rows * H * d * d
        else:
            total += N * (every + 3 * H * d + 3 * G * d + D)
    if layers is None:
        total += 2 * N * D + 2 * rows * (min(kept or tokens, tokens) + new_tokens) * c.vocab_size
    return max(size, 4) * total


def read_rate(checkpoint: Checkpoint, dtype="float64", layers: Collection[int] | None = None) -> float:
    """Bytes a second at which large tensors are read and converted, measured on a few of them."""
    entries = {
        name: checkpoint.entry(name) for name in checkpoint.names() if layers is None or layer_of(name) in layers
    }
    matrices = sorted((name for name in entries if len(entries[name].shape) > 1), key=lambda n: entries[n].nbytes)
    source = streaming.Source(checkpoint, streaming.Scratch())
    before, start = checkpoint.bytes_read, time.perf_counter()
    for name in matrices[:: -max(1, len(matrices) // 8)]:  # from several places, lest one lies in memory already
        *lead, width = entries[name].shape
        rows = min(prod(lead), ceil(SAMPLE / 8 * prod(lead) / entries[name].nbytes))
        for _ in source.blocks(streaming.Rows(name, 0, rows), width, np.dtype(dtype)):
            pass
    read, checkpoint.bytes_read = checkpoint.bytes_read - before, before
    return max(read, 1) / (time.perf_counter() - start)
