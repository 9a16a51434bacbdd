"""Draw recall against the number of pairs: `python docs/figures/recall.py`.

The numbers are those that `python -m recall.train` left in `notebooks/recall/measured.json`: a line is the mean of the
seeds, a dot each seed, the band goes from the worst to the best.
"""

import json
from pathlib import Path

from kit import Plot, dot, sheet, text, write

MEASURED = Path(__file__).parents[2] / "notebooks" / "recall" / "measured.json"
NAMES = {"SSSS": "all softmax", "LLLS": "three lightning, one softmax", "LLLL": "all lightning"}
LABELS = {"SSSS": 1.035, "LLLS": 0.9, "LLLL": 0.5}  # how high each name stands
STYLES = {"SSSS": "dashed", "LLLS": "hot", "LLLL": ""}


def figures():
    """File name → content."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    pairs = measured["pairs"]
    plot = Plot((pairs[0], pairs[-1]), (0, 1), left=40, top=38, bottom=240)
    levels = {share: f"{share:.0%}" for share in (0, 0.25, 0.5, 0.75, 1)}
    parts = [plot.axes({n: n for n in pairs}, levels, "pairs to remember", "answered rightly")]
    parts.append(plot.curve((pairs[0], pairs[-1]), (1 / 16, 1 / 16), "dotted"))
    x, y = plot.place(pairs[0], 1 / 16)
    parts.append(text(x, y - 4, "guessing", "soft"))
    point = []
    for pattern, name in NAMES.items():
        seeds = list(zip(*measured["accuracy"][pattern], strict=True))  # a tuple of seeds for each number of pairs
        mean, worst, best = ([f(s) for s in seeds] for f in (lambda s: sum(s) / len(s), min, max))
        style = STYLES[pattern]
        parts += [plot.band(pairs, worst, best, style), plot.curve(pairs, mean, f"{style} thick")]
        for n, shares in zip(pairs, seeds, strict=True):
            parts += [dot(*plot.place(n, share), 1.7, "hot" if style == "hot" else "grey") for share in shares]
        parts.append(text(*plot.place(pairs[-1], LABELS[pattern]), name, f"{style} end"))
        point.append(f"{name} {mean[-1]:.0%} (seeds {worst[-1]:.0%} to {best[-1]:.0%})")
    label = (
        f"Recall falls with the number of pairs where all layers are lightning, and one softmax layer holds it up. At "
        f"{pairs[-1]} pairs: {'; '.join(point)}."
    )
    return {"recall.svg": sheet(440, 280, label, parts)}


if __name__ == "__main__":
    write(figures())
