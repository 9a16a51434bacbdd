"""Draw two orders of the same three matrices: `python docs/figures/brackets.py`.

Each product lies where a multiplication table has it, right of its left factor and below its right one, and all
matrices are drawn to one scale: T tokens, and d = e channels, a sixth of T.
"""

from kit import arrow, cell, sheet, text, write

T, D = 108, 18  # how long the sides are drawn


def matrix(x, y, w, h, name, style="none", strength=1.0):
    """A matrix as a rectangle, its name inside or beside it."""
    parts = [cell(x, y, w, h, style, strength), cell(x, y, w, h)] if style != "none" else [cell(x, y, w, h)]
    return "".join([*parts, text(x + w / 2, y + h / 2 + 4, name, "mid")])


def product(x, y, left, right, name, rows, inner, columns):
    """A product under its right factor and beside its left one; what is kept is in colour."""
    gap = 5
    return "".join(
        [
            matrix(x, y + inner + gap, inner, rows, left),
            matrix(x + inner + gap, y, columns, inner, right),
            matrix(x + inner + gap, y + inner + gap, columns, rows, name, "hot", 0.3),
        ]
    )


def figures():
    """File name → content."""
    top, wide = 44, T + D + 5
    halves = {
        1: ("scores first", "(q kᵀ) v, by way of T × T numbers", ("q", "kᵀ", "q kᵀ", T, D, T), T / 2, "v"),
        227: ("sum first", "q (kᵀ v), by way of d × e numbers", ("kᵀ", "v", "", D, T, D), T - D / 2, "q"),
    }
    parts = []
    for x, (name, words, factors, down, other) in halves.items():
        y = top + D + 5 + down
        parts += [text(x, 14, name, "bold"), text(x, 30, words, "soft"), product(x, top, *factors)]
        parts += [arrow([(x + wide + 6, y), (x + wide + 26, y)]), text(x + wide + 15, y - 7, other, "soft mid")]
        parts.append(matrix(x + wide + 32, top + D + 5, D, T, "o"))
    point = (
        "The same output by two orders of multiplication, drawn to scale. Scores first: q times k transposed is a "
        "square of T by T numbers. Sum first: k transposed times v is one of d by e numbers, however long the text."
    )
    return {"brackets.svg": sheet(440, top + wide + 2, point, parts)}


if __name__ == "__main__":
    write(figures())
