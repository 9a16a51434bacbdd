"""Draw the half-life of every head of every lightning layer: `python docs/figures/half_lives.py`."""

import numpy as np
from kit import Plot, dot, sheet, text, write
from minimax_numpy import MiniMaxConfig, ops
from minimax_numpy.config import LIGHTNING

HEADS = (1, 16, 32, 48, 64)  # those that get a line
TICKS = {1: "1", 10: "10", 100: "100", 1000: "1,000", 10_000: "10,000"}


def figures():
    """File name → content."""
    config = MiniMaxConfig.text_01()
    H, L = config.num_attention_heads, config.num_hidden_layers
    half = np.log(2) / np.stack([ops.decay_slopes(H, layer, L) for layer in range(L)])  # (L, H)
    lightning = [layer for layer, kind in enumerate(config.layer_types) if kind == LIGHTNING]
    plot = Plot((0, L - 2), (0.5, 20_000), left=44, top=30, right=378, bottom=262, log="y")
    parts = [plot.axes({n: n for n in (*range(0, 71, 10), 78)}, TICKS, "layer", "half-life in tokens")]
    for first in range(0, L, 8):  # seven lightning layers; then a softmax layer, where the lines break
        block = range(first, first + 7)
        parts.append(plot.band(block, half[first : first + 7, 0], half[first : first + 7, -1], "hot"))
        for head in HEADS:
            parts.append(plot.curve(block, half[first : first + 7, head - 1], "hot"))
    for head in HEADS:
        x, y = plot.place(L - 2, half[L - 2, head - 1])
        parts += [dot(x, y, 2, "hot"), text(x + 8, y + 4, f"head {head}")]
    shortest, longest = half[lightning].min(), half[lightning].max()
    for layer, head, words in ((0, 0, f"{shortest:.2f}"), (0, H - 1, f"{half[0, -1]:.0f}")):
        x, y = plot.place(layer, half[layer, head])
        parts += [dot(x, y, 2, "hot"), text(x + 6, y - 6 if head else y + 14, words, "hot")]
    x, y = plot.place(L - 2, longest)
    parts.append(text(x - 8, y - 2, f"{longest:,.0f}", "hot end"))
    point = (
        f"Half-lives of the {H} heads in {len(lightning)} lightning layers on a log axis: from {shortest:.2f} tokens "
        f"in the first head of layer 0 to {longest:,.0f} in the last of layer {lightning[-1]}. In a layer heads spread "
        f"over a factor of {half[0, -1] / half[0, 0]:.0f}; layers stretch all of them alike, at the end steeply."
    )
    return {"half-lives.svg": sheet(440, 302, point, parts)}


if __name__ == "__main__":
    write(figures())
