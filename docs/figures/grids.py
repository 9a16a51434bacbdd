"""Draw the grid of scores three times, in one colour code: `python docs/figures/grids.py`.

A row is a token that asks, a column a token that it looks at; colour is what is computed pair by pair, its strength
the weight of the pair; blue goes through the state. The first grid is a softmax head of a trained model
(`notebooks/recall/SSSS`), the others are the reference's decay.
"""

import runpy
from pathlib import Path

import numpy as np
from kit import cell, dot, line, sheet, text, write
from minimax_numpy import MiniMaxForCausalLM, ops
from minimax_numpy.trace import Trace, recording

RECALL = Path(__file__).parents[2] / "notebooks" / "recall"
T, C = 12, 5  # twelve tokens; in chunks of five, the last one short
LAYER, HEAD = 2, 3  # of SSSS: the head that looks things up


def grid(x0, y0, size, weights, style=lambda t, j: "hot"):
    """Cells of all pairs j ≤ t on the staircase of what may be seen, as strong as their weights."""
    n = len(weights)
    stairs = [(x0 - 1, y0 - 1)]
    for t in range(n):
        stairs += [(x0 + size * (t + 1) - 1, y0 + size * t - 1), (x0 + size * (t + 1) - 1, y0 + size * (t + 1) - 1)]
    parts = [line([*stairs, (x0 - 1, y0 + size * n - 1)], "band")]
    for t, j in zip(*np.tril_indices(n), strict=True):
        if weights[t, j] >= 0.015:  # fainter is not seen
            parts.append(cell(x0 + size * j, y0 + size * t, size - 2, size - 2, style(t, j), weights[t, j]))
    return "".join(parts)


def asked():
    """Weights of one softmax head over four pairs and four questions, [T, T], and the tokens' names."""
    ids, _ = runpy.run_path(str(RECALL / "task.py"))["draw"](np.random.default_rng(0), rows=1, pairs=4)
    model = MiniMaxForCausalLM.from_pretrained(RECALL / "SSSS", np.float64)
    with recording(trace := Trace()):
        model(ids)
    q, k = (trace[f"model.layers.{LAYER}.self_attn.{part}"][0, :, HEAD] for part in ("query", "key"))  # (T, d)
    scores = np.where(np.tri(T, dtype=bool), q @ k.T / np.sqrt(q.shape[-1]), -np.inf)
    names = dict(zip(ids[0, 0:8:2], "abcd")) | dict(zip(ids[0, 1:8:2], "3725"))
    return ops.softmax(scores), [names[i] for i in ids[0]]


def lookup():
    weights, names = asked()
    x0, y0, size = 22, 36, 25
    parts = [text(x0, 12, "is looked at", "soft"), grid(x0, y0, size, weights)]
    for n, name in enumerate(names):
        style = "bold" if n >= 8 else ""
        parts += [text(x0 + size * n + 11, y0 - 8, name, f"{style} mid"), text(2, y0 + size * n + 16, name, style)]
    parts.append(line([(0, y0 + 8 * size - 1), (x0 + 12 * size, y0 + 8 * size - 1)], "grid"))
    side = x0 + 12 * size + 10
    parts += [text(side, y0 + 4 * size + 16, "four pairs", "soft"), text(side, y0 + 4 * size + 31, "are told", "soft")]
    for n, j in enumerate(weights[8:].argmax(1)):
        words = f"{names[8 + n]}?  {names[j]}, by {weights[8 + n, j]:.3f}"
        parts.append(text(side, y0 + (8 + n) * size + 16, words, "hot"))
    point = (
        "Attention weights of a trained head. After the pairs "
        + ", ".join(f"{names[n]} {names[n + 1]}" for n in range(0, 8, 2))
        + ", each of four questions puts "
        + ", ".join(f"{weights[8 + n].max():.3f}" for n in range(4))
        + " of its weight on the value that was told after its key; nobody looks ahead."
    )
    return sheet(440, y0 + 12 * size + 6, point, parts)


def decay(half_life):
    """What each token has kept of each earlier one, [T, T]: the matrix M of the direct form."""
    one = np.eye(T)[None, None]
    slopes = np.array([np.log(2) / half_life])
    return ops.lightning_attention_direct(np.ones((1, 1, T, 1)), np.ones((1, 1, T, 1)), one, slopes)[0][0, 0]


def decayed():
    size, y0 = 11, 30
    parts = []
    for n, half_life in enumerate((np.inf, 4, 1)):
        x0 = 1 + 153 * n
        words = "no decay" if n == 0 else f"half-life {half_life}"
        parts += [text(x0, 14, words, "bold"), grid(x0, y0, size, decay(half_life))]
    point = (
        "Three grids of weights by distance. Without decay every earlier token counts fully; with a half-life of four "
        "tokens a diagonal band fades over a dozen; with one token little but the diagonal is left."
    )
    return sheet(440, y0 + 12 * size + 4, point, parts)


def chunked():
    x0, y0, size = 20, 24, 25
    parts = [grid(x0, y0, size, decay(4), lambda t, j: "hot" if t // C == j // C else "cool")]
    for n in (1, C, C + 1, 2 * C, 2 * C + 1, T):
        parts += [text(x0 - 8, y0 + size * n - 9, n, "soft end"), text(x0 + size * n - 13.5, y0 - 7, n, "soft mid")]
    for cut in (C, 2 * C):
        edge = size * cut - 1
        parts.append(line([(x0 - 2, y0 + edge), (x0 + edge, y0 + edge)], "ink thick"))
        parts.append(line([(x0 + edge, y0 + edge), (x0 + edge, y0 + min(edge + size * C, size * T - 1))], "ink thick"))
    t, j = 8, 1  # one pair, its distance split at the cut
    x, y, corner = x0 + size * j + 11.5, y0 + size * t + 11.5, x0 + size * C - 1
    parts += [dot(x, y, 4, "dot"), line([(x, y), (corner, y)], "ink thick")]
    for at, up, wide, words in (((x + corner) / 2, y - 10, 36, "c − j"), (corner + 12.5, y0 + size * 7, 16, "r")):
        parts += [cell(at - wide / 2, up - 8, wide, 15, "plate"), text(at, up + 4, words, "bold mid")]
    for top, words in ((1.2, "chunk 1"), (6.2, "chunk 2"), (10.7, "chunk 3, short")):
        parts.append(text(x0 + size * (top + 1.9), y0 + size * top, words, "soft"))
    side = x0 + 8 * size
    for n, (style, words) in enumerate((("hot", "pair by pair"), ("cool", "through the state"))):
        parts += [cell(side, y0 + 24 * n, 15, 15, style, 0.8), text(side + 22, y0 + 12 + 24 * n, words)]
    point = (
        "The scores of twelve tokens, cut after the fifth and the tenth. Three triangles inside the chunks, the last "
        "one short, are computed pair by pair; what lies left of them goes through the state. The distance of a pair "
        "is the way from the key to the cut plus the way from the cut to the query."
    )
    return sheet(440, y0 + 12 * size + 4, point, parts)


def figures():
    """File name → content."""
    return {"lookup.svg": lookup(), "decayed.svg": decayed(), "chunked.svg": chunked()}


if __name__ == "__main__":
    write(figures())
