"""Draw what crosses a cut between ranks: `python docs/figures/parallel.py`.

The first figure is a sequence of ones, d = 1, over four ranks; the states in it are the reference's. The second counts
bytes from MiniMax-Text-01's configuration.
"""

import numpy as np
from kit import Plot, arrow, cell, sheet, text, write
from minimax_numpy import MiniMaxConfig, ops

LENGTHS, HALF_LIFE = (5, 3, 4, 4), 4
RANKS = 8  # of the second figure
WIDE, CELL = 112, 17


def states():
    """(decay, state) of each rank alone, and the state that each begins from."""
    slopes, pairs, begins = np.array([np.log(2) / HALF_LIFE]), [], [0.0]
    for m in LENGTHS:
        ones = np.ones((1, 1, m, 1))
        pairs.append((0.5 ** (m / HALF_LIFE), ops.lightning_attention_chunked(ones, ones, ones, slopes)[1].item()))
    for decay, state in pairs[:-1]:
        begins.append(decay * begins[-1] + state)
    return pairs, begins


def prefix():
    """Ranks side by side: their tokens, the pair each makes alone, and what each begins from."""
    pairs, begins = states()
    rows = (("tokens", 22), ("alone", 78), ("begins with", 158))
    parts = [text(0, y - 8, words, "soft") for words, y in rows]
    for rank, ((decay, state), start) in enumerate(zip(pairs, begins, strict=True)):
        x = rank * WIDE + 1  # a line has two sides
        parts += [cell(x + i * CELL, 22, CELL - 2, CELL - 2, "cool", 0.3) for i in range(LENGTHS[rank])]
        parts += [cell(x, 78, WIDE - 20, 38, "rim"), text(x + 46, 94, f"keeps {decay:.2f}", "mid soft")]
        parts += [text(x + 46, 109, f"adds {state:.2f}", "mid"), cell(x, 158, WIDE - 20, 24, "hot", 0.22)]
        parts += [text(x + 46, 174, f"{start:.2f}", "mid bold"), text(x + 46, 204, f"rank {rank}", "mid soft")]
        if rank:
            parts.append(arrow([(x - 66, 118), (x + 40, 156)], "hot"))  # the pair of the rank before
            parts.append(arrow([(x - 18, 170), (x - 3, 170)]))
    told = ", ".join(f"{start:.2f}" for start in begins)
    point = (
        f"Four ranks hold {', '.join(map(str, LENGTHS))} tokens. Each makes, alone, one pair: how much of an earlier "
        f"state it keeps and what it adds. From the pairs before its own each finds the state it begins with: {told}."
    )
    return sheet(440, 210, point, parts)


def received():
    """MiB that a rank receives in one layer, by length: states do not grow, keys and values do."""
    config = MiniMaxConfig.text_01()
    H, G, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    state, token = H * d * d * 4, 2 * G * d * 2  # float32, bfloat16
    lengths = 2 ** np.arange(10, 21)
    flat = np.full(lengths.shape, (RANKS - 1) * state / 2**20)
    rising = (RANKS - 1) * lengths / RANKS * token / 2**20
    plot = Plot((lengths[0], lengths[-1]), (2, 6000), left=48, top=34, bottom=230, log="xy")
    levels = {4: "4", 28: "28", 256: "256", 3584: "3,584"}
    parts = [plot.axes({2**10: "1K", 2**13: "8K", 2**17: "128K", 2**20: "1M"}, levels, "tokens in the text", "MiB")]
    parts += [plot.curve(lengths, rising, "cool thick"), plot.curve(lengths, flat, "hot thick")]
    parts.append(text(*plot.place(2**16, 40), "a lightning layer’s states", "hot"))
    parts.append(text(*plot.place(2**16.6, 900), "a softmax layer’s keys, values", "cool end"))
    point = (
        f"What each of {RANKS} ranks receives in one layer. States: {flat[0]:.0f} MiB at any length. Keys and values: "
        f"as much at {RANKS * state // token:,} tokens, {rising[-1]:,.0f} MiB at {lengths[-1]:,}."
    )
    return sheet(440, 270, point, parts)


def figures():
    """File name → content."""
    return {"parallel.svg": prefix(), "parallel-bytes.svg": received()}


if __name__ == "__main__":
    write(figures())
