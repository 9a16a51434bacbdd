"""What every figure is drawn with: a sheet of plain SVG in the site's colours, a few shapes, and the axes of a plot.

A page pastes the file in, so that its colours follow the theme; opened alone it follows the system's. Sheets are at
most 440 wide, so that their words can be read on a phone. Colours: `hot` is what the figure is about, `cool` what it
is compared with, `soft` what explains. Words on a fill are never `soft`, and the fill is at most 0.36 strong, or they
stand on a `plate`: the ink is then legible by day and by night. The same numbers give the same bytes everywhere.
"""

import math
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "assets" / "figures"
STYLE = """
.drawn{--ink:var(--md-default-fg-color,#24292f);--soft:var(--md-default-fg-color--light,#6b7280);
--hot:var(--twin-accent,#d2622a);--cool:var(--twin-cool,#2f86a6);--plate:var(--md-default-bg-color,#fff);
font:12px var(--md-text-font-family,system-ui,sans-serif);
display:block;width:100%;margin:0 auto}
.drawn text{fill:var(--ink)}.drawn .soft{fill:var(--soft);font-size:11px}.drawn .bold{font-weight:650}
.drawn .mid{text-anchor:middle}.drawn .end{text-anchor:end}.drawn .hot{fill:var(--hot)}.drawn .cool{fill:var(--cool)}
.drawn .none{fill:none;stroke:var(--soft);stroke-width:.8}.drawn .grey{fill:var(--soft)}
.drawn .small{font-size:11px}.drawn .plate{fill:var(--plate)}.drawn .dot{fill:var(--ink)}
.drawn .rim{fill:var(--md-default-bg-color,none);stroke:var(--hot);stroke-width:1.5}
.drawn path,.drawn line{fill:none;stroke:var(--soft);stroke-width:1}.drawn .grid{opacity:.35}
.drawn .thick{stroke-width:2}.drawn .cut{stroke:var(--ink);stroke-width:3}.drawn .dashed{stroke-dasharray:6 3}
.drawn .dotted{stroke-dasharray:2 3}.drawn path.hot,.drawn line.hot{fill:none;stroke:var(--hot)}
.drawn path.cool,.drawn line.cool{fill:none;stroke:var(--cool)}.drawn path.ink,.drawn line.ink{stroke:var(--ink)}
.drawn path.band{stroke:none;fill-opacity:.18;fill:var(--soft)}.drawn path.hot.band{fill:var(--hot)}
.drawn path.cool.band{fill:var(--cool)}.drawn path.tip{stroke:none;fill:var(--soft)}.drawn path.tip.hot{fill:var(--hot)}
.drawn path.tip.cool{fill:var(--cool)}.drawn a:hover rect{stroke-width:2}
@media(prefers-color-scheme:dark){
.drawn{--ink:var(--md-default-fg-color,#d5d9e0);--soft:var(--md-default-fg-color--light,#9aa3b0);
--cool:var(--twin-cool,#5fb0cf);--plate:var(--md-default-bg-color,#1e2129)}}
""".replace("\n", "")


def number(x):
    """A coordinate: no more digits than a screen shows."""
    return f"{round(float(x), 1):g}"


def text(x, y, words, style=""):
    """Words; y is the line that they stand on."""
    return f'<text x="{number(x)}" y="{number(y)}" class="{style}">{words}</text>'


def cell(x, y, w, h, style="none", strength=1.0):
    """A rectangle, filled as strongly as its number is large."""
    place = f'x="{number(x)}" y="{number(y)}" width="{number(w)}" height="{number(h)}"'
    return f'<rect {place} rx="2" class="{style}" fill-opacity="{strength:.2f}"/>'


def dot(x, y, r=2, style="grey"):
    return f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(r)}" class="{style}"/>'


def line(points, style=""):
    """A line through points (x, y)."""
    return f'<path d="M{" L".join(f"{number(x)} {number(y)}" for x, y in points)}" class="{style}"/>'


def arrow(points, style=""):
    """A line through points, with a tip at the last."""
    (x0, y0), (x, y) = points[-2:]
    length = math.hypot(x - x0, y - y0)
    dx, dy = (x - x0) / length, (y - y0) / length
    corners = [(x, y), (x - 6 * dx - 3.5 * dy, y - 6 * dy + 3.5 * dx), (x - 6 * dx + 3.5 * dy, y - 6 * dy - 3.5 * dx)]
    tip = " L".join(f"{number(a)} {number(b)}" for a, b in corners)
    return line([*points[:-1], (x - 4 * dx, y - 4 * dy)], style) + f'<path d="M{tip} Z" class="{style} tip"/>'


class Plot:
    """A plot's frame: data in, places on the sheet out. ``log`` names the axes ("x", "y", "xy") with log scales."""

    def __init__(self, x, y, left=48, top=26, right=430, bottom=230, log=""):
        self.x, self.y, self.log = x, y, log
        self.left, self.top, self.right, self.bottom = left, top, right, bottom

    def place(self, x, y):
        """Where a point of the data lies."""
        (x0, x1), (y0, y1) = self.x, self.y
        if "x" in self.log:
            x, x0, x1 = math.log(x), math.log(x0), math.log(x1)
        if "y" in self.log:
            y, y0, y1 = math.log(y), math.log(y0), math.log(y1)
        across, up = (x - x0) / (x1 - x0), (y - y0) / (y1 - y0)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def axes(self, xticks, yticks, xlabel, ylabel):
        """Grid lines and names; ticks map a number to its words."""
        parts = [text(0, self.top - 14, ylabel, "soft")]
        for value, words in yticks.items():
            _, y = self.place(self.x[0], value)
            parts += [line([(self.left, y), (self.right, y)], "grid"), text(self.left - 6, y + 4, words, "soft end")]
        for value, words in xticks.items():
            x, _ = self.place(value, self.y[0])
            parts.append(text(x, self.bottom + 16, words, "soft mid"))
        return "".join([*parts, text((self.left + self.right) / 2, self.bottom + 34, xlabel, "soft mid")])

    def curve(self, xs, ys, style=""):
        """A line through the data."""
        return line([self.place(x, y) for x, y in zip(xs, ys, strict=True)], style)

    def band(self, xs, lows, highs, style=""):
        """The area between two lines."""
        there = [self.place(x, y) for x, y in zip(xs, highs, strict=True)]
        back = [self.place(x, y) for x, y in zip(xs, lows, strict=True)][::-1]
        return line(there + back, f"{style} band")


def sheet(width, height, point, parts, at_most=560):
    """The whole figure. ``point`` is what it shows in words, for those who do not see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" class="drawn" role="img" '
        f'style="max-width:{at_most}px" aria-label="{point}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def write(figures):
    """Write each figure to its file."""
    for name, svg in figures.items():
        (FOLDER / name).write_text(svg, encoding="utf-8", newline="\n")
