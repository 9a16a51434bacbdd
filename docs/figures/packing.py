"""Draw padding and packing of the same four texts: `python docs/figures/packing.py`.

The number in a cell is the token's position, counted as the reference counts it.
"""

import numpy as np
from kit import cell, line, sheet, text, write
from minimax_numpy import ops

MASK = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 1, 1],
        [1, 1, 0, 0, 1, 1, 1],
        [1, 1, 0, 0, 0, 0, 0],
    ]
)
SIDES = ("full", "padded left", "a hole", "padded right")
STYLES = (("cool", 0.18), ("hot", 0.18), ("cool", 0.36), ("hot", 0.36))
SIZE = 24


def square(x, y, document, position):
    """A real token with its position, or, where there is no document, a place that holds none."""
    x += 1  # a line has two sides
    if document is None:
        return cell(x, y, SIZE - 2, SIZE - 2)
    style, strength = STYLES[document]
    words = text(x + SIZE / 2 - 1, y + SIZE / 2 + 3.5, position, "mid")
    return cell(x, y, SIZE - 2, SIZE - 2, style, strength) + words


def figures():
    """File name → content."""
    real = MASK.sum()
    parts = [text(0, 14, f"A padded batch: {MASK.size} places for {real} tokens", "bold")]
    positions = np.cumsum(MASK, axis=1) - MASK
    for row in range(len(MASK)):
        y = 26 + row * SIZE
        for t in range(MASK.shape[1]):
            parts.append(square(t * SIZE, y, row if MASK[row, t] else None, positions[row, t]))
        parts.append(text(MASK.shape[1] * SIZE + 10, y + SIZE / 2 + 3.5, SIDES[row], "soft"))
    top = 26 + len(MASK) * SIZE + 34
    ends = np.cumsum([0, *MASK.sum(axis=1)])
    rows, mask = ops.document_rows(ends)
    parts.append(text(0, top - 10, f"Packed: {ends[-1]} places for {ends[-1]} tokens", "bold"))
    for document, (places, there) in enumerate(zip(rows, mask, strict=True)):
        for position, place in enumerate(places[there]):
            parts.append(square(place * SIZE, top, document, position))
    for end in ends:
        x = end * SIZE
        parts += [line([(x, top - 3), (x, top + SIZE + 3)], "ink thick"), text(max(x, 4), top + SIZE + 17, end, "mid")]
    parts.append(text(0, top + SIZE + 35, "cu_seqlens: where each text begins, and where the last one ends", "soft"))
    point = (
        f"Four texts of 7, 3, 5 and 2 tokens. As a padded batch they take {MASK.size} places, {real} of them real; the "
        f"padding stands left, in a hole or right. Packed end to end they take {ends[-1]}, and cu_seqlens is "
        f"{', '.join(map(str, ends))}. In both, positions count a text's own tokens from 0."
    )
    return {"packing.svg": sheet(440, top + SIZE + 42, point, parts)}


if __name__ == "__main__":
    write(figures())
