"""A contest: the machine's ceilings first, then each contestant in turn, in one process and one run.

A time means little on a machine that others use, so each round asks every contestant once, and a ratio is the median
of the rounds' ratios. *Share of the floor* is the least time that the machine's own ceilings allow, over the time
taken: arithmetic at the rate of its matmul, or as many bytes, read from an array of that size.
"""

import ctypes
import json
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor


@dataclass
class Ceilings:
    """What the machine can do: FLOP a second of a float32 matmul, bytes a second of a read."""

    matmul: float
    read: float

    def __str__(self) -> str:
        return f"matmul {self.matmul / 1e9:.0f} GFLOP/s, read {self.read / 1e9:.1f} GB/s"


@dataclass
class Row:
    """One contestant at one length."""

    contest: str
    contestant: str
    length: int
    batch: int = 1
    seconds: float | None = None  # of one call, the median; of one token in decode
    times: list[float] = field(default_factory=list)
    floor: float | None = None  # seconds
    memory: int | None = None  # bytes above what was held before
    error: float | None = None  # RMS of the difference from float64, over RMS
    note: str | None = None  # why there is no time, in a sentence

    @property
    def share(self) -> float | None:
        """Of the floor; 1 is as fast as the machine can be."""
        return None if self.seconds is None or self.floor is None else self.floor / self.seconds


def ceilings(size: int = 2048, megabytes: int = 256, repeat: int = 7) -> Ceilings:
    """Measure them: the best of some runs, since a ceiling is what nothing goes above."""
    a, b, out = (torch.randn(size, size) for _ in range(3))
    matmul = min(seconds(lambda: torch.mm(a, b, out=out)) for _ in range(repeat))
    return Ceilings(2 * size**3 / matmul, (megabytes << 20) / reading(megabytes << 20, repeat))


@lru_cache(maxsize=64)
def reading(nbytes: int, repeat: int = 9) -> float:
    """Seconds in which this machine reads so many bytes, the best of some runs; a smaller array lies nearer.

    More than a gigabyte is taken to be read at a gigabyte's rate.
    """
    few = min(max(nbytes, 4096), 1 << 30)
    x = torch.ones(few // 4)
    return min(seconds(x.sum) for _ in range(repeat)) * nbytes / x.nbytes


def seconds(function: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compete(rows: Sequence[Row], runs: Sequence[Callable[[], Any]], repeat: int, tokens: int = 1) -> None:
    """Fill in times and peak memory: a first call of each, then rounds in which each is asked once.

    A call that raises is a note, and that contestant is asked no more. ``tokens`` are the tokens of one call.
    """
    running = []
    for row, run in zip(rows, runs, strict=True):
        with noting(row):
            row.memory = peak(run)
            running.append((row, run))
    for _ in range(repeat):
        for row, run in running:
            if row.note is None:
                with noting(row):
                    row.times.append(seconds(run) / tokens)
    for row, _ in running:
        row.seconds = median(row.times) if row.times and row.note is None else None


class noting:
    """A failure becomes the row's note: the first line of what was said."""

    def __init__(self, row: Row):
        self.row = row

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> bool:
        if kind is None or not issubclass(kind, Exception):
            return False
        self.row.note = f"failed: {kind.__name__}: {(str(error).splitlines() or ['?'])[0]}"[:200]
        return True


def peak(run: Callable[[], Any]) -> int | None:
    """Bytes that a call needs above what is held before it; None where the system does not tell."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what is free, and still counted
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = status("VmRSS")
    except (OSError, KeyError):
        run()
        return None
    run()
    return max(status("VmHWM") - before, 0)


def status(name: str) -> int:
    """Bytes, as the system tells them of this process."""
    with open("/proc/self/status", encoding="ascii") as f:
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


# --- What is printed, written and drawn -----------------------------------------------------------------------------


def table(rows: Sequence[Row], first: str) -> str:
    """Rows of one contest as text; ``first`` is the contestant that the others are compared with."""
    lines = []
    keys = dict.fromkeys((row.contest, row.length, row.batch) for row in rows)
    for contest, length, batch in keys:
        here = [row for row in rows if (row.contest, row.length, row.batch) == (contest, length, batch)]
        own = next((row for row in here if row.contestant == first), here[0])
        many = f", batch {batch}" if batch > 1 else ""
        lines += [f"\n{contest}, {length:,} tokens{many}"]
        lines += [f"  {'':<24}{'time':>12}{'× ' + first:>12}{'of floor':>10}{'memory':>12}{'error':>10}"]
        for row in here:
            if row.seconds is None:
                lines.append(f"  {row.contestant:<24}{row.note or 'not run'}")
                continue
            against = ratio(own, row)
            cells = (
                duration(row.seconds),
                "" if against is None else f"{against:.2f}",
                "" if row.share is None else f"{row.share:.0%}",
                "" if row.memory is None else f"{row.memory / 2**20:,.0f} MiB",
                "" if row.error is None else f"{row.error:.0e}",
            )
            lines.append(f"  {row.contestant:<24}" + "".join(f"{c:>{w}}" for c, w in zip(cells, (12, 12, 10, 12, 10))))
    return "\n".join(lines)


def duration(x: float) -> str:
    """Seconds in the unit that suits them.

    >>> duration(0.0042), duration(3.5), duration(2.5e-05)
    ('4.20 ms', '3.50 s', '25.0 µs')
    """
    return f"{x:.2f} s" if x >= 1 else f"{x * 1e3:.2f} ms" if x >= 1e-3 else f"{x * 1e6:.1f} µs"


def write(file: Path, rows: Sequence[Row], found: Ceilings, more: dict[str, Any]) -> None:
    """Everything that was measured, as JSON."""
    machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    told = {"machine": machine, "torch": torch.__version__, "ceilings": asdict(found), **more}
    measured = [{**asdict(row), "share": row.share} for row in rows]
    file.write_text(json.dumps({**told, "rows": measured}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


INK = "#7f8896"
COLOURS = ("#2a9d8f", "#e4572e", "#7b61c4", "#c98a1b", "#3a7bd5", "#8a8f98", "#b5457a")


def plot(file: Path, rows: Sequence[Row]) -> None:
    """Time a token and memory against length, both axes logarithmic: a line for each contestant of each contest."""
    from matplotlib.figure import Figure

    contests = list(dict.fromkeys((row.contest, row.batch) for row in rows if row.seconds is not None))
    names = list(dict.fromkeys(row.contestant for row in rows))
    figure = Figure(figsize=(4.2 * max(len(contests), 1), 6), layout="constrained")
    axes = figure.subplots(2, max(len(contests), 1), squeeze=False)
    for column, (contest, batch) in enumerate(contests):
        for line, (what, told) in enumerate((("seconds", "seconds"), ("memory", "MiB above what was held"))):
            at = axes[line][column]
            for n, name in enumerate(names):
                here = [r for r in rows if (r.contest, r.batch, r.contestant) == (contest, batch, name)]
                points = [(r.length, getattr(r, what)) for r in here if getattr(r, what)]
                if points:
                    x, y = zip(*sorted(points))
                    scale = 1 if what == "seconds" else 2**20
                    at.plot(
                        x, [v / scale for v in y], marker="o", ms=4, lw=1.2, color=COLOURS[n % len(COLOURS)], label=name
                    )
            at.set_xscale("log", base=2)
            at.set_yscale("log")
            at.set_ylabel(told, color=INK)
            at.set_title(
                f"{contest}{f', batch {batch}' if batch > 1 else ''}" if line == 0 else "", color=INK, fontsize=10
            )
            at.set_xlabel("tokens" if line else "", color=INK)
            at.tick_params(colors=INK, which="both")
            for side, spine in at.spines.items():
                spine.set_visible(side in ("left", "bottom"))
                spine.set_color(INK)
    handles = {label: h for row in axes for at in row for h, label in zip(*at.get_legend_handles_labels())}
    figure.legend(list(handles.values()), list(handles), frameon=False, labelcolor=INK, fontsize=8,
                  loc="outside lower center", ncols=4)  # fmt: skip
    figure.savefig(file, format=file.suffix[1:], transparent=True, dpi=150)


def finish(rows: Sequence[Row], found: Ceilings, options: Any, more: dict[str, Any]) -> int:
    """Write what was asked for."""
    if options.json:
        write(options.json, rows, found, more)
    if options.plot:
        plot(options.plot, rows)
    return 0


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
