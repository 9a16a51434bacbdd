r"""A checkpoint of true shape and random weights, written straight to disk: something large to try streaming on.

A random bfloat16 is $\pm 2^k (1 + m/128)$: sign and seven bits m are random, k is fixed for a matrix so that its RMS
is near $1/\sqrt{\text{fan in}}$. That is as fast as the disk, and random enough for a model that is nobody's.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from math import log2, prod
from pathlib import Path

import numpy as np

from .checkpoint import INDEX, drafting, index_of, layer_of, pieces, shard_names
from .config import MiniMaxConfig, is_router
from .trace import float32_to_bfloat16

PIECE = 1 << 22
"""Numbers drawn at a time."""


def make_checkpoint(path: str | os.PathLike, config: MiniMaxConfig, seed: int = 0) -> int:
    """Write a language model with random weights to a new or empty folder; return its bytes.

    Matrices and gains are bfloat16, routers float32. A shard holds the embedding, one each layer, one the last norm
    and the head. The same seed gives the same files. Memory: a few tens of MB, whatever the model. Files are
    renamed when the last one is whole.

    Raises FileExistsError where the folder holds anything, OSError where the disk has not the space.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not an empty folder; nothing is overwritten, so give another one.")
    shards = plan_shards(config)
    total = sum(nbytes(name, shape) for shard in shards for name, shape in shard.items())
    check_space(folder, total)
    names = shard_names(len(shards))
    texts = {"config.json": config.to_dict(), INDEX: index_of(names, shards, total)}
    with ExitStack() as undo:
        if not folder.exists():
            folder.mkdir(parents=True)
            undo.callback(shutil.rmtree, folder)
        with drafting(folder) as draft:
            first = 0
            for name, shard in zip(names, shards, strict=True):
                write_shard(draft(name), shard, seed, first)
                first += len(shard)
            for name, values in texts.items():
                draft(name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        undo.pop_all()
    return total


def check_space(folder: Path, total: int) -> None:
    """Refuse a model that the disk has not the space for."""
    home = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(home).free
    if free < 1.01 * total:
        raise OSError(f"The model takes {total / 1e9:.1f} GB and the disk of {home} has {free / 1e9:.1f} GB free.")


def plan_shards(config: MiniMaxConfig) -> list[dict[str, tuple[int, ...]]]:
    """Name and shape of each tensor on disk, shard by shard: embedding, every layer, last norm and head."""
    shards: list[dict[str, tuple[int, ...]]] = [{} for _ in range(config.num_hidden_layers + 2)]
    for name, shape in config.parameter_shapes().items():
        layer = layer_of(name)
        shard = 0 if name == "model.embed_tokens.weight" else -1 if layer is None else layer + 1
        like = np.broadcast_to(np.uint8(0), shape)  # a shape to index, no memory
        shards[shard] |= {disk_name: like[where].shape for disk_name, where in pieces(name, shape)}
    return shards


def nbytes(name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    return prod(shape) * (4 if is_router(name) else 2)


def write_shard(file: Path, shard: dict[str, tuple[int, ...]], seed: int, first: int) -> None:
    """Write one safetensors file, a piece at a time; its tensors are number ``first`` and on of the model."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shard.items():
        start, end = end, end + nbytes(name, shape)
        kind = "F32" if is_router(name) else "BF16"
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb", buffering=0) as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for i, (name, shape) in enumerate(shard.items()):
            for piece in random_numbers(name, shape, np.random.SFC64([seed, first + i])):
                left = piece.view(np.uint8).reshape(-1).data
                while len(left):
                    left = left[f.write(left) :]


def random_numbers(name: str, shape: tuple[int, ...], bits: np.random.SFC64) -> Iterator[np.ndarray]:
    """The numbers of a tensor, as stored: gains 1 ± 0.2, embeddings of RMS near 1, matrices near 1/√fan in."""
    count, rng = prod(shape), np.random.Generator(bits)
    if len(shape) == 1:
        yield float32_to_bfloat16(1 + np.float32(0.2) * rng.standard_normal(shape, np.float32))
    elif is_router(name):
        yield rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
    else:
        size = 1.0 if "embed_tokens" in name else shape[-1] ** -0.5
        k = round(log2(size / (7 / 3) ** 0.5))  # 1 + m/128 has an RMS of √(7/3)
        for start in range(0, count, PIECE):
            held = min(PIECE, count - start)
            x = bits.random_raw(-(-held // 4)).view(np.uint16)[:held]
            x &= 0x807F  # the sign and the seven bits
            x |= (127 + k) << 7  # the exponent
            yield x
