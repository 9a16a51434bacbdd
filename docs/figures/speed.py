"""Draw time and memory against length: `python docs/figures/speed.py`.

The numbers lie in speed.json. ``--take cpu FILE`` and ``--take gpu FILE`` put there what `minimax-twin bench layers`
and `minimax-twin bench ops --device cuda` wrote with ``--json FILE``.
"""

import json
import math
import sys
from pathlib import Path

from kit import Plot, dot, sheet, text, write
from minimax_numpy.counts import binary
from minimax_torch.bench.tell import duration, in_short

FILE = Path(__file__).with_name("speed.json")
CONTESTS = {"cpu": "prefill, lightning layer", "gpu": "forward"}
NAMES = {"lightning": "ours", "softmax, SDPA": "softmax, SDPA", "ours, as written": "as written"}
STYLES = {
    "ours": "hot thick",
    "transformers": "cool thick",
    "fla": "cool thick",
    "softmax, SDPA": "ink",
    "as written": "",
}
WHERE = {
    "cpu": "A lightning layer and its experts, 512 channels, float32, two threads of a CPU",
    "gpu": "One sequence, 64 heads of 128, bfloat16, an H200",
}


def take(kind, file):
    """Keep one contest of what the bench wrote: of each contestant length, seconds and MiB."""
    rows = json.loads(Path(file).read_text(encoding="utf-8"))["rows"]
    rows = [row for row in rows if row["contest"] == CONTESTS[kind] and row["seconds"] and row["memory"]]
    if not rows:
        raise SystemExit(f"{file} has no row of {CONTESTS[kind]!r} with time and memory.")
    curves = {"floor": {row["length"]: (row["floor"], None) for row in rows}}
    for row in rows:
        name = NAMES.get(row["contestant"], row["contestant"])
        if name in STYLES:
            curves.setdefault(name, {})[row["length"]] = (row["seconds"], max(1, row["memory"] >> 20))
    kept = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    kept[kind] = {
        name: [[T, float(f"{time:.3g}"), held] for T, (time, held) in sorted(points.items())]
        for name, points in curves.items()
    }
    FILE.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8", newline="\n")


def power(x, base):
    """The powers of a base within the range, few enough to be read."""
    low, high = (math.log(y, base) for y in x)
    every = 1 if high - low < 6 else 2
    return [base**n for n in range(math.ceil(low), math.floor(high) + 1, every)]


def panel(found, column, title, top, base, told):
    """One pair of axes, a line for each contestant with its name at the end."""
    curves = {name: [(row[0], row[column]) for row in rows if row[column]] for name, rows in found.items()}
    curves = {name: points for name, points in curves.items() if points}
    values = [y for points in curves.values() for _, y in points]
    lengths = sorted({T for points in curves.values() for T, _ in points})
    limits = (min(values) / 1.6, max(values) * 1.6)
    plot = Plot((lengths[0], lengths[-1]), limits, left=52, top=top, right=340, bottom=top + 170, log="xy")
    ticks = {y: told(y) for y in power(limits, base)}
    parts, ends = [plot.axes({T: in_short(T) for T in lengths}, ticks, "tokens", title)], []
    for name, points in curves.items():
        style = STYLES.get(name, "dashed")
        parts.append(plot.curve(*zip(*points, strict=True), style))
        (x, y), colour = plot.place(*points[-1]), style.split()[0] if style.startswith(("hot", "cool")) else ""
        if name != "floor":
            parts += [dot(*plot.place(*point), 2.5, colour or "dot") for point in points]
        if points[-1][0] == lengths[-1]:
            ends.append((y, name, colour))
        else:  # it went no further
            parts.append(text(x - 8, y + 2, name, f"{colour} end"))
    lowest = math.inf
    for y, name, colour in sorted(ends, reverse=True):
        lowest = min(lowest - 14, y + 4)
        parts.append(text(plot.right + 8, lowest, name, colour))
    return "".join(parts)


def figures():
    """File name → content."""
    measured, drawn = json.loads(FILE.read_text(encoding="utf-8")), {}
    for kind, found in measured.items():
        parts = [text(0, 14, WHERE[kind], "soft")]
        parts.append(panel(found, 1, "time", 48, 10, duration))
        parts.append(panel(found, 2, "memory above what was held", 300, 4, lambda x: binary(x << 20)))
        (T, ours, held), told = found["ours"][-1], []
        for name, rows in found.items():
            if name not in ("ours", "floor"):
                last, theirs, memory = rows[-1]
                _, mine, own = next(row for row in found["ours"] if row[0] == last)
                told.append(
                    f"{name} takes {theirs / mine:.1f} times as long and holds {memory / own:.1f} times as much"
                )
                told[-1] += f" at {last:,}"
        point = f"{WHERE[kind]}: {T:,} tokens take {duration(ours)} and hold {binary(held << 20)}; {'; '.join(told)}."
        drawn[f"speed_{kind}.svg"] = sheet(440, 520, point, parts)
    return drawn


if __name__ == "__main__":
    if "--take" in sys.argv:
        take(*sys.argv[sys.argv.index("--take") + 1 :][:2])
    write(figures())
