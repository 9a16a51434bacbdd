"""Draw which channels turn, and how far: `python docs/figures/rotary.py`."""

import math

from kit import cell, line, number, sheet, text, write
from minimax_numpy import MiniMaxConfig, ops

PAIRS = (0, 8, 16, 24, 31)
DISTANCES = {1: "1 token", 100: "100", 10_000: "10,000", 1_000_000: "1,000,000"}
WIDTH, LEFT, TOP = 3.2, 14, 54  # of a channel; where the strip begins
RADIUS = 17


def slice_of(x, y, turns):
    """A clock's hand, and the slice that it has swept since it pointed upwards: lit where that tells the distance."""
    angle = 2 * math.pi * turns
    tip = x + RADIUS * math.sin(angle), y - RADIUS * math.cos(angle)
    parts = [f'<circle cx="{number(x)}" cy="{number(y)}" r="{RADIUS}" class="none"/>']
    tells = 1 / 360 <= turns < 1
    if tells:
        edge = f"A{RADIUS} {RADIUS} 0 {int(turns > 0.5)} 1 {number(tip[0])} {number(tip[1])}"
        parts.append(f'<path d="M{number(x)} {number(y)} V{number(y - RADIUS)} {edge} Z" class="hot band"/>')
    return "".join([*parts, line([(x, y), tip], "hot thick" if tells else "")])


def in_words(n):
    """A number of tokens, short."""
    return f"{n / 1e6:.2g} million" if n >= 1e6 else f"{n:,.0f}" if n >= 100 else f"{n:.2g}"


def told(turns):
    """How far, in turns or degrees."""
    if turns >= 1:
        return f"{turns / 1000:,.0f}k turns" if turns >= 1e5 else f"{turns:,.0f} turns"
    return f"{360 * turns:.0f}°" if 360 * turns >= 1 else "under 1°"


def figures():
    """File name → content."""
    config = MiniMaxConfig.text_01()
    d, R = config.head_dim, config.rotary_dim
    frequencies = ops.rotary_frequencies(R, config.rope_theta)
    parts = [text(0, 14, f"The {d} channels of one head of q or k", "soft")]
    for channel in range(d):
        style = "hot" if channel < R // 2 else "cool" if channel < R else "grey"
        x = LEFT + WIDTH * channel
        parts.append(cell(x, TOP, WIDTH - 0.6, 18, style, 0.8 if channel % (R // 2) in PAIRS and channel < R else 0.3))
    for r in PAIRS:
        a, b = (LEFT + WIDTH * (channel + 0.4) for channel in (r, r + R // 2))
        parts.append(f'<path d="M{number(a)} {TOP - 2} Q{number((a + b) / 2)} {TOP - 44} {number(b)} {TOP - 2}"/>')
    for channels, words, style in (
        (R // 4, f"a: 0 … {R // 2 - 1}", "hot mid"),
        (3 * R // 4, f"b: {R // 2} … {R - 1}", "cool mid"),
        ((R + d) / 2, f"{R} … {d - 1} pass through", "soft mid"),
    ):
        parts.append(text(LEFT + WIDTH * channels, TOP + 34, words, style))
    top = TOP + 66
    parts += [text(0, top, "pair r", "soft"), text(0, top + 16, "comes round in", "soft")]
    for column, r in enumerate(PAIRS):
        x = 124 + 72 * column
        parts += [
            text(x, top, f"{r}", "mid bold"),
            text(x, top + 16, in_words(2 * math.pi / frequencies[r]), "soft mid"),
        ]
        for row, distance in enumerate(DISTANCES):
            y = top + 44 + 58 * row
            turns = distance * frequencies[r] / (2 * math.pi)
            parts += [slice_of(x, y, turns), text(x, y + RADIUS + 14, told(turns), "soft mid")]
    for row, words in enumerate(DISTANCES.values()):
        y = top + 44 + 58 * row
        parts.append(text(0, y + 4, words))
        if row == 0:
            parts.append(text(0, y + 18, "further on", "soft"))
    point = (
        f"Of {d} channels the first {R} turn, channel r with channel r + {R // 2}. The fastest pair comes round every "
        f"{2 * math.pi:.1f} tokens, the slowest every {in_words(2 * math.pi / frequencies[-1])}: like the hands of a "
        "clock, fast pairs tell near places apart and slow pairs far ones."
    )
    return {"rotary.svg": sheet(440, top + 44 + 58 * 4 - 14, point, parts)}


if __name__ == "__main__":
    write(figures())
