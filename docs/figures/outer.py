"""Draw a state as a sum of outer products: `python docs/figures/outer.py`.

Three tokens write, two queries read. Each matrix stands as in a multiplication table: its rows beside k, its columns
under v. The numbers are those of the page, and the sums are the reference's.
"""

import numpy as np
from kit import cell, sheet, text, write
from minimax_numpy import ops

K = np.array([[1.0, 0, 0], [0, 1, 0], [0, 1, 1]])
V = np.array([[8.0, 4, 2], [1, 3, 5], [2, 0, 1]])
SIZE, GAP = 26, 5


def number(x, y, value, style="none", strength=1.0):
    """One number in its cell."""
    size = SIZE - 2
    under = "" if style == "none" else cell(x, y, size, size, style, strength)
    words = text(x + size / 2, y + size / 2 + 4, f"{value:g}", "mid" if value else "soft mid")
    return under + cell(x, y, size, size) + words


def row(x, y, numbers, style="none", strength=1.0):
    """Numbers side by side."""
    return "".join(number(x + SIZE * i, y, value, style, strength) for i, value in enumerate(numbers))


def matrix(x, y, numbers, lit):
    """Rows of numbers; those that are lit are coloured by their size."""
    values = [(i, j, value) for i, line in enumerate(numbers) for j, value in enumerate(line)]
    return "".join(
        number(x + SIZE * j, y + SIZE * i, value, "hot" if value and lit[i] else "none", 0.08 + 0.035 * value)
        for i, j, value in values
    )


def column(x, y, numbers, style="none"):
    """Numbers below one another, coloured where they are not 0."""
    cells = enumerate(numbers)
    return "".join(number(x, y + SIZE * i, value, style if value else "none", 0.35) for i, value in cells)


def figures():
    """File name → content."""
    _, state = ops.lightning_attention_recurrent(K[None, None], K[None, None], V[None, None], np.zeros(1))
    answers = ("k₁ → v₁", "k₂ → v₂ + v₃", "k₃ → v₂ + 2 v₃")
    block, step, written, read = 4 * SIZE + GAP, 163, 26, 190
    parts = []
    for n, (k, v, answer) in enumerate(zip(K, V, answers, strict=True)):
        x0, y = 1 + step * n, written + SIZE + GAP
        x = x0 + SIZE + GAP
        parts += [text(x, 14, f"k{'₁₂₃'[n]} v{'₁₂₃'[n]}ᵀ", "bold"), text(x - 6, written + 16, "v", "soft end")]
        parts += [text(x0 + 12, y - 6, "k", "soft mid"), column(x0, y, k), row(x, written, v)]
        parts.append(matrix(x, y, np.outer(k, v), (1, 1, 1)))
        if n:
            parts.append(text(x0 - 27, y + 1.5 * SIZE + 3, "+", "bold mid"))
        y, o = read + 8, k @ state[0, 0]
        parts += [text(x0 + 12, read, "q", "soft mid"), text(x, read, "S, their sum", "soft")]
        parts += [column(x0, y, k, "cool"), matrix(x, y, state[0, 0], k)]
        parts += [text(x - 6, y + 3 * SIZE + GAP + 16, "o", "soft end"), row(x, y + 3 * SIZE + GAP, o, "cool", 0.35)]
        parts.append(text(x0, y + 4 * SIZE + GAP + 14, answer, "cool"))
    point = (
        "Three tokens write outer products, and the state is their sum. The first key is at right angles to the "
        "others, so asking with it gives exactly the first value; the second and third keys overlap, so asking with "
        "the second or the third mixes two values."
    )
    return {"outer.svg": sheet(440, read + block + 26, point, parts)}


if __name__ == "__main__":
    write(figures())
