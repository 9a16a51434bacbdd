"""4 · Rotary and grouped heads."""

import numpy as np

from ... import ops
from ..single import Case
from .functions import implement
from .registry import Edit, Mistake, planted
from .values import number

number(
    "4.1",
    "How far a pair turns",
    "predict",
    "In MiniMax-Text-01 the first R = 64 channels of a head of d = 128 rotate, with base 10,000,000. By what angle, in "
    "radians, is pair i = 12 turned at position 1,000?",
    minutes=5,
    difficulty=1,
    solution="1000 * 1e7 ** (-2 * 12 / 64)",
    reason="θ = t · base^(−2i/R) = 1000 · 10^(−2.625): the frequencies belong to the R channels that turn, not to the "
           "head.",
    hints=("θ = position · base^(−2i/R).", "2i/R = 24/64 = 0.375."),
    mistakes=(
        Mistake("the frequencies are those of the whole head", "R = 64 stands in the exponent, not d = 128.",
                "1000 * 1e7 ** (-2 * 12 / 128)"),
        Mistake("the rotary base is 10,000", "rope_theta is 10,000,000.", "1000 * 1e4 ** (-2 * 12 / 64)"),
        Mistake("the angle of one token is given", "Multiply by the position.", "1e7 ** (-2 * 12 / 64)"),
        Mistake("R/2 stands in the exponent", "2i/R, not 2i/(R/2).", "1000 * 1e7 ** (-2 * 12 / 32)"),
    ),
)  # fmt: skip


def rotary_cases(rng):
    """Half the head, all of it; late positions; rows that start elsewhere."""
    for label, T, d, R, start in (
        ("half the head", 6, 8, 4, 0), ("half the head", 5, 16, 8, 1), ("the whole head", 5, 8, 8, 3),
        ("late positions", 4, 16, 8, 100_000),
    ):  # fmt: skip
        positions = np.arange(T) + np.array([[start], [start + 2]])
        x = rng.standard_normal((2, 3, T, d))
        yield Case(label, {"x": x, "positions": positions, "rotary_dim": R, "base": 1e6})


@implement(
    "4.2",
    "Rotary on the first channels",
    minutes=15,
    difficulty=2,
    hints=(
        "Angles are [B, 1, T, R/2]: positions[:, None, :, None] times the R/2 frequencies.",
        "With a = x[..., :R/2] and b = x[..., R/2:R]: (a cos − b sin, b cos + a sin), then the channels from R on.",
    ),
    reason="Channel i turns with channel i + R/2, by an angle that grows with the position; the rest carries no "
           "position.",
    cases=rotary_cases,
    truth=ops.apply_rotary,
    outputs={"out": "B H T d"},
    mistakes=(
        planted("rotates_the_whole_head", "half = rotary_dim // 2",
                "half = (rotary_dim := x.shape[-1]) // 2"),
        planted("takes_frequencies_of_the_whole_head", "np.arange(half) / rotary_dim", "np.arange(half) / x.shape[-1]"),
        planted("interleaves_the_pairs",
                "a, b = x[..., :half], x[..., half:rotary_dim]\n"
                "    turned = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)",
                "a, b = x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2]\n"
                "    turned = np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)"
                ".reshape(*x.shape[:-1], rotary_dim)"),
        planted("turns_backwards", "a * cos - b * sin, b * cos + a * sin", "a * cos + b * sin, b * cos - a * sin"),
        planted("starts_at_one", "positions[:, None, :, None]", "(positions[:, None, :, None] + 1)"),
        planted("has_base_ten_thousand", "base **", "1e4 **"),
        Edit("angles are formed in float32, too coarse at late positions",
             "Form them in float64; only their sines and cosines may be narrower.", "cos, sin =",
             "angles = positions[:, None, :, None].astype(np.float32) * np.float32(base) ** (\n"
             "        np.float32(-2) * np.arange(half, dtype=np.float32) / np.float32(rotary_dim))\n    cos, sin ="),
        Edit("the exponent is −i/R", "It is −2i/R.", "-2.0 *", "-1.0 *"),
    ),
)  # fmt: skip
def rotary(x, positions, rotary_dim, base):
    """Turn the first R = rotary_dim channels of x [B, H, T, d] by their positions [B, T].

    Pair i joins channels i and i + R/2; its angle is position · base^(−2i/R). Channels from R on pass through.
    """
    half = rotary_dim // 2
    angles = positions[:, None, :, None] * base ** (-2.0 * np.arange(half) / rotary_dim)
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = x[..., :half], x[..., half:rotary_dim]
    turned = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return np.concatenate([turned, x[..., rotary_dim:]], axis=-1)


def grouped_cases(rng):
    """As many key heads as query heads, fewer, one; cached keys."""
    for label, B, H, G, T, J in (
        ("no groups", 2, 2, 2, 5, 5), ("groups", 2, 4, 2, 6, 6), ("groups", 1, 6, 3, 4, 4),
        ("one key head", 1, 4, 1, 5, 5),
        ("cached keys", 2, 4, 2, 3, 8), ("one token onto cached keys", 1, 4, 2, 1, 6),
    ):  # fmt: skip
        k, v = rng.standard_normal((B, G, J, 8)), rng.standard_normal((B, G, J, 4))
        yield Case(label, {"q": rng.standard_normal((B, H, T, 8)), "k": k, "v": v})


@implement(
    "4.3",
    "Grouped heads on cached keys",
    minutes=18,
    difficulty=2,
    hints=(
        "Give each query head its key head first: head h reads key head h // (H/G). np.repeat does that.",
        "The T queries are the last T of J positions: query t sees slots j ≤ J − T + t, so np.tri(T, J, J − T).",
    ),
    reason="Neighbouring query heads share a key head, so the cache is H/G times smaller; the queries are the newest "
           "slots.",
    cases=grouped_cases,
    truth=ops.softmax_attention,
    outputs={"out": "B H T e"},
    mistakes=(
        planted("tiles_grouped_heads", "np.repeat(x, share, axis=1)", "np.tile(x, (1, share, 1, 1))"),
        planted("leaves_out_the_scale", " * d**-0.5", ""),
        planted("sees_the_future", "np.tri(T, J, J - T, dtype=bool)", "np.ones((T, J), bool)"),
        Edit("the triangle starts at the first slot, not at the queries' own", "Query t sees slots j ≤ J − T + t.",
             "np.tri(T, J, J - T, dtype=bool)", "np.tri(T, J, dtype=bool)"),
        Edit("every query head reads key head 0", "Query head h reads key head h // (H/G).",
             "np.repeat(x, share, axis=1)", "np.repeat(x[:, :1], H, axis=1)"),
        Edit("a query does not see its own key", "Query t sees slots j ≤ J − T + t, its own included.",
             "np.tri(T, J, J - T, dtype=bool)", "(np.tri(T, J, J - T - 1, dtype=bool) | (np.arange(J) == 0))"),
    ),
)  # fmt: skip
def grouped_attention(q, k, v):
    """Causal softmax attention: q [B, H, T, d], k [B, G, J, d], v [B, G, J, e] → [B, H, T, e].

    G divides H. The J keys are the cached ones and then this call's T; scores are q·k / √d.
    """
    H, T, d = q.shape[1:]
    share, J = H // k.shape[1], k.shape[2]
    k, v = (np.repeat(x, share, axis=1) for x in (k, v))
    scores = q @ k.swapaxes(-1, -2) * d**-0.5
    scores = np.where(np.tri(T, J, J - T, dtype=bool), scores, -np.inf)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True) @ v


number(
    "4.4",
    "Slower than the text is long",
    "derive",
    "Pair i of R = 64 rotating channels turns by base^(−2i/R) radians a token, base 10,000,000. From which i on does a "
    "pair take more than 1,048,576 tokens for one full turn?",
    minutes=8,
    difficulty=2,
    solution="math.ceil(32 * math.log(1048576 / (2 * math.pi)) / math.log(1e7))",
    reason="A turn takes 2π · base^(2i/R) tokens: more than 1,048,576 where i > 32 · ln(166,886) / ln(10⁷) = 23.9. "
           "Pairs 24 … 31 never come round within a million tokens: there each of their angles means one distance.",
    hints=("How many tokens make 2π?", "2π · base^(2i/64) > 1,048,576: take logarithms and round up."),
    mistakes=(
        Mistake("a turn is taken for one radian", "A full turn is 2π.",
                "math.ceil(32 * math.log(1048576) / math.log(1e7))"),
        Mistake("it is rounded down", "At i = 23 a turn takes 675,197 tokens: too few.", "23"),
        Mistake("the frequencies are those of the whole head", "R = 64 stands in the exponent, not d = 128.",
                "math.ceil(64 * math.log(1048576 / (2 * math.pi)) / math.log(1e7))"),
        Mistake("the rotary base is 10,000", "With base 10,000 no pair is so slow: the slowest turns in 47,118 tokens.",
                "math.ceil(32 * math.log(1048576 / (2 * math.pi)) / math.log(1e4))"),
        Mistake("R/2 stands in the exponent", "2i/R, not 2i/(R/2).",
                "math.ceil(16 * math.log(1048576 / (2 * math.pi)) / math.log(1e7))"),
        Mistake("the slow pairs are counted", "The question asks where they begin.", "8"),
    ),
)  # fmt: skip

number(
    "4.5",
    "What a rotated score knows",
    "predict",
    "A head has d = 4 and rotates R = 2: one pair, which turns by one radian a token, and two channels that pass "
    "through. Before rotary the query is (1, 0, 1, 0) and the key (1, 0, ½, 0). The query stands at position 1,007, "
    "the key at 1,004. What is q·k after rotary, before any scale?",
    minutes=6,
    difficulty=2,
    solution="math.cos(3) + 0.5",
    reason="Two turned vectors see the difference of their angles only, so the pair gives cos(1,007 − 1,004); what "
           "passes through adds its ½ at any distance. Moved by a thousand, the score is the same.",
    hints=(
        "What is the product of (cos a, sin a) and (cos b, sin b)?",
        "cos a cos b + sin a sin b = cos(a − b). Then add the channels that do not turn.",
    ),
    mistakes=(
        Mistake("the channels that pass through are left out", "They add 1 · ½, wherever the tokens stand.",
                "math.cos(3)"),
        Mistake("the angles are added", "cos a cos b + sin a sin b is the cosine of the difference.",
                "math.cos(1007 + 1004) + 0.5"),
        Mistake("only the query is turned", "Key and query are both turned, each by its own position.",
                "math.cos(1007) + 0.5"),
        Mistake("nothing is turned", "The pair turns by one radian a token.", "1.5"),
        Mistake("the other two channels turn as well", "R = 2 of d = 4 rotate; the rest pass through.",
                "1.5 * math.cos(3)"),
    ),
)  # fmt: skip
