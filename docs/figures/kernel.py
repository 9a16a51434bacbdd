"""Draw how a kernel walks: `python docs/figures/kernel.py`."""

from kit import arrow, cell, line, sheet, text, write

POINT = (
    "Left: the programs of a kernel as a grid, one row for each of the B · H memories, one column for each block of E "
    "value channels. One program is marked. Right: that program's walk. Its columns of the state are loaded once. For "
    "each chunk it loads q, k and v, stores the answers, and hands the state on to the next chunk; the last chunk is "
    "short. At the end the state is stored once."
)
WIDTHS = (60, 60, 60, 34)  # of the chunks: the last one is short
LEFT, TOP = 168, 124  # of the first chunk, in registers


def programs():
    """The grid, with one program marked."""
    parts = [text(0, 14, "the programs", "bold"), text(0, 30, "in any order", "soft")]
    parts += [text(22, 60, "e/E blocks of v", "soft")]
    parts.append(f'<g transform="translate(13 196) rotate(-90)">{text(0, 0, "B · H memories", "soft")}</g>')
    for row in range(6):
        for column in range(4):
            here = (row, column) == (2, 1)
            style, strength = ("hot", 0.9) if here else ("grey", 0.16)
            parts.append(cell(22 + 24 * column, 68 + 24 * row, 21, 21, style, strength))
    return parts


def walk():
    """One program from the first chunk to the last."""
    parts = [text(LEFT - 24, 14, "one of them", "bold"), text(LEFT - 24, 30, "chunk after chunk", "soft")]
    for y, words in ((74, "memory"), (TOP + 46, "registers"), (TOP + 90, "memory")):
        parts.append(text(440, y, words, "soft end"))
    x, middle = LEFT, TOP + 25
    parts += [text(x - 22, middle - 6, "S", "hot bold"), arrow([(x - 24, middle), (x, middle)], "hot")]
    for width in WIDTHS:
        centre, wide = x + width / 2 - 4, width - 8
        for row, (name, style) in enumerate((("q", "grey"), ("k", "grey"), ("v", "cool"))):
            parts += [cell(x, 50 + 14 * row, wide, 12, style, 0.3), text(x + 4, 59.5 + 14 * row, name, "small")]
        parts += [arrow([(centre, 94), (centre, TOP - 2)]), cell(x, TOP, wide, 50, "rim")]
        size = min(wide / 2, 22)  # the scores inside: a square, of which the lower half counts
        corners = [(centre - size / 2, middle - size / 2), (centre - size / 2, middle + size / 2)]
        corners += [(centre + size / 2, middle + size / 2), corners[0]]
        parts += [line(corners, "cool band"), line(corners, "cool")]
        parts += [arrow([(centre, TOP + 52), (centre, TOP + 78)]), cell(x, TOP + 80, wide, 12, "hot", 0.35)]
        parts += [text(x + 4, TOP + 89.5, "out", "small")]
        parts.append(text(centre, TOP + 110, "C" if width == WIDTHS[0] else "m", "soft mid"))
        parts.append(arrow([(x + wide, middle), (x + width, middle)], "hot"))
        x += width
    return [*parts, arrow([(x - 8, middle), (x + 16, middle)], "hot"), text(x + 6, middle - 6, "S", "hot bold")]


def figures():
    """File name → content."""
    return {"kernel.svg": sheet(440, 240, POINT, programs() + walk())}


if __name__ == "__main__":
    write(figures())
