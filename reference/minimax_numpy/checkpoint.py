"""Folders of safetensors: read a tensor at a time, written so that transformers reads them.

Two spellings of a name meet here. On disk an expert is three matrices, ``block_sparse_moe.experts.M.w1`` (gate),
``w3`` (up) and ``w2`` (down); in memory all experts of a layer are stacked, ``mlp.experts.gate_up_proj`` [E, 2F, D]
and ``mlp.experts.down_proj`` [E, D, F]. Stacked tensors on disk are read as well. `pieces` says which tensors
on disk make one in memory; both twins load and save by it.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, KeysView, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby, pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, TensorSpec, serialize_file

from .config import MiniMaxConfig, is_router
from .quantize import Quantized, is_quantized, quantize
from .trace import bfloat16_to_float32

INDEX = "model.safetensors.index.json"
STORED = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
INTEGERS = {"I64": np.int64, "I32": np.int32, "BOOL": np.bool_}  # in traces and golden vectors, never weights
# Constants that transformers saves beside the weights; the configuration already says them.
CONSTANTS = re.compile(r"\.(slope_rate|query_decay|key_decay|diagonal_decay|inv_freq)$")
OTHER_HEADS = re.compile(r"^(lm_head|score|qa_outputs)\.")


class Entry(NamedTuple):
    """Where one tensor lies."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Checkpoint:
    """A folder of safetensors, its tensors read when asked for.

    A single file, or shards with an index; a shard's header is read when one of its tensors is first wanted.
    Raises FileNotFoundError or ValueError, one sentence long, on a folder that is not one.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path} is not a folder; give one with config.json and safetensors in it.")
        self.bytes_read = 0  # by `rows`
        self._headers: dict[str, dict[str, Entry]] = {}
        index = self.path / INDEX
        if index.is_file():
            self._file_of = self._read_index(index)
            return
        files = sorted(self.path.glob("*.safetensors"))
        if len(files) != 1:
            found = "no safetensors file" if not files else f"{len(files)} safetensors files but no {INDEX}"
            raise FileNotFoundError(f"{self.path} holds {found}; give one file, or shards with their index.")
        self._file_of = dict.fromkeys(self._header(files[0].name), files[0].name)

    def names(self) -> KeysView[str]:
        """Every tensor's name on disk."""
        return self._file_of.keys()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, as stored; reads every shard's header."""
        return sum(entry.nbytes for entry in map(self.entry, self.names()))

    def entry(self, name: str) -> Entry:
        """A tensor's file, type, shape and offset, from the header of its shard."""
        if name not in self._file_of:
            raise ValueError(f"{self.path} has no tensor {name!r}.")
        file = self._file_of[name]
        header = self._header(file)
        if name not in header:
            raise ValueError(
                f"{INDEX} puts {name!r} in {file}, but it is not there; the index belongs to other shards."
            )
        return header[name]

    def bits(self, name: str) -> np.ndarray:
        """Read a tensor as it is stored; bfloat16 comes as uint16, its bits."""
        return _read_bits(name, self.entry(name), STORED)

    def rows(self, name: str, start: int, stop: int, into: np.ndarray) -> np.ndarray:
        """Read some rows of a tensor as it is stored, its leading axes taken as one, into an array of their size."""
        entry = self.entry(name)
        width = into.nbytes // (stop - start)
        with open(entry.file, "rb", buffering=0) as f:
            f.seek(entry.offset + start * width)
            left = into.view(np.uint8).reshape(-1).data
            while len(left):
                got = f.readinto(left)
                if not got:
                    raise ValueError(f"{entry.file} is cut short: it ends within {name!r}; get the file again.")
                left = left[got:]
                self.bytes_read += got
        return into

    def read(self, name: str) -> np.ndarray:
        """Read a tensor; bfloat16 becomes float32, exactly. Raises ValueError where a number is not finite."""
        bits = self.bits(name)
        x = bfloat16_to_float32(bits) if bits.dtype == np.uint16 else bits
        self.check_finite(name, x)
        return x

    def check_finite(self, name: str, x: np.ndarray) -> None:
        """Refuse numbers read from a tensor of which some are NaN or infinite."""
        if not all_finite(x):
            count = int((~np.isfinite(x)).sum())
            raise ValueError(
                f"{name!r} in {self.path} holds {count} numbers that are NaN or infinite; the file is damaged."
            )

    def shards(self, layers: Collection[int]) -> list[Path]:
        """The files that some layers lie in, by the index alone: the files need not be there."""
        return sorted({self.path / file for name, file in self._file_of.items() if layer_of(name) in layers})

    def absent(self) -> list[str]:
        """Files that the index names and that are not there."""
        return sorted(file for file in set(self._file_of.values()) if not (self.path / file).is_file())

    @property
    def files(self) -> int:
        """How many files there are, or should be."""
        return len(set(self._file_of.values()))

    def layers(self) -> set[int]:
        """The layers that the index tells of."""
        return {i for i in map(layer_of, self.names()) if i is not None}

    def _read_index(self, index: Path) -> dict[str, str]:
        try:
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            if not all(isinstance(file, str) for file in files.values()):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"{index} is not an index: it should hold a weight_map of names and files.") from None
        for file in set(files.values()):
            if file in ("", ".", "..") or Path(file).name != file:
                raise ValueError(f"{index} names {file!r}, outside its folder; a shard lies beside its index.")
        return files

    def _homes(self) -> Iterator[Path]:
        """Where the files may really lie: in the folder, or where the hub's cache keeps what its snapshots link to."""
        home = self.path.resolve()
        yield home
        if home.parent.name == "snapshots":
            yield home.parent.parent / "blobs"

    def _header(self, file: str) -> dict[str, Entry]:
        if file not in self._headers:
            path = self.path / file
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing; {INDEX} says that it holds part of the model.")
            if not any(path.resolve().is_relative_to(home) for home in self._homes()):
                raise ValueError(f"{path} is a link out of its folder; put the file itself there.")
            self._headers[file] = read_header(path)
        return self._headers[file]


def read_header(path: Path) -> dict[str, Entry]:
    """Read the table of contents of one file, and check that the file holds all of it."""
    return _read_header(path)[0]


def read_metadata(path: Path) -> dict[str, str]:
    """Read what a file says of itself."""
    return _read_header(path)[1]


def _read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    size = path.stat().st_size
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError(
                f"{path} is not a safetensors file, or is cut short: its header does not fit in {size} bytes."
            )
        text = f.read(length)
    try:
        header = json.loads(text)
        told = dict(header.pop("__metadata__", {}))
        entries = {name: _entry(path, 8 + length, item) for name, item in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path} has a damaged header; get the file again.") from None
    _check_places(path, entries, size)
    return entries, told


def _entry(path: Path, data: int, item: dict) -> Entry:
    """One line of a header whose tensors start at byte ``data``."""
    start, end = item["data_offsets"]
    shape = tuple(item["shape"])
    kind = (STORED | INTEGERS).get(item["dtype"])
    whole = all(type(n) is int and n >= 0 for n in (start, end, *shape))
    if not whole or end < start or (kind and end - start != np.dtype(kind).itemsize * prod(shape)):
        raise ValueError
    return Entry(path, item["dtype"], shape, data + start, end - start)


def _check_places(path: Path, entries: Mapping[str, Entry], size: int) -> None:
    """Refuse tensors that end after their file, or that share bytes."""
    places = sorted((entry.offset, entry.offset + entry.nbytes, name) for name, entry in entries.items())
    for _, end, name in places:
        if end > size:
            raise ValueError(f"{path} is cut short: {name!r} ends at byte {end} of {size}.")
    filled = [place for place in places if place[0] < place[1]]
    for (_, end, name), (start, _, other) in pairwise(filled):
        if start < end:
            raise ValueError(f"{path} has a damaged header: {name!r} and {other!r} share bytes; get the file again.")


def layer_of(name: str) -> int | None:
    """The layer that a tensor or a part belongs to.

    >>> layer_of("model.layers.3.self_attn.norm.weight")
    3
    """
    found = re.match(r"(?:model\.)?layers\.(\d+)(?:\.|$)", name)
    return int(found[1]) if found else None


def all_finite(x: np.ndarray) -> bool:
    """Whether no number is NaN or infinite, without a copy: both come through minimum and maximum."""
    return not x.size or bool(np.isfinite(x.min()) and np.isfinite(x.max()))


def _read_bits(name: str, entry: Entry, types: Mapping[str, type]) -> np.ndarray:
    if entry.dtype not in types:
        raise ValueError(f"{name!r} in {entry.file} has type {entry.dtype}; this project reads {', '.join(types)}.")
    count = prod(entry.shape)
    return np.fromfile(entry.file, types[entry.dtype], count, offset=entry.offset).reshape(entry.shape)


def read_tensors(file: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read one safetensors file whole, integers too; bfloat16 becomes float32."""
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    arrays = {name: _read_bits(name, entry, STORED | INTEGERS) for name, entry in read_header(file).items()}
    return {name: bfloat16_to_float32(x) if x.dtype == np.uint16 else x for name, x in arrays.items()}


def pieces(name: str, shape: tuple[int, ...], on_disk: Collection[str] | None = None) -> list[tuple[str, tuple]]:
    """The tensors on disk that make one in memory, each with the place that it fills.

    ``on_disk`` are the names there are; without them, the names that we write.

    >>> pieces("model.layers.0.mlp.experts.gate_up_proj", (2, 6, 4))[1]
    ('model.layers.0.block_sparse_moe.experts.0.w3.weight', (0, slice(3, 6, None)))
    """

    def spelled(disk_name: str) -> str:
        spellings = [disk_name, disk_name.replace(".block_sparse_moe.", ".mlp.")]
        spellings += [spelling.removeprefix("model.") for spelling in spellings]  # a model saved without a head
        return next((s for s in spellings if s in (on_disk or ())), disk_name)

    disk_name = name.replace(".mlp.", ".block_sparse_moe.")
    stacked = spelled(disk_name)
    if ".mlp.experts." not in name or (on_disk is not None and stacked in on_disk):
        return [(stacked, ())]
    prefix, E, F = disk_name.rsplit(".", 1)[0], shape[0], shape[1] // 2
    if name.endswith(".down_proj"):
        return [(spelled(f"{prefix}.{e}.w2.weight"), (e,)) for e in range(E)]
    halves = (("w1", slice(0, F)), ("w3", slice(F, 2 * F)))
    return [(spelled(f"{prefix}.{e}.{w}.weight"), (e, half)) for e in range(E) for w, half in halves]


def plan_loading(
    checkpoint: Checkpoint, config: MiniMaxConfig, head: str, layers: Collection[int] | None = None
) -> dict[str, list[tuple[str, tuple]]]:
    """Match a folder, or some ``layers`` of it, with a model before any number is read.

    Raises ValueError naming what is missing, what is too much, or whose shape is not the configuration's.
    """
    on_disk = checkpoint.names()
    shapes = config.parameter_shapes(head)
    plan = {name: pieces(name, shape, on_disk) for name, shape in shapes.items()}
    used = {disk_name for parts in plan.values() for disk_name, _ in parts}
    if layers is not None:
        plan = {name: parts for name, parts in plan.items() if layer_of(name) in layers}
    missing = sorted({disk_name for parts in plan.values() for disk_name, _ in parts} - on_disk)
    if missing:
        raise ValueError(
            f"{checkpoint.path} lacks {_some(missing)}, which {head} needs; "
            "nothing is filled in at random, so complete the folder or load the model that it holds."
        )
    extra = sorted(n for n in on_disk - used if not CONSTANTS.search(n) and not OTHER_HEADS.match(n))
    if extra:
        raise ValueError(
            f"{checkpoint.path} holds {_some(extra)}, which config.json knows nothing of; is it this model's?"
        )
    for name, parts in plan.items():
        like = np.broadcast_to(np.float32(0), shapes[name])  # a shape to index, no memory
        for disk_name, where in parts:
            found, wanted = checkpoint.entry(disk_name).shape, like[where].shape
            if found != wanted:
                raise ValueError(f"{disk_name!r} has shape {list(found)}; config.json makes it {list(wanted)}.")
    return plan


def load_weights(
    path: str | os.PathLike,
    config: MiniMaxConfig,
    head: str,
    dtype: np.dtype | None,
    quantization: str | None = None,
    lm_head_dtype: np.dtype | None = None,
) -> dict[str, Any]:
    """Read a model's arrays, named as in memory; routers stay at least float32, the head ``lm_head_dtype``."""
    checkpoint = Checkpoint(path)
    plan = plan_loading(checkpoint, config, head)
    weights: dict[str, Any] = {}
    for name, shape in config.parameter_shapes(head).items():
        if quantization and is_quantized(name):
            for place, parts in by_matrix(plan[name]):
                q = quantize(read_matrix(parts, shape[1:], checkpoint.read, np.empty), quantization, dtype)
                if place == ():
                    weights[name] = q
                else:
                    weights.setdefault(name, Quantized(quantization, shape, q.dtype))[place[0]] = q
            continue
        least = lm_head_dtype if name == "lm_head.weight" else None
        if is_router(name) and dtype is not None:
            least = np.dtype(np.float32)
        for disk_name, where in plan[name]:
            x = checkpoint.read(disk_name)
            kept = x.dtype if dtype is None else dtype
            x = x.astype(kept if least is None else np.promote_types(kept, least), copy=False)
            if where == ():
                weights[name] = x
            else:
                weights.setdefault(name, np.empty(shape, x.dtype))[where] = x
    return weights


def by_matrix(parts: list[tuple[str, tuple]]) -> Iterator[tuple[tuple, list[tuple[str, tuple]]]]:
    """Each matrix of a parameter: its place, () or an expert's (e,), and the tensors on disk that make it."""
    for place, of_one in groupby(parts, key=lambda part: part[1][:1]):
        yield place, [(disk_name, where[1:]) for disk_name, where in of_one]


def read_matrix(parts: list[tuple[str, tuple]], shape: tuple[int, ...], read: Callable, empty: Callable) -> Any:
    """Read a matrix that ``read(disk_name)`` gives whole, or in halves that fill ``empty(shape, dtype=…)``."""
    if len(parts) == 1:
        return read(parts[0][0])
    matrix = None
    for disk_name, where in parts:
        x = read(disk_name)
        matrix = empty(shape, dtype=x.dtype) if matrix is None else matrix
        matrix[where] = x
        del x  # before the next is read
    return matrix


def disk_tensors(weights: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and content of each tensor that we write: experts one by one, as the release has them."""
    for name, x in weights.items():
        for disk_name, where in pieces(name, x.shape):
            yield disk_name, x[where]


def save_checkpoint(
    path: str | os.PathLike, config: MiniMaxConfig, head: str, weights: Mapping[str, Any], max_shard_bytes: int
) -> None:
    """Write config.json and safetensors; a uint16 array is taken for the bits of bfloat16.

    All files are written under other names first and renamed when the last one is whole, so that a full
    disk or an interrupt leaves what was there before. Raises ValueError on a quantised model.
    """
    if any(hasattr(x, "dequantize") for x in weights.values()):  # of either twin
        raise ValueError(
            "A quantised model is not saved; what it was quantised from is, so load that whole and save it."
        )
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, np.ndarray]] = [{}]
    held = 0
    for name, x in disk_tensors(weights):
        if shards[-1] and held + x.nbytes > max_shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = x
        held += x.nbytes
    names = shard_names(len(shards))
    texts = {"config.json": config.to_dict(head)}
    if len(shards) > 1:
        texts[INDEX] = index_of(names, shards, sum(x.nbytes for shard in shards for x in shard.values()))
    with drafting(folder) as draft:
        for name, shard in zip(names, shards, strict=True):
            save_tensors(draft(name), shard)
        for name, values in texts.items():
            draft(name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    for old in (*folder.glob("model*.safetensors"), folder / INDEX):  # shards of an earlier save
        if old.name not in {*names, *texts}:
            old.unlink(missing_ok=True)


def shard_names(count: int) -> list[str]:
    """What so many files of one model are called."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def index_of(files: Sequence[str], shards: Sequence[Collection[str]], total: int) -> dict[str, dict]:
    """An index: the bytes of all tensors, and the file of each; ``shards`` are the names in each file."""
    where = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    return {"metadata": {"total_size": total}, "weight_map": where}


@contextmanager
def drafting(folder: Path) -> Iterator[Callable[[str], Path]]:
    """Give ``draft(name)``, another name for a file of the folder; in the end all are renamed, after an error none."""
    with ExitStack() as undo:
        written: list[tuple[Path, Path]] = []

        def draft(name: str) -> Path:
            handle, other = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            os.close(handle)
            undo.callback(Path(other).unlink, missing_ok=True)
            written.append((Path(other), folder / name))
            return Path(other)

        yield draft
        for file, final in written:
            file.chmod(0o644)
            file.replace(final)


def save_tensors(file: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write one safetensors file; a uint16 array is taken for the bits of bfloat16."""
    whole = {name: np.asarray(x, order="C") for name, x in tensors.items()}  # outlives the pointers below
    specs = {
        name: TensorSpec(
            dtype="bfloat16" if x.dtype == np.uint16 else x.dtype.name,
            shape=x.shape,
            data_ptr=x.ctypes.data,
            data_len=x.nbytes,
        )
        for name, x in whole.items()
    }
    try:
        serialize_file(specs, file, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        raise OSError(f"{Path(file).parent} does not take the file ({error}); what was there is as it was.") from None


def write_whole(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Let ``write(file)`` fill a file under another name, then rename it: whole or not at all. A link stays one."""
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}; make it first.")
    if path.exists() and not path.is_file():  # a device would be renamed over, too
        raise ValueError(f"{path} is a folder or a device; give a file.")
    with drafting(path.parent) as draft:
        write(draft(path.name))


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
