"""1 · Attention as a lookup."""

import numpy as np

from ... import ops
from ..single import Case
from .functions import implement
from .registry import Edit, Mistake, planted
from .values import number

number(
    "1.1",
    "A lookup with two entries",
    "by hand",
    "A query meets two keys with scores 0 and ln 3. Their values are 1 and 5. What does softmax attention return?",
    minutes=3,
    difficulty=1,
    solution="1 / 4 * 1 + 3 / 4 * 5",
    reason="e⁰ = 1 and e^(ln 3) = 3, so the weights are 1/4 and 3/4: a lookup that reads mostly the second entry.",
    hints=("Exponentiate both scores first.", "The weights are 1/(1 + 3) and 3/(1 + 3)."),
    mistakes=(
        Mistake("the powers are not divided by their sum", "Weights sum to 1: divide by 1 + 3.", "1 * 1 + 3 * 5"),
        Mistake("both values count the same", "Weigh each value by its power.", "(1 + 5) / 2"),
        Mistake(
            "only the best key is read, or the scores themselves are the weights",
            "e⁰ is 1, not 0: the first key keeps a quarter.",
            "5",
        ),
    ),
)


def softmax_cases(rng):
    """Ordinary rows, rows far out, rows that see nothing, float32."""
    for shape in ((4,), (3, 5), (2, 3, 4, 6)):
        yield Case("shapes", {"scores": rng.standard_normal(shape)})
    far = np.round(64 * rng.standard_normal((3, 5))) / 64  # float32 holds their sums with 900
    yield Case("scores far out", {"scores": far + np.array([[900.0], [-900.0], [0.0]])})
    hidden = rng.standard_normal((3, 4))
    hidden[0, 2:], hidden[1] = -np.inf, -np.inf
    yield Case("a row that sees nothing", {"scores": hidden})
    yield Case("float32", {"scores": rng.standard_normal((2, 7)).astype(np.float32)})


@implement(
    "1.2",
    "Softmax that never overflows",
    minutes=8,
    difficulty=1,
    hints=(
        "Multiplying every power of a row by the same number changes no weight: which number keeps e^x from "
        "overflowing?",
        "Subtract the row's largest score. Where that is −inf, subtract 0, and divide by 1 where the sum is 0.",
    ),
    reason="e^(x − max) is at most 1, so nothing overflows; a row of −inf has no largest score and reads nothing.",
    cases=softmax_cases,
    truth=ops.softmax,
    outputs={"weights": ""},
    mistakes=(
        Edit("nothing is subtracted before the exponential", "Subtract the row's largest score: e^900 overflows.",
             "np.exp(scores - top)", "np.exp(scores)"),
        Edit("the largest score of the whole array is subtracted, not each row's",
             "Take the maximum over the last axis: else a row far below the others is 0 / 0.",
             "scores.max(axis=-1, keepdims=True)", "scores.max(keepdims=True)"),
        Edit("a row of −inf becomes NaN", "Where the sum is 0, divide by 1: such a row reads nothing.",
             "np.where(top == -np.inf, 0, top)", "top"),
        Edit("the sum runs over the wrong axis", "Weights sum to 1 over the last axis, the keys.",
             "powers.sum(axis=-1, keepdims=True)", "powers.sum(axis=0, keepdims=True)"),
        Edit("the powers are not divided by their sum", "Weights sum to 1: divide each row by its sum.",
             "powers / np.where(total == 0, 1, total)", "powers"),
    ),
)  # fmt: skip
def softmax(scores):
    """Turn scores [..., n] into weights that sum to 1 over the last axis.

    Scores may be as large as ±900, and −inf hides a key. A row of nothing but −inf gives zeros.
    float32 in, float32 out.
    """
    top = scores.max(axis=-1, keepdims=True)
    top = np.where(top == -np.inf, 0, top).astype(scores.dtype)
    powers = np.exp(scores - top)
    total = powers.sum(axis=-1, keepdims=True)
    return (powers / np.where(total == 0, 1, total)).astype(scores.dtype)


def attention_cases(rng):
    """One head: as long as wide, longer, a single token, values of another width."""
    for label, T, d, e in (("shapes", 6, 6, 6), ("shapes", 9, 4, 4), ("one token", 1, 4, 4), ("wide values", 7, 4, 9)):
        q, k, v = (rng.standard_normal((T, n)) for n in (d, d, e))
        yield Case(label, {"q": q, "k": k, "v": v})
    q, k, v = (rng.standard_normal((5, 8)) for _ in range(3))
    yield Case("scores far out", {"q": 40 * q, "k": 40 * k, "v": v})


@implement(
    "1.3",
    "Causal attention, one head",
    minutes=12,
    difficulty=1,
    hints=(
        "Three steps: scores [T, T], hide what is later than the query, softmax over the keys; then the values.",
        "Scores are q kᵀ / √d. np.tri(T) is 1 where key j ≤ query t; elsewhere the score becomes −inf.",
    ),
    reason="Row t of the weights is a distribution over the keys 0 … t, and the output is the mean of their values.",
    cases=attention_cases,
    truth=lambda q, k, v: ops.softmax_attention(q[None, None], k[None, None], v[None, None])[0, 0],
    outputs={"out": "T e"},
    mistakes=(
        planted("leaves_out_the_scale", " / np.sqrt(q.shape[-1])", ""),
        planted("sees_the_future", "np.where(np.tri(T, dtype=bool), scores, -np.inf)", "scores"),
        Edit("scores are divided by d, not by √d", "The scale is d^(−1/2).", "np.sqrt(q.shape[-1])", "q.shape[-1]"),
        Edit("a query does not see its own key", "j ≤ t: the diagonal is visible.",
             "np.tri(T, dtype=bool)", "(np.tri(T, k=-1, dtype=bool) | (np.arange(T)[:, None] == 0))"),
        Edit("the softmax runs over the queries", "Each query's weights sum to 1: sum over the last axis, the keys.",
             "powers.sum(axis=-1, keepdims=True)", "powers.sum(axis=0, keepdims=True)"),
        Edit("hidden scores are set to 0, which is a score like any other", "Set them to −inf: e⁰ is 1.",
             "scores, -np.inf)", "scores, 0.0)"),
    ),
)  # fmt: skip
def attention(q, k, v):
    """Causal softmax attention of one head: q, k [T, d], v [T, e] → [T, e].

    Query t looks at keys j ≤ t; its scores are q·k / √d.
    """
    T = len(q)
    scores = q @ k.T / np.sqrt(q.shape[-1])
    scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True) @ v


number(
    "1.4",
    "Scores of one head",
    "estimate",
    "How many scores does causal attention need for a text of 4,096 tokens, one head, one layer? Count only those that "
    "are not hidden.",
    minutes=4,
    difficulty=1,
    solution="4096 * 4097 / 2",
    reason="Query t sees t + 1 keys: 1 + 2 + … + 4,096. Twice the length costs four times as much.",
    hints=("The first query sees one key, the last one all of them.", "1 + 2 + … + T = T (T + 1) / 2."),
    mistakes=(
        Mistake("the hidden half is counted, too", "Only j ≤ t is visible.", "4096**2"),
        Mistake("a token does not see itself", "The diagonal counts: T (T + 1) / 2.", "4096 * 4095 / 2"),
    ),
    within=1e-5,
)


def linear_cases(rng):
    """As long as wide, longer, a single token, values of another width, float32."""
    for label, T, d, e in (("shapes", 6, 6, 6), ("shapes", 9, 4, 4), ("one token", 1, 4, 4), ("wide values", 7, 4, 9)):
        q, k, v = (rng.standard_normal((T, n)) for n in (d, d, e))
        yield Case(label, {"q": q, "k": k, "v": v})
    q, k, v = (rng.standard_normal((12, 4)).astype(np.float32) for _ in range(3))
    yield Case("float32", {"q": q, "k": k, "v": v})


@implement(
    "1.5",
    "Remove the softmax",
    minutes=8,
    difficulty=1,
    hints=(
        "Begin with 1.3 and take things out: no scale, no −inf, no exponential, no division.",
        "The scores themselves weigh the values: zero those with j > t, then multiply by v.",
    ),
    reason="Nothing but sums and products is left, so the sum over j may be kept between tokens: that is chapter 2. "
           "Nothing makes the weights positive or their sum 1: this model norms the output afterwards instead.",
    cases=linear_cases,
    truth=lambda q, k, v: ops.lightning_attention_direct(q[None, None], k[None, None], v[None, None], np.zeros(1))[0][
        0, 0
    ],
    outputs={"out": "T e"},
    mistakes=(
        Edit("scores are still scaled by 1/√d", "The scale belonged to the softmax: leave it out.", "q @ k.T",
             "q @ k.T * q.shape[-1] ** -0.5"),
        Edit("queries see the future, as they do when kᵀ v is summed over the whole text",
             "Query t sums over keys j ≤ t only.", "np.where(np.tri(T, dtype=bool), scores, 0)", "scores"),
        Edit("weights are still divided by their sum", "Without an exponential the sum may be 0 or negative: leave the "
             "division out.", "return weights @ v", "return (weights / weights.sum(axis=-1, keepdims=True)) @ v"),
        Edit("a token does not see itself", "j ≤ t: the diagonal counts.", "np.tri(T, dtype=bool)",
             "np.tri(T, k=-1, dtype=bool)"),
        Edit("the exponential is still there", "The bare product q·k is the weight.", "scores = q @ k.T",
             "scores = np.exp(q @ k.T)"),
        Edit("hidden scores become −inf", "−inf hides from an exponential. Here a hidden weight is 0.", "scores, 0)",
             "scores, -np.inf)"),
    ),
)  # fmt: skip
def linear_attention(q, k, v):
    """Causal attention of one head without its softmax: out_t = Σ_{j≤t} (q_t·k_j) v_j.

    q, k [T, d], v [T, e] → [T, e]. No scale, nothing to divide by. float32 in, float32 out.
    """
    T = len(q)
    scores = q @ k.T
    weights = np.where(np.tri(T, dtype=bool), scores, 0)
    return weights @ v


number(
    "1.6",
    "Twice the scores",
    "predict",
    "A head with d = 4 gives two keys the weights ¼ and ¾. Somebody leaves out the scale 1/√d. What weight has the "
    "second key then?",
    minutes=5,
    difficulty=2,
    solution="3**2 / (1 + 3**2)",
    reason="All scores double, so every power is squared: odds of 1 : 3 become 1 : 9. So does a temperature of ½.",
    hints=("By what factor do the scores grow?", "e^(2x) = (e^x)²: what happens to the odds 1 : 3?"),
    mistakes=(
        Mistake("the weights themselves are thought to stay", "Only the same number *added* to all scores changes "
                "nothing.", "3 / 4"),
        Mistake("the odds are doubled", "A score that doubles squares its power: 1 : 9, not 1 : 6.", "6 / 7"),
        Mistake("the scores are halved, not doubled", "Without 1/√4 they are twice as large.",
                "3**0.5 / (1 + 3**0.5)"),
        Mistake("d, not √d, is left out", "1/√d = ½: the scores double, they do not grow fourfold.",
                "3**4 / (1 + 3**4)"),
        Mistake("the sharper weights are not divided by their sum", "1 and 9 are powers: divide by 10.", "9"),
    ),
)  # fmt: skip
