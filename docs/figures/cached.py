"""Draw what is cached, and what a token costs, true to scale: `python docs/figures/cached.py`."""

import math

from kit import cell, sheet, text, write
from minimax_numpy import MiniMaxConfig
from minimax_numpy.counts import binary, count

LENGTHS = {1024: "1k", 100 * 1024: "100k", 1024 * 1024: "1M"}
BASE = 226  # where the squares stand
PER_FLOP = 316 / 440e9


def square(x, size, style):
    """A square of this many bytes, a pixel across for the root of a MiB; it stands on the base line."""
    side = math.sqrt(size / 2**20)
    return cell(x, BASE - side, side, side, style, 0.85), side


def figures():
    """File name → content."""
    config = MiniMaxConfig.text_01()
    parts, told, x = [text(0, 14, "What is kept: areas are bytes", "soft")], [], 2
    for (length, words), width in zip(LENGTHS.items(), (102, 112, 224), strict=True):
        counts = count(config, length)
        keys = counts.kv_bytes_per_token * length
        state, side = square(x, counts.state_bytes, "cool")
        slots, _ = square(x + side + 3, keys, "hot")
        parts += [state, slots, text(x, BASE + 18, f"{words} tokens", "bold"), text(x, BASE + 34, binary(keys), "hot")]
        told.append(f"{binary(keys)} at {words} tokens")
        x += width
    state = binary(count(config).state_bytes)
    parts += [text(2, BASE - 34, state, "cool"), text(2, BASE - 22, "of states, always", "cool")]
    parts.append(text(x - 212, BASE - 186, "keys and values", "hot end"))
    top = BASE + 62
    parts.append(text(0, top, "What the next token costs: lengths are FLOPs", "soft"))
    for x, words, style in ((2, "weights, and states", "grey"), (150, "the keys that it looks at", "hot")):
        parts += [cell(x, top + 13, 10, 10, style, 0.45 if style == "grey" else 0.85), text(x + 15, top + 22, words)]
    costs = []
    for row, (length, words) in enumerate(LENGTHS.items()):
        y, total = top + 36 + 26 * row, count(config, length).flops_per_token
        weights = count(config, 0).flops_per_token
        parts += [cell(2, y, weights * PER_FLOP, 16, "grey", 0.45)]
        parts += [cell(2 + weights * PER_FLOP, y, max((total - weights) * PER_FLOP, 0.8), 16, "hot", 0.85)]
        parts.append(text(2 + total * PER_FLOP + 6, y + 12, f"{words}: {total / 1e9:.0f} billion"))
        costs.append(f"{total / 1e9:.0f} at {words}")
    point = (
        f"States take {state} whatever the length; keys and values take {', '.join(told)}. The next token costs "
        f"{', '.join(costs)} tokens, in billions of FLOPs."
    )
    return {"cached.svg": sheet(440, top + 36 + 26 * 3, point, parts)}


if __name__ == "__main__":
    write(figures())
