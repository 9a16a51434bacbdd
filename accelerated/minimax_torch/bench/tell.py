"""What a contest leaves behind: a table, a file of JSON, and a plot."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

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
        wide = [max(10, len(list(titles)[i]) + 2) for i in shown]
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
    ('4.20 ms', '3.50 s', '25.0 µs')
    """
    return f"{x:.2f} s" if x >= 1 else f"{x * 1e3:.2f} ms" if x >= 1e-3 else f"{x * 1e6:.1f} µs"


def write(file: Path, rows: Sequence[Row], machine: Machine, more: dict[str, Any]) -> None:
    """Everything that was measured, as JSON."""
    device = {"name": machine.name, "device": str(machine.device), "threads": torch.get_num_threads()}
    ceilings = {"matmul": machine.matmul, "memory": machine.memory}
    dtype = str(machine.dtype).removeprefix("torch.")
    told = {"machine": device, "torch": torch.__version__, "dtype": dtype, "ceilings": ceilings, **more}
    measured = [{**asdict(row), "share": row.share, "rate": row.rate} for row in rows]
    file.write_text(json.dumps({**told, "rows": measured}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


INK = "#7f8896"
COLOURS = ("#2a9d8f", "#e4572e", "#7b61c4", "#c98a1b", "#3a7bd5", "#b5457a", "#6b8e23", "#8a8f98")


def plot(file: Path, rows: Sequence[Row], first: str) -> None:
    """Time and memory against length, or rows at a time, all axes logarithmic; a line for each contestant.

    Below the dashed line no machine with these ceilings goes. What stands at the end of a line is how many times as
    long it takes as ``first`` there.
    """
    from matplotlib.figure import Figure

    panels = panels_of([row for row in rows if row.seconds is not None])
    names = list(dict.fromkeys(row.contestant for row in rows if row.seconds is not None))
    figure = Figure(figsize=(4.4 * max(len(panels), 1), 6.4), layout="constrained")
    axes = figure.subplots(2, max(len(panels), 1), squeeze=False)
    for column, (title, along, here) in enumerate(panels):
        upper, lower = axes[0][column], axes[1][column]
        upper.set_title(title, color=INK, fontsize=10)
        draw_floor(upper, here, along)
        for n, name in enumerate(names):
            mine = sorted((row for row in here if row.contestant == name), key=lambda row: getattr(row, along))
            colour = COLOURS[n % len(COLOURS)]
            style: dict[str, Any] = {"marker": "o", "ms": 4, "lw": 1.2, "color": colour, "label": name}
            upper.plot([getattr(r, along) for r in mine], [r.seconds for r in mine], **style)
            held = [r for r in mine if r.memory]
            lower.plot([getattr(r, along) for r in held], [(r.memory or 0) / 2**20 for r in held], **style)
            draw_ratio(upper, mine, here, along, first, colour)
        lower.set_xlabel("tokens" if along == "length" else "rows at a time", color=INK)
        for at, told in ((upper, "seconds"), (lower, "MiB above what was held")):
            finish_axes(at, told if column == 0 else "")
    labelled = {label: h for row in axes for at in row for h, label in zip(*at.get_legend_handles_labels())}
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


def draw_floor(at: Any, rows: Sequence[Row], along: str) -> None:
    """The floor of the first contestant that has one, dashed."""
    name = next((row.contestant for row in rows if row.floor), None)
    points = sorted((getattr(row, along), row.floor) for row in rows if row.contestant == name and row.floor)
    if points:
        x, y = zip(*points)
        at.plot(x, y, color=INK, lw=1, ls="--", label="floor")


def draw_ratio(at: Any, mine: Sequence[Row], rows: Sequence[Row], along: str, first: str, colour: str) -> None:
    """At the end of a line, the ratio to the first contestant's time."""
    if mine and mine[-1].contestant != first:
        key = (mine[-1].length, mine[-1].batch)
        own = next((row for row in rows if row.contestant == first and (row.length, row.batch) == key), None)
        against = None if own is None else ratio(own, mine[-1])
        if against is not None:
            at.annotate(f" {against:.2g} ×", (getattr(mine[-1], along), mine[-1].seconds), color=colour, fontsize=8,
                        xytext=(4, 0), textcoords="offset points", va="center")  # fmt: skip


def finish_axes(at: Any, told: str) -> None:
    """Both logarithmic, and no frame."""
    at.set_xscale("log", base=2)
    at.set_yscale("log")
    at.xaxis.set_major_formatter(
        lambda x, _: f"{x / 2**20:g}M" if x >= 2**20 else f"{x / 1024:g}k" if x >= 1024 else f"{x:g}"
    )
    at.margins(x=0.16)
    at.set_ylabel(told, color=INK)
    at.tick_params(colors=INK, which="both")
    for side, spine in at.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def finish(rows: Sequence[Row], machine: Machine, options: Any, first: str, **more: Any) -> int:
    """Write what was asked for."""
    if options.json:
        write(options.json, rows, machine, more)
    if options.plot:
        plot(options.plot, rows, first)
    return 0
