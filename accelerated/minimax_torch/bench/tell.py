"""What a contest leaves behind: a table, a file of JSON, and a plot."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from minimax_numpy.counts import binary

from .contest import Machine, Row, ratio


def table(rows: Sequence[Row], first: str) -> str:
    """Rows as text, contest by contest; ``first`` is the contestant that the others are compared with."""
    lines = []
    keys = dict.fromkeys((row.contest, row.length, row.batch) for row in rows)
    for contest, length, batch in keys:
        here = [row for row in rows if (row.contest, row.length, row.batch) == (contest, length, batch)]
        own = next((row for row in here if row.contestant == first), here[0])
        many = f", batch {batch}" if batch > 1 else ""
        cells = {row.contestant: cells_of(row, own) for row in here}
        titles = dict.fromkeys(("time", f"× {first}", "of floor", "tokens/s", "memory", "error", "of state", "twice"))
        shown = [i for i in range(len(titles)) if any(row[i] for row in cells.values())]  # no empty column
        wide = [2 + max(8, len(list(titles)[i]), *(len(row[i]) for row in cells.values())) for i in shown]
        lines += [f"\n{contest}, {length:,} tokens{many}"]
        lines += [f"  {'':<29}" + "".join(f"{list(titles)[i]:>{w}}" for i, w in zip(shown, wide))]
        for row in here:
            if row.seconds is None:
                lines.append(f"  {row.contestant:<29}{row.note or 'not run'}")
            else:
                told = (cells[row.contestant][i] for i in shown)
                lines.append(f"  {row.contestant:<29}" + "".join(f"{c:>{w}}" for c, w in zip(told, wide)))
    return "\n".join(lines)


def cells_of(row: Row, own: Row) -> list[str]:
    """A row's columns."""
    against = ratio(own, row) if row.seconds is not None and own.seconds is not None else None
    figures = (
        (row.seconds, duration),
        (against, "{:.2f}".format),
        (row.share, "{:.0%}".format),
        (row.rate, "{:,.0f}".format),
        (row.memory, lambda n: f"{n / 2**20:,.0f} MiB"),
        (row.error, "{:.0e}".format),
        (row.state_error, "{:.0e}".format),
        (row.same, lambda same: "same bits" if same else "differs"),
    )
    return ["" if x is None else told(x) for x, told in figures]


def duration(x: float) -> str:
    """Seconds in the unit that suits them.

    >>> duration(0.0042), duration(3.5), duration(2.5e-05)
    ('4.2 ms', '3.5 s', '25 µs')
    """
    return f"{x:.3g} s" if x >= 1 else f"{x * 1e3:.3g} ms" if x >= 1e-3 else f"{x * 1e6:.3g} µs"


def in_short(n: float) -> str:
    """A number of tokens or rows.

    >>> in_short(8), in_short(16_384), in_short(1_048_576)
    ('8', '16k', '1M')
    """
    return f"{n / 2**20:g}M" if n >= 2**20 else f"{n / 1024:g}k" if n >= 1024 else f"{n:g}"


def write(file: Path, rows: Sequence[Row], machine: Machine, more: dict[str, Any]) -> None:
    """Everything that was measured, as JSON."""
    device = {"name": machine.name, "device": str(machine.device), "threads": torch.get_num_threads()}
    ceilings = {"matmul": machine.matmul, "memory": machine.memory}
    dtype = str(machine.dtype).removeprefix("torch.")
    told = {"machine": device, "torch": torch.__version__, "dtype": dtype, "ceilings": ceilings, **more}
    measured = [{**asdict(row), "share": row.share, "rate": row.rate} for row in rows]
    file.write_text(json.dumps({**told, "rows": measured}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


INK = "#7f8896"
COLOURS = (
    "#2a9d8f", "#e4572e", "#7b61c4", "#c98a1b", "#3a7bd5", "#b5457a",
    "#6b8e23", "#8a8f98", "#5b8fb0", "#a0522d", "#c77dbb", "#3f7d58",
)  # fmt: skip


def plot(file: Path, rows: Sequence[Row], first: str) -> None:
    """Time and, below it, memory against length or rows at a time, all logarithmic; a line for each contestant.

    Below the dashed line no machine with these ceilings goes. What stands at the end of a line is how many times as
    long it takes as ``first`` there.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.seconds is not None]
    panels, names = panels_of(rows), list(dict.fromkeys(row.contestant for row in rows))
    wide, high = min(len(panels), 3), -(-len(panels) // 3)
    figure = Figure(figsize=(4.6 * wide, 6 * high), layout="constrained")
    axes = figure.subplots(2 * high, wide, squeeze=False)
    for at in axes.flat:
        at.set_axis_off()
    for n, (title, along, here) in enumerate(panels):
        upper, lower = axes[n // 3 * 2][n % 3], axes[n // 3 * 2 + 1][n % 3]
        lowest = next((row.contestant for row in here if row.floor), None)
        floors = sorted((getattr(row, along), row.floor) for row in here if row.floor and row.contestant == lowest)
        upper.plot(*zip(*floors), color=INK, lw=1, ls="--", label="floor")
        ends = []
        for name, colour in zip(names, cycle(COLOURS)):
            mine = sorted((row for row in here if row.contestant == name), key=lambda row: getattr(row, along))
            style: dict[str, Any] = {"marker": "o", "ms": 4, "lw": 1.2, "color": colour, "label": name}
            upper.plot([getattr(r, along) for r in mine], [r.seconds for r in mine], **style)
            held = [r for r in mine if (r.memory or 0) >= 2**20]  # less is noise
            lower.plot([getattr(r, along) for r in held], [r.memory for r in held], **style)
            own = next(
                (
                    r
                    for r in here
                    if mine and (r.contestant, r.length, r.batch) == (first, mine[-1].length, mine[-1].batch)
                ),
                None,
            )
            if own is not None and own is not mine[-1] and (against := ratio(own, mine[-1])):
                ends.append((mine[-1].seconds, getattr(mine[-1], along), f"{against:.2g} ×", colour))
        finish_axes(upper, title, 10, duration)
        finish_axes(lower, "memory above what was held", 2, lambda x: binary(int(x)))
        lower.set_xlabel("rows at a time" if along == "batch" else "tokens", color=INK)
        draw_ends(upper, ends)
    labelled = {label: h for at in axes.flat for h, label in zip(*at.get_legend_handles_labels())}
    figure.legend(list(labelled.values()), list(labelled), frameon=False, labelcolor=INK, fontsize=9,
                  loc="outside lower center", ncols=4)  # fmt: skip
    figure.savefig(file, format=file.suffix[1:], transparent=True, dpi=150)


def panels_of(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    """Title, what runs along the axis, and rows: lengths where there are several, else rows at a time."""
    panels = []
    for contest in dict.fromkeys(row.contest for row in rows):
        here = [row for row in rows if row.contest == contest]
        batches = sorted({row.batch for row in here})
        long = [b for b in batches if len({row.length for row in here if row.batch == b}) > 1]
        for batch in long:
            title = f"{contest}, batch {batch}" if len(batches) > 1 else contest
            panels.append((title, "length", [row for row in here if row.batch == batch]))
        if len(batches) > 1 and len(long) < len(batches):
            shortest = min(row.length for row in here)
            panels.append((contest, "batch", [row for row in here if row.length == shortest]))
        elif not long:
            panels.append((contest, "length", here))
    return panels


def draw_ends(at: Any, ends: Sequence[tuple]) -> None:
    """A word at the end of each line, moved up where it would lie on another."""
    lowest = float("-inf")
    for y, x, told, colour in sorted(ends):
        lowest = max(lowest + 0.05, at.transAxes.inverted().transform(at.transData.transform((x, y)))[1])
        at.annotate(told, (x, lowest), xycoords=("data", "axes fraction"), xytext=(6, 0), textcoords="offset points",
                    color=colour, fontsize=8, va="center")  # fmt: skip


def finish_axes(at: Any, title: str, base: int, told: Callable[[float], str]) -> None:
    """Both logarithmic, numbers in words, and no frame."""
    from matplotlib.ticker import LogLocator

    if not any(len(line.get_xdata()) for line in at.lines):
        return
    at.set_axis_on()
    at.set_title(title, color=INK, fontsize=10)
    at.set_xscale("log", base=2)
    at.set_yscale("log", base=base)
    at.margins(x=0.18)
    at.xaxis.set_major_formatter(lambda x, _: in_short(x))
    if base == 10:
        at.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    at.yaxis.set_major_formatter(lambda y, _: told(y))
    at.yaxis.set_minor_formatter(lambda y, _: "")
    at.tick_params(colors=INK, which="both", labelsize=8)
    for side, spine in at.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def redraw(source: str, file: str, first: str | None = None) -> None:
    """Draw a plot of what was written as JSON, maybe on another machine."""
    known = {field.name for field in fields(Row)}
    measured = json.loads(Path(source).read_text(encoding="utf-8"))["rows"]
    rows = [Row(**{name: x for name, x in row.items() if name in known}) for row in measured]
    plot(Path(file), rows, first or rows[0].contestant)


def finish(rows: Sequence[Row], machine: Machine, options: Any, first: str, **more: Any) -> int:
    """Write what was asked for."""
    if options.json:
        write(options.json, rows, machine, more)
    if options.plot:
        plot(options.plot, rows, first)
    return 0
