"""Error by depth, drawn: readable on a light and on a dark page."""

import math
from pathlib import Path

from .report import MISSING, Report

INK, RIGHT, WRONG = "#7f8896", "#2a9d8f", "#e4572e"


def plot_errors(report: Report, file: Path, kind: str) -> None:
    """Draw a dot for each part, in order of depth, under the line of what is allowed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "matplotlib is not installed; pip install 'minimax-twin[notebooks]' brings it."
        ) from None

    rows = [row for row in report.rows if row.verdict != MISSING and math.isfinite(row.error)]
    rows = [row for row in rows if not row.part.endswith(".indices")]  # right or wrong, no size
    rows.sort(key=lambda row: [r.part for r in report.rows].index(row.part))
    depth = {part: i for i, part in enumerate(dict.fromkeys(row.part for row in rows))}
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    floor = min([row.error for row in rows if row.error > 0], default=1e-17) / 3  # where exact answers are drawn
    for phase, marker in zip(dict.fromkeys(row.phase for row in rows), "o^sDvP*X<>", strict=False):
        here = [row for row in rows if row.phase == phase]
        if here:
            x, y = [depth[row.part] for row in here], [max(row.error, floor) for row in here]
            colours = [WRONG if row.wrong else RIGHT for row in here]
            axes.scatter(x, y, s=14, c=colours, marker=marker, alpha=0.8, linewidths=0, label=phase)
    limits = {row.part: row.allowed for row in rows if row.allowed > 0}
    axes.plot([depth[p] for p in limits], list(limits.values()), color=INK, lw=1, label="allowed")
    starts = [i for part, i in depth.items() if part.endswith(".input_layernorm")]
    for n, start in enumerate(starts):
        axes.axvline(start - 0.5, color=INK, lw=0.4, alpha=0.5)
        axes.annotate(f"layer {n}", (start, 1.01), xycoords=("data", "axes fraction"), fontsize=7, color=INK)
    axes.set_yscale("log")
    axes.set_xticks([])
    axes.set_xlabel("parts, in the order in which the model computes them", color=INK)
    axes.set_ylabel("RMS error / RMS", color=INK)
    axes.tick_params(colors=INK, which="both")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.06), ncols=6)
    figure.savefig(file, format=kind, transparent=True, dpi=150)
