"""Draw what a state and a softmax layer give back of a token, by its distance: `python docs/figures/one_in_eight.py`.

A text of random keys and values of 128 channels is read once, by the reference. Then each key is shown again, and what
is read is compared with the value that was written with it: dots are means over neighbouring distances, lines are the
formula, e^(−sm) against the root of all strangers.
"""

import numpy as np
from kit import Plot, dot, sheet, text, write
from minimax_numpy import ops

T, D, SCORE = 16_384, 128, 16
HEADS = {(0, 31): "11", (0, 63): "177", (78, 31): "875", (78, 63): "14,007"}  # layer, head: its half-life


def cosine(a, b):
    """Of each row with its own: 1 is the same direction, 0 nothing in common."""
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def expected(s, m):
    """The formula: what is left of a value m tokens back, against the strangers of the whole text."""
    kept, strangers = np.exp(-2 * s * m), -np.expm1(-2 * s * T) / -np.expm1(-2 * s)
    return np.sqrt(kept / (kept + (strangers - kept) / D))


def figures():
    """File name → content."""
    slopes = np.array([ops.decay_slopes(64, layer, 80)[head] for layer, head in HEADS])
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, T, D))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    many = [np.broadcast_to(x, (1, len(HEADS), T, D)) for x in (k, v)]
    state = ops.lightning_attention_chunked(np.zeros_like(many[0]), *many, slopes)[1][0]  # (heads, d, e)

    plot = Plot((1, T), (0, 1.03), left=40, top=30, right=418, bottom=236, log="x")
    ticks = {1: "1", 8: "8", 64: "64", 512: "512", 4096: "4,096", T: f"{T:,}"}
    levels = {share: f"{share:g}" for share in (0, 0.25, 0.5, 0.75, 1)}
    parts = [plot.axes(ticks, levels, "tokens since it was written", "likeness of what is read to what was written")]
    distances = np.geomspace(1, T, 60)
    for (name, s), memory in zip(zip(HEADS.values(), slopes, strict=True), state, strict=True):
        parts.append(plot.curve(distances, expected(s, distances), "cool thick"))
        x, y = plot.place(1.25, expected(s, 1))
        parts.append(text(x, y + (21 if name == "11" else -6), f"half-life {name}", "cool"))
        for m in 4 ** np.arange(7):
            back = T - 1 - np.arange(m, m + max(8, m // 4))
            parts.append(dot(*plot.place(m, max(cosine(k[back] @ memory, v[back]).mean(), 0)), 2.2, "cool"))
    back = T - 1 - np.unique(np.geomspace(1, T - 1, 24).round().astype(int))
    queries = (SCORE * D**0.5 * k[back])[None, None]
    visible = np.ones((1, len(back), T), bool)
    read = ops.softmax_attention(queries, k[None, None], v[None, None], visible)[0, 0]
    found = cosine(read, v[back])
    parts.append(plot.curve(T - 1 - back[::-1], found[::-1], "hot thick"))
    parts.append(text(*plot.place(T, 0.92), "a softmax layer", "hot end bold"))
    point = (
        f"After {T:,} random tokens a softmax layer gives back any one of them, likeness {found.min():.2f}. A state "
        "with a half-life of 11 tokens gives back the last few and then nothing; one with 14,007 has faded little and "
        f"is blurred everywhere, likeness {expected(slopes[-1], 1):.2f}."
    )
    return {"one-in-eight.svg": sheet(440, 276, point, parts)}


if __name__ == "__main__":
    write(figures())
