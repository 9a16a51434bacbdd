"""Draw how a sequence is cut into segments that walk at one time: `python docs/figures/segments.py`.

The numbers are the reference's: d = 1, a 1 written at the end of each segment, and a segment is one half-life long.
"""

import numpy as np
from kit import arrow, cell, sheet, text, write
from minimax_numpy import ops

G, CHUNKS, C = 4, 4, 16  # segments, chunks of a segment, positions of a chunk
LEFT, WIDE, SMALL = 2, 110, 24  # of a segment, of a chunk
ENDS, BEGINS, WALK = 66, 146, 222  # the upper edge of each step


def states():
    """What each segment adds from nothing, and what each begins with; the last is what the whole ends with."""
    slopes, ones = np.array([np.log(2) / (CHUNKS * C)]), np.zeros((1, 1, CHUNKS * C, 1))
    ones[:, :, -1] = 1
    adds, begins = [], [np.zeros((1, 1, 1, 1))]
    for _ in range(G):
        adds.append(ops.lightning_attention_chunked(ones, ones, ones, slopes, chunk=C)[1].item())
        begins.append(ops.lightning_attention_chunked(ones, ones, ones, slopes, begins[-1], chunk=C)[1])
    return adds, [state.item() for state in begins]


def number(x):
    """0, 1, 1.5, 1.75 …"""
    return f"{x:.3f}".rstrip("0").rstrip(".")


def steps():
    """Three steps, from above downwards; what stands in one row happens at one time but for the middle one."""
    adds, begins = states()
    told = (("1 · Ends", "all at one time", ENDS, "cool"), ("2 · Hand on", "in turn", BEGINS, "hot"))
    parts = [text(0, 12, "a sequence in chunks, four to a segment", "soft")]
    for name, when, y, style in (*told, ("3 · Walk", "all at one time", WALK, "")):
        parts += [text(LEFT + 14, y - 12, name, f"bold {style}"), text(440, y - 12, when, "soft end")]
    for g in range(G):
        x, last = LEFT + g * WIDE, g == G - 1
        end, state = x + CHUNKS * SMALL - 4, 72  # of its chunks; how wide its state is drawn
        parts += [cell(x + c * SMALL, 20, SMALL - 3, 14, "grey", 0.25) for c in range(CHUNKS)]
        if not last:
            parts += [cell(x + 40, ENDS, 56, 26, "cool", 0.3), text(x + 68, ENDS + 17, f"+ {number(adds[g])}", "mid")]
            parts.append(arrow([(x, ENDS + 13), (x + 37, ENDS + 13)], "cool"))
            parts.append(arrow([(x + 80, ENDS + 28), (x + WIDE + 12, BEGINS - 3)], "cool"))
            parts.append(arrow([(x + state + 2, BEGINS + 13), (x + WIDE - 3, BEGINS + 13)], "hot"))
            parts.append(text(x + 90, BEGINS + 7, "× ½", "hot mid"))
        parts += [cell(x, BEGINS, state, 26, "rim"), text(x + 36, BEGINS + 17, number(begins[g]), "mid bold")]
        parts.append(arrow([(x + 8, BEGINS + 28), (x + 8, WALK - 2)], "hot"))
        parts += [cell(x + c * SMALL, WALK, SMALL - 3, 22, "grey", 0.45) for c in range(CHUNKS)]
        parts.append(arrow([(x + 6, WALK + 11), (end, WALK + 11)], "ink"))
        parts += [cell(x + c * SMALL, WALK + 30, SMALL - 3, 8, "grey", 0.25) for c in range(CHUNKS)]
    parts.append(text(0, WALK + 54, "out", "soft"))
    parts.append(text(440, WALK + 54, f"and the state at the end, {number(begins[G])}", "soft end"))
    point = (
        f"Three steps over {G} segments of {CHUNKS} chunks. Ends: the first {G - 1} segments find what they add, "
        f"{', '.join(map(number, adds[:-1]))}, all at one time. Hand on: from left to right, each begins with half of "
        f"what the one before began with and what that one adds: {', '.join(map(number, begins[:-1]))}. Walk: all go "
        f"through their chunks at one time; the last ends with {number(begins[G])}."
    )
    return sheet(440, 282, point, parts)


def figures():
    """File name → content."""
    return {"segments.svg": steps()}


if __name__ == "__main__":
    write(figures())
