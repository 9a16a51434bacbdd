"""Draw the fingerprints of planted defects: `python docs/figures/fingerprints.py`.

Each small plot is the error of one wrong op at every position of a text, for each of four heads: its shape tells
which mistake was made. Numbers are the reference's, in float64.
"""

import math

import numpy as np
from kit import cell, sheet, text, write
from minimax_numpy import ops
from minimax_numpy.check import DEFECTS

H, T, CALL = 4, 24, 16  # a second call begins at position 16: only some mistakes show there
SHOWN = {
    "reads_before_writing": "reads before writing",
    "decays_own_token": "decays its own token",
    "has_no_layer_factor": "no layer factor",
    "reverses_the_slopes": "slopes in reverse",
    "scales_queries": "scales by 1/√d",
    "forgets_the_state": "forgets between calls",
    "transposes_the_state": "state transposed",
    "decays_the_short_chunk_as_a_full_one": "short chunk as a full one",
    "padding_decays": "padding decays",
}


def outputs(functions):
    """Two calls of lightning attention, layer 40 of 80, chunks of 6, with two pads from position 8 on: [H, T]."""
    rng = np.random.default_rng(0)
    q, k, v = (x / (1 + np.exp(-x)) for x in rng.standard_normal((3, 1, H, T, 8)))
    mask = np.ones((1, T), bool)
    mask[:, 8:10] = False
    state, parts = None, []
    with ops.using(**functions):
        slopes = ops.decay_slopes(H, 40, 80)
        for part in (slice(0, CALL), slice(CALL, T)):
            out, state = ops.lightning_attention_chunked(
                q[:, :, part], k[:, :, part], v[:, :, part], slopes, state, chunk=6, mask=mask[:, part]
            )
            parts.append(out)
    return np.concatenate(parts, axis=2)[0], mask[0]


def error(key):
    """How far each head is off at each position, relative to the answers' size; pads are left blank."""
    (right, mask), (wrong, _) = outputs({}), outputs(DEFECTS[key].plant(ops))
    off = np.sqrt(((wrong - right) ** 2).mean(-1)) / np.sqrt((right[:, mask] ** 2).mean())
    return np.where(mask, off, np.nan)


def shade(x):
    """From nothing at 1e-6 to full at 1, on a log scale."""
    return 0.0 if not x > 1e-6 else min(1.0, 0.08 + 0.92 * (math.log10(x) + 6) / 6)


def figures():
    """File name → content."""
    parts = []
    for n, (key, words) in enumerate(SHOWN.items()):
        x0, y0 = 2 + 147 * (n % 3), 20 + 78 * (n // 3)
        parts.append(text(x0, y0 - 6, words, "soft"))
        for h, row in enumerate(error(key)):
            for t, x in enumerate(row):
                style = "none" if np.isnan(x) else "hot"
                if np.isnan(x) or shade(x):
                    parts.append(cell(x0 + 5.6 * t, y0 + 12 * h, 5, 11, style, 0 if np.isnan(x) else shade(x)))
        parts += [cell(x0 - 1, y0 - 1, 5.6 * T + 1.4, 12 * H + 1, "none", 0)]
    parts.append(
        text(0, 256, "a row is a head, a column a position; two are padding; a second call begins at 16", "soft")
    )
    point = (
        "Each mistake leaves its own pattern of errors over heads and positions: reading before writing shows "
        "everywhere, forgetting the state only in a second call, a padded position that decays only behind the "
        "padding, a wrong layer factor only once something is remembered."
    )
    return {"fingerprints.svg": sheet(440, 262, point, parts)}


if __name__ == "__main__":
    write(figures())
