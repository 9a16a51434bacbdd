"""A contest: the machine's ceilings first, then each contestant in turn, in one process and one run.

A time means little on a machine that others use, so each round asks every contestant once, and a ratio is the median
of the rounds' ratios. *Share of the floor* is the least time that the machine's own ceilings allow, over the time
taken. A ceiling is of arithmetic, the rate of a large matmul, or of memory: an array of that size read on a CPU, a
gigabyte copied on a GPU, where reading and writing both count. A GPU's times are between events of its own, its L2
cache written over before each call.
"""

import ctypes
import importlib.util
import platform
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from minimax_numpy.config import MiniMaxConfig
from torch import Tensor

from ..model import check_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Machine:
    """Where the contest takes place and in which type; FLOP a second, and bytes a second."""

    device: torch.device
    dtype: torch.dtype
    matmul: float
    memory: float

    @property
    def on_gpu(self) -> bool:
        """Whether times are a GPU's."""
        return self.device.type == "cuda"

    @property
    def patience(self) -> float:
        """Seconds: what takes longer is asked once."""
        return 4.0 if self.on_gpu else 20.0

    @property
    def name(self) -> str:
        """What it calls itself."""
        return torch.cuda.get_device_name() if self.on_gpu else platform.processor() or platform.machine()

    def moving(self, nbytes: float) -> float:
        """The least seconds in which so many bytes pass through memory."""
        return nbytes / self.memory if self.on_gpu else reading(int(nbytes))

    def generator(self, seed: int = 0) -> torch.Generator:
        """Draws on this device."""
        return torch.Generator(self.device).manual_seed(seed)

    def __str__(self) -> str:
        done = "copy" if self.on_gpu else "read"
        threads = "" if self.on_gpu else f", {torch.get_num_threads()} threads"
        kind = str(self.dtype).removeprefix("torch.")
        rates = f"matmul {self.matmul / 1e12:.3g} TFLOP/s, {done} {self.memory / 1e9:,.4g} GB/s"
        return f"{self.name}{threads}, {kind}; {rates}"


def machine_of(options: Any) -> Machine:
    """The machine that the options ask for, and its ceilings: the best of some runs, since nothing goes above one.

    Raises ValueError where it has no such device.
    """
    device = check_device(options.device)
    on_gpu = device.type == "cuda"
    dtype = DTYPES[options.dtype or ("bfloat16" if on_gpu else "float32")]
    size = 256 if options.small else 8192 if on_gpu else 2048
    a, b, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
    matmul = 2 * size**3 / min(seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(7))
    if on_gpu:
        x, y = torch.empty(2, 1 << 30, dtype=torch.uint8, device=device)
        return Machine(device, dtype, matmul, 2 * x.nbytes / min(seconds(lambda: y.copy_(x), device) for _ in range(7)))
    nbytes = (4 if options.small else 256) << 20
    return Machine(device, dtype, matmul, nbytes / reading(nbytes))


@lru_cache(maxsize=64)
def reading(nbytes: int) -> float:
    """Seconds in which this CPU reads so many bytes, the best of some runs; a smaller array lies nearer.

    More than a gigabyte is taken to be read at a gigabyte's rate.
    """
    x = torch.ones(min(max(nbytes, 4096), 1 << 30) // 4)
    return min(seconds(x.sum) for _ in range(9)) * nbytes / x.nbytes


def seconds(function: Callable[[], Any], device: torch.device = CPU, calls: int | None = None) -> float:
    """Seconds of one call; on a GPU the median of as many as fit into a twentieth of a second, or of ``calls``."""
    if device.type == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    other = torch.empty(1 << 28, dtype=torch.uint8, device=device)  # more than an L2 cache holds

    def between() -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        other.zero_()
        start.record()
        function()
        end.record()
        return start, end

    pairs = [between()]
    torch.cuda.synchronize(device)
    many = calls or int(min(max(50 / max(pairs[0][0].elapsed_time(pairs[0][1]), 1e-3), 1), 50))
    pairs += [between() for _ in range(many - 1)]
    torch.cuda.synchronize(device)
    return median(start.elapsed_time(end) for start, end in pairs[1:] or pairs) / 1e3


@dataclass
class Row:
    """One contestant at one length."""

    contest: str
    contestant: str
    length: int
    batch: int = 1
    seconds: float | None = None  # of one call, the median; of one token of every row in decode
    times: list[float] = field(default_factory=list)
    floor: float | None = None  # seconds
    memory: int | None = None  # bytes above what was held before
    error: float | None = None  # RMS of the difference from float64, over RMS
    state_error: float | None = None  # the same of the final state
    same: bool | None = None  # whether a second call gave the same bits
    needed: float = 0  # bytes that it is thought to need
    note: str | None = None  # why there is no time, in a sentence

    @property
    def share(self) -> float | None:
        """Of the floor; 1 is as fast as the machine can be."""
        return None if self.seconds is None or self.floor is None else self.floor / self.seconds

    @property
    def rate(self) -> float | None:
        """Tokens a second: of the whole text, or in decode a token a row."""
        tokens = self.batch * (1 if self.contest.startswith("decode") else self.length)
        return None if self.seconds is None else tokens / self.seconds


def compete(
    rows: Sequence[Row],
    runs: Sequence[Callable[[], Any]],
    repeat: int,
    machine: Machine,
    tokens: int = 1,
    calls: int | None = None,
) -> None:
    """Fill in times and peak memory: a first call of each, then rounds in which each is asked once.

    A call that raises is a note, and that contestant is asked no more. ``tokens`` are the tokens of one call, ``calls``
    those of a round on a GPU.
    """
    running = []
    for row, run in zip(rows, runs, strict=True):
        with noting(row, machine):
            row.memory, first = peak(run, machine.device)
            if first > machine.patience:
                row.times = [first / tokens]
            else:
                running.append((row, run))
    for _ in range(repeat):
        for row, run in running:
            if row.note is None:
                with noting(row, machine):
                    row.times.append(seconds(run, machine.device, calls) / tokens)
    for row in rows:
        row.seconds = median(row.times) if row.times and row.note is None else None


def peak(run: Callable[[], Any], device: torch.device) -> tuple[int | None, float]:
    """Bytes that a call needs above what is held before it, None where the system does not tell; and its seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before, start = torch.cuda.memory_allocated(device), time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, time.perf_counter() - start
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what is free, and still counted
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = status("VmRSS")
    except (OSError, KeyError):
        return None, seconds(run)
    took = seconds(run)
    return max(status("VmHWM") - before, 0), took


def status(name: str, file: str = "/proc/self/status") -> int:
    """Bytes, as the system tells them: of this process, or in ``/proc/meminfo`` of the machine."""
    with open(file, encoding="ascii") as f:
        lines = dict(line.split(":", 1) for line in f)
    return int(lines[name].split()[0]) * 1024


def ratio(row: Row, other: Row) -> float | None:
    """How many times as long the other one takes: the median over the rounds in which both ran."""
    pairs = [b / a for a, b in zip(row.times, other.times) if a > 0]  # one may have fallen out
    return median(pairs) if pairs else None


def off(x: Tensor | Sequence[Tensor], exact: Tensor | Sequence[Tensor]) -> float:
    """RMS of the difference from float64, over RMS, of all tensors together."""
    pairs = [(x, exact)] if isinstance(x, Tensor) and isinstance(exact, Tensor) else list(zip(x, exact, strict=True))
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return (difference / sum(float(b.double().square().sum()) for _, b in pairs)) ** 0.5


# --- What does not work ---------------------------------------------------------------------------------------------


class noting:
    """A failure becomes the row's note: what was missing, or the first line of what was said."""

    def __init__(self, row: Row, machine: Machine):
        self.row, self.machine, self.left = row, machine, free(machine)

    def __enter__(self) -> None:
        if self.machine.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.machine.device)
            self.held = torch.cuda.memory_allocated(self.machine.device)

    def __exit__(self, kind, error, trace) -> bool:
        if kind is None or not issubclass(kind, Exception):
            return False
        if issubclass(kind, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            asked = wanted(error)
            if self.machine.on_gpu:
                asked += torch.cuda.max_memory_allocated(self.machine.device) - self.held
                torch.cuda.empty_cache()
            self.row.note = too_large(self.row, self.left, asked)
        elif issubclass(kind, ImportError):
            self.row.note = f"absent: {error}"
        else:
            self.row.note = f"failed: {kind.__name__}: {(str(error).splitlines() or ['?'])[0]}"[:200]
        return True


def free(machine: Machine) -> float:
    """Bytes that may still be had; infinitely many where the system does not tell."""
    if not machine.on_gpu:
        try:
            return status("MemAvailable", "/proc/meminfo")
        except (OSError, KeyError):
            return float("inf")
    kept = torch.cuda.memory_reserved(machine.device) - torch.cuda.memory_allocated(machine.device)
    return torch.cuda.mem_get_info(machine.device)[0] + kept


def wanted(error: BaseException) -> float:
    """Bytes that were asked for in vain, by the error's own words."""
    found = re.search(r"Tried to allocate ([\d.]+) ([KMG])iB", str(error))
    return float(found[1]) * 1024 ** (1 + "KMG".index(found[2])) if found else 0.0


def fits(row: Row, machine: Machine) -> bool:
    """Whether a row may be tried; if what it is thought to need is not there, its note says so."""
    left = free(machine)
    if row.needed > left:
        row.note = too_large(row, left)
    return row.note is None


def too_large(row: Row, left: float, asked: float = 0) -> str:
    """What was needed, what there is, and what would fit; need grows with the tokens of a row, or with the rows."""
    needed = max(row.needed, asked)
    if not needed or needed <= left:  # the piece that was asked for came after others
        return f"out of memory: more than the {left / 1e9:.1f} GB that are free; a shorter text or fewer rows need less"
    share = left / needed
    tokens = f"{max(int(row.length * share), 0):,} tokens"
    would = f"{int(row.batch * share)} rows, or {tokens} in each" if row.batch > 1 else tokens
    return f"out of memory: about {needed / 1e9:.1f} GB are needed and {left / 1e9:.1f} GB are free; {would} would fit"


def has_fla() -> bool:
    """Whether flash-linear-attention is installed."""
    return importlib.util.find_spec("fla") is not None


# --- What all contests ask for --------------------------------------------------------------------------------------


def lengths_of(options: Any, usual: Sequence[int]) -> list[int]:
    """What --lengths says. Raises ValueError where it is no list of lengths."""
    if not options.lengths:
        return list(usual)
    try:
        lengths = [int(x) for x in options.lengths.split(",")]
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 2:
        raise ValueError(f"--lengths is {options.lengths!r}; give whole numbers from 2 on, with commas between them.")
    return lengths


def shape_of(config: MiniMaxConfig) -> str:
    """A model in words."""
    kinds, c = config.layer_types, config
    softmax = kinds.count("full_attention")
    return (
        f"{len(kinds) - softmax} lightning + {softmax} softmax layers, D {c.hidden_size}, {c.num_attention_heads} × "
        f"{c.head_dim} heads, {c.num_local_experts} experts of {c.intermediate_size}, {c.num_experts_per_tok} a token"
    )
