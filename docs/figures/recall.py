"""Draw recall against the number of pairs: `python docs/figures/recall.py`.

The numbers are those that `python -m recall.train` left in `notebooks/recall/measured.json`: a line is the mean of the
seeds, a dot each seed, the band goes from the worst to the best.
"""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "assets" / "figures"
MEASURED = ROOT / "notebooks" / "recall" / "measured.json"
NAMES = {"SSSS": "all softmax", "LLLS": "three lightning, one softmax", "LLLL": "all lightning"}
LABELS = {"SSSS": 1.035, "LLLS": 0.9, "LLLL": 0.5}  # how high each name stands
STYLE = """
.recall{--ink:var(--md-default-fg-color,#24292f);--soft:var(--md-default-fg-color--light,#6b7280);
--hot:var(--twin-accent,#d2622a);font:13px var(--md-text-font-family,system-ui,sans-serif);
display:block;width:100%;max-width:560px;margin:0 auto}
.recall text{fill:var(--ink)}.recall .soft{fill:var(--soft);font-size:11px}.recall .mid{text-anchor:middle}
.recall .end{text-anchor:end}.recall path,.recall line{fill:none;stroke:var(--soft);stroke-width:1}
.recall .grid{opacity:.35}.recall .guess{stroke-dasharray:2 3}.recall .mean{stroke-width:2}
.recall .band{stroke:none;fill:var(--soft);fill-opacity:.18}.recall circle{fill:var(--soft)}
.recall .LLLS path{stroke:var(--hot)}.recall .LLLS .band{stroke:none;fill:var(--hot)}
.recall .LLLS circle,.recall .LLLS text{fill:var(--hot)}.recall .SSSS .mean{stroke-dasharray:6 3}
@media(prefers-color-scheme:dark){
.recall{--ink:var(--md-default-fg-color,#d5d9e0);--soft:var(--md-default-fg-color--light,#9aa3b0)}}
""".replace("\n", "")
LEFT, RIGHT, TOP, BOTTOM = 40, 430, 38, 240


def figures():
    """File name → content."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    pairs = measured["pairs"]

    def place(n, share):
        x = LEFT + (n - pairs[0]) / (pairs[-1] - pairs[0]) * (RIGHT - LEFT)
        return f"{x:.1f} {BOTTOM - share * (BOTTOM - TOP):.1f}"

    def through(shares, backwards=False):
        points = [place(n, share) for n, share in zip(pairs, shares, strict=True)]
        return " L".join(points[::-1] if backwards else points)

    parts, point = [], []
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path d="M{place(pairs[0], share)} L{place(pairs[-1], share)}" class="grid"/>')
        y = place(0, share).split()[1]
        parts.append(f'<text x="{LEFT - 6}" y="{float(y) + 4:.1f}" class="soft end">{share:.0%}</text>')
    for n in pairs:
        x = place(n, 0).split()[0]
        parts.append(f'<text x="{x}" y="{BOTTOM + 16}" class="soft mid">{n}</text>')
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 34}" class="soft mid">pairs to remember</text>')
    parts.append('<text x="0" y="10" class="soft">answered rightly</text>')
    parts.append(f'<path d="M{place(pairs[0], 1 / 16)} L{place(pairs[-1], 1 / 16)}" class="guess"/>')
    x, y = place(pairs[0], 1 / 16).split()
    parts.append(f'<text x="{x}" y="{float(y) - 4:.1f}" class="soft">guessing</text>')
    for pattern, name in NAMES.items():
        seeds = list(zip(*measured["accuracy"][pattern], strict=True))  # a tuple of seeds for each number of pairs
        mean, worst, best = ([f(s) for s in seeds] for f in (lambda s: sum(s) / len(s), min, max))
        parts.append(f'<g class="{pattern}"><path d="M{through(best)} L{through(worst, True)} Z" class="band"/>')
        parts.append(f'<path d="M{through(mean)}" class="mean"/>')
        for n, shares in zip(pairs, seeds, strict=True):
            for share in shares:
                x, y = place(n, share).split()
                parts.append(f'<circle cx="{x}" cy="{y}" r="1.7"/>')
        x, y = place(pairs[-1], LABELS[pattern]).split()
        parts.append(f'<text x="{x}" y="{y}" class="end">{name}</text></g>')
        point.append(f"{name} {mean[-1]:.0%} (seeds {worst[-1]:.0%} to {best[-1]:.0%})")
    label = (
        f"Recall falls with the number of pairs where all layers are lightning, and one softmax layer holds it up. At "
        f"{pairs[-1]} pairs: {'; '.join(point)}."
    )
    return {
        "recall.svg": f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 440 280" class="recall" role="img" '
        f'aria-label="{label}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    }


if __name__ == "__main__":
    for file, svg in figures().items():
        (FOLDER / file).write_text(svg, encoding="utf-8", newline="\n")
