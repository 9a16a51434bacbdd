"""Draw where nine tokens go: `python docs/figures/routing.py`. A real call of `route`, in layer 0 of a small model."""

import numpy as np
from kit import cell, number, sheet, text, write
from minimax_numpy import MiniMaxConfig, MiniMaxForCausalLM, ops

WORD = "attention"
FULL, GAP, IDLE = 24, 9, 4  # height of a whole token, between tokens, of an expert at rest
LEFT, RIGHT, TOP = 34, 396, 34


def ribbon(y0, y1, height, style):
    """From a token to an expert, as wide as the weight."""
    (x0, x1), middle = (LEFT + 12, RIGHT), (LEFT + 12 + RIGHT) / 2
    a, b, c, d = (number(y) for y in (y0, y1, y1 + height, y0 + height))
    upper, lower = f"C{number(middle)} {a} {number(middle)} {b} {x1} {b}", f"C{number(middle)} {c} {number(middle)} {d}"
    return f'<path d="M{x0} {a} {upper} L{x1} {c} {lower} {x0} {d} Z" class="{style} band" style="fill-opacity:.5"/>'


def figures():
    """File name → content."""
    config = MiniMaxConfig.tiny(num_local_experts=32)
    model = MiniMaxForCausalLM(config, seed=0, dtype=np.float64)
    ids = np.frombuffer(WORD.encode(), np.uint8).astype(int)[None]
    logits = model(ids, output_router_logits=True).router_logits[0]
    weights, indices = (x[0] for x in ops.route(logits, config.num_experts_per_tok))  # (T, K)
    E, load = config.num_local_experts, np.zeros(config.num_local_experts)
    np.add.at(load, indices, weights)

    height = TOP + len(WORD) * (FULL + GAP) - GAP
    gap = (height - TOP - FULL * load.sum() - IDLE * (load == 0).sum()) / (E - 1)
    tops, y = [], TOP
    for share in load:
        tops.append(y)
        y += (FULL * share or IDLE) + gap
    parts, filled = [text(0, 14, "tokens", "soft"), text(440, 14, "experts", "soft end")], list(tops)
    order = [(e, t, k) for t in range(len(WORD)) for k, e in enumerate(indices[t])]
    for e, t, k in sorted(order):  # at an expert, tokens lie in their own order
        start = TOP + t * (FULL + GAP) + FULL * weights[t, :k].sum()
        wide = FULL * weights[t, k]
        parts.append(ribbon(start, filled[e], wide, "cool" if k else "hot"))
        filled[e] += wide
    for t, letter in enumerate(WORD):
        y = TOP + t * (FULL + GAP)
        first = FULL * weights[t, 0]
        parts += [text(LEFT - 12, y + 16, letter, "end bold"), cell(LEFT, y, 12, first, "hot", 0.9)]
        parts.append(cell(LEFT, y + first, 12, FULL - first, "cool", 0.9))
    for e, (y, share) in enumerate(zip(tops, load, strict=True)):
        parts.append(cell(RIGHT, y, 12, FULL * share or IDLE, "grey", 0.9 if share else 0.35))
        if share:
            parts.append(text(RIGHT + 20, y + FULL * share / 2 + 4, e, "soft"))
    busy = int((load > 0).sum())
    point = (
        f"The {len(WORD)} letters of “{WORD}” each go to two of {E} experts, split by the router’s weights: {busy} "
        f"experts work, {E - busy} rest, and the busiest is given {np.bincount(indices.ravel()).max()} tokens."
    )
    return {"routing.svg": sheet(440, height + 8, point, parts)}


if __name__ == "__main__":
    write(figures())
