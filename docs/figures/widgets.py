"""Draw what stands in a widget's place where scripts are off: `python docs/figures/widgets.py` writes one figure each.

Their numbers come from the reference.
"""

import numpy as np
from kit import cell, sheet, text, write
from minimax_numpy import MiniMaxConfig, ops
from minimax_numpy.config import LIGHTNING
from minimax_numpy.counts import binary, count
from minimax_numpy.trace import round_to


def decay_dial():
    slopes = ops.decay_slopes(64, 0, 80)
    parts = [text(0, 14, "Layer 0: what is left after 0, 1, … 11 tokens", "soft")]
    for line, head in enumerate((1, 16, 32, 64)):
        s, y = slopes[head - 1], 26 + 32 * line
        parts += [text(0, y + 15, f"head {head}")]
        parts += [cell(62 + 18 * lag, y, 16, 22, "hot", max(np.exp(-s * lag), 0.02)) for lag in range(12)]
        parts += [text(360, y + 15, f"half: {np.log(2) / s:.3g}", "end")]
    point = (
        "The first head of layer 0 has lost half of a token in 0.76 steps, the last one takes 177: "
        "heads differ by how fast they forget."
    )
    return sheet(360, 156, point, parts, at_most=420)


def step_machine():
    k, v, q = np.array([0.0, 1, 0, 0]), np.array([1.0, 3, 5, 7]), np.array([1.0, 0, 0, 0])
    before = np.outer([1.0, 0, 0, 0], [8.0, 4, 2, 1])
    decayed = before / 2
    after = decayed + np.outer(k, v)
    parts = []
    for place, (name, S) in enumerate((("S", before), ("decay by half", decayed), ("write k vᵀ", after))):
        x0 = 122 * place
        parts += [text(x0 + 58, 14, name, "mid")]
        for i in range(4):
            for j in range(4):
                x, y = x0 + 29 * j, 24 + 29 * i
                parts += [cell(x, y, 27, 27, "hot", S[i, j] / 8 * 0.45), cell(x, y, 27, 27, "none")]
                parts += [text(x + 13.5, y + 18, f"{S[i, j]:g}", "mid")]
    parts += [text(0, 162, f"read with q = (1, 0, 0, 0): o = ({', '.join(f'{x:g}' for x in after.T @ q)})")]
    point = (
        "A memory of four by four numbers halves, then gains one row from k v transposed; "
        "reading with q gives back the older row, halved."
    )
    return sheet(360, 172, point, parts, at_most=420)


def chunk_cutter():
    T, cut, s = 8, 5, 0.2
    parts = [text(0, 14, "Scores of 8 tokens, cut before token 6", "soft")]
    for t in range(T):
        for j in range(T):
            x, y = 30 * j, 24 + 30 * t
            style = "none" if j > t else "cool" if t >= cut > j else "hot"
            parts += [cell(x, y, 28, 28, style, np.exp(-s * (t - j)) * 0.8)]
    parts += [f'<line x1="0" y1="{23 + 30 * cut}" x2="240" y2="{23 + 30 * cut}" class="cut"/>']
    parts += [cell(252, 60, 14, 14, "hot"), text(272, 72, "in a chunk")]
    parts += [cell(252, 190, 14, 14, "cool"), text(272, 202, "via the state")]
    point = (
        "A cut leaves two triangles of scores inside the chunks and one block between them; "
        "the state carries the block, so nothing is lost."
    )
    return sheet(360, 268, point, parts, at_most=420)


def rounding_lens():
    """The same sum as the widget's: 300 steps with a half-life of 64."""

    def accumulate(dtype):
        written = round_to(np.arange(1, 301) * 0.6180339887498949 % 1, dtype)
        keep, S = round_to(np.exp([-np.log(2) / 64]), dtype), np.zeros(1)
        for x in written:
            S = round_to(round_to(keep * S, dtype) + x, dtype)
        return S[0]

    exact, parts = (
        accumulate("float64"),
        [text(0, 14, "Leading bits that are right after 300 steps, half-life 64", "soft")],
    )
    for line, (dtype, bits) in enumerate({"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}.items()):
        error, y = abs(accumulate(dtype) - exact) / exact, 24 + 28 * line
        right = bits if error == 0 else max(0, min(bits, int(np.floor(-np.log2(error)))))
        parts += [text(0, y + 13, dtype)]
        parts += [cell(62 + 5.5 * i, y, 4.5, 18, "hot" if i < right else "none") for i in range(bits)]
    point = (
        "After 300 steps of a fading sum, 21 of 24 bits are right in float32, 10 of 11 in float16 and one of 8 in "
        "bfloat16: rounding at every step adds up."
    )
    return sheet(360, 140, point, parts, at_most=420)


def router():
    names, experts = "ABCD", np.array([[1, 0.4], [-0.4, 1], [-1, -0.4], [0.4, -1]])
    token = np.array([0.45, 0.6])
    weights, indices = ops.route(4 * token[None] @ experts.T, top_k=2)
    chosen = dict(zip(indices[0].tolist(), weights[0]))
    links, boxes = [], []
    for e, (a, b) in enumerate(experts / np.hypot(*experts.T)[:, None]):
        x, y = round(180 + 105 * a), round(125 - 105 * b)
        boxes += [cell(x - 13, y - 13, 26, 26, "rim"), cell(x - 13, y - 13, 26, 26, "hot", 0.25 * (e in chosen))]
        boxes += [text(x, y + 5, names[e], "mid")]
        if e in chosen:
            width = 1 + 4 * chosen[e]
            links += [f'<line x1="227" y1="62" x2="{x}" y2="{y}" stroke-width="{width:.1f}"/>']
            links += [text(x + (20 if a > 0 else -46), y + 5, f"{chosen[e]:.2f}")]
    parts = [*links, *boxes, '<circle cx="227" cy="62" r="9" class="hot"/>', text(240, 58, "token")]
    point = "A token goes to the two experts it points to most; their weights are scaled to sum to one."
    return sheet(360, 250, point, parts, at_most=420)


def layer_pattern():
    config = MiniMaxConfig.text_01()
    counts = count(config)
    parts = []
    for layer, kind in enumerate(config.layer_types):
        x, y = 22 * (layer // 8), 24 + 22 * (layer % 8)
        parts += [cell(x, y, 20, 20, "hot", 0.15 if kind == LIGHTNING else 1.0)]
    parts += [text(0, 14, "80 layers; a column is a block of eight", "soft")]
    parts += [text(232, 60, "lightning remembers"), text(232, 78, f"{binary(counts.state_bytes)}, always")]
    parts += [text(232, 180, "softmax remembers"), text(232, 198, f"{binary(counts.kv_bytes_per_token)} a token")]
    point = (
        "Ten blocks of seven lightning layers and one softmax layer: the seventy remember 280 MiB in all, "
        "the ten 40 KiB for every token."
    )
    return sheet(360, 206, point, parts, at_most=420)


def figures():
    """File name → content."""
    drawn = (decay_dial, step_machine, chunk_cutter, rounding_lens, router, layer_pattern)
    return {f"{draw.__name__.replace('_', '-')}.svg": draw() for draw in drawn}


if __name__ == "__main__":
    write(figures())
