"""2 · The sum becomes a memory."""

import numpy as np

from ... import ops
from ..single import Case
from .functions import implement
from .registry import Edit, Mistake, planted
from .values import number

number(
    "2.1",
    "Four steps",
    "by hand",
    "One head, d = e = 1, every q, k and v is 1, and the memory halves at each token (e^(−s) = 1/2). What is the "
    "output of the fourth token?",
    minutes=4,
    difficulty=1,
    solution="1 + 1 / 2 + 1 / 4 + 1 / 8",
    reason="Decay, write, read: S goes 1, 1.5, 1.75, 1.875. A token sees itself undecayed.",
    hints=("Keep S on paper: decay it, add k v, then read q S.", "S after two tokens is 1/2 · 1 + 1 = 1.5."),
    mistakes=(
        Mistake("a token's own contribution is decayed", "Decay what was there, then add k v.",
                "1/2 + 1/4 + 1/8 + 1/16"),
        Mistake("the state is read before it is written", "Decay, write, then read.", "1 + 1/2 + 1/4"),
        Mistake("the state is read between the decay and the write", "Decay, write, then read.", "1/2 + 1/4 + 1/8"),
        Mistake("nothing is forgotten", "Multiply S by 1/2 at each token.", "4"),
        Mistake("each step halves the new token instead of the old memory", "S ← S / 2 + 1.", "1/8"),
    ),
)  # fmt: skip


def memory_cases(rng):
    """Wide, narrow, square; one token; nothing forgotten."""
    for label, T, d, e, s in (
        ("shapes", 5, 3, 4, 0.3), ("shapes", 8, 4, 4, 0.1), ("one token", 1, 4, 4, 0.5), ("no decay", 6, 4, 4, 0.0),
    ):  # fmt: skip
        yield Case(label, {"k": rng.standard_normal((T, d)), "v": rng.standard_normal((T, e)), "s": s})


@implement(
    "2.2",
    "A sum of outer products",
    minutes=8,
    difficulty=1,
    hints=(
        "Token j writes the matrix k_j v_jᵀ, [d, e]; by the end it has decayed T − 1 − j times.",
        "Weights w_j = e^(−s (T−1−j)); S = (w k)ᵀ v.",
    ),
    reason="S is all that is left of the past: T tokens in one [d, e] matrix, the last one undecayed.",
    cases=memory_cases,
    outputs={"state": "d e"},
    mistakes=(
        planted("transposes_the_state", "(k * weights[:, None]).T @ v", "v.T @ (k * weights[:, None])"),
        planted("decays_own_token", "np.arange(len(k) - 1, -1, -1)", "np.arange(len(k), 0, -1)"),
        Edit("the first token is fresh and the last one decayed", "Token j has decayed T − 1 − j times.",
             "np.arange(len(k) - 1, -1, -1)", "np.arange(len(k))"),
        Edit("nothing is forgotten", "Multiply by e^(−s) at each token.", "np.exp(-s *", "np.exp(0 * s *"),
        Edit("the memory grows by e^(+s)", "The exponent is negative: e^(−s).", "np.exp(-s *", "np.exp(s *"),
    ),
)  # fmt: skip
def memory(k, v, s):
    """The state after keys k [T, d] and values v [T, e]: S = Σ_j e^(−s (T−1−j)) k_j v_jᵀ, [d, e]."""
    weights = np.exp(-s * np.arange(len(k) - 1, -1, -1))
    return (k * weights[:, None]).T @ v


def lightning_cases(rng, chunk=None, groups=True):
    """Several shapes, a state handed in, fast heads, float32; for chunks, short ones too."""
    sweep = [("shapes", 2, 3, 16, 4, 4, False), ("shapes", 1, 2, 7, 3, 5, False), ("one token", 2, 2, 1, 4, 4, True)]
    sweep += [("a state handed in", 2, 3, 16, 4, 4, True), ("a state handed in", 1, 1, 8, 5, 3, True)]
    sweep += [("the last chunk is short", 2, 2, 21, 4, 4, True)] * (chunk is not None)
    sweep += [("float32", 1, 2, 70, 4, 4, True)]
    for label, B, H, T, d, e, continued in sweep:
        kind = np.float32 if label == "float32" else np.float64
        q, k, v = (rng.standard_normal((B, H, T, n)).astype(kind) for n in (d, d, e))
        state = rng.standard_normal((B, H, d, e)).astype(kind) if continued else np.zeros((B, H, d, e), kind)
        slopes = (0.1 + rng.random(H)).astype(kind)
        yield Case(
            label, {"q": q, "k": k, "v": v, "slopes": slopes, "state": state} | ({"chunk": chunk} if chunk else {})
        )


@implement(
    "2.3",
    "Decay, write, read",
    minutes=15,
    difficulty=2,
    hints=(
        "One loop over t. In it: S = keep · S + k_t v_tᵀ, then out_t = S_tᵀ q_t.",
        "keep = exp(−slopes)[:, None, None]; the write is k[:, :, t, :, None] * v[:, :, t, None, :].",
    ),
    reason="Only what was there before decays, so a token sees itself whole; the state is handed on to the next call.",
    cases=lightning_cases,
    truth=ops.lightning_attention_recurrent,
    outputs={"out": "B H T e", "state": "B H d e"},
    mistakes=(
        planted("reads_before_writing",
                "S = keep * S + write\n        out[:, :, t] = np.einsum(\"bhd,bhde->bhe\", q[:, :, t], S)",
                "out[:, :, t] = np.einsum(\"bhd,bhde->bhe\", q[:, :, t], S)\n        S = keep * S + write"),
        planted("reads_between_decay_and_write", "q[:, :, t], S)", "q[:, :, t], S - write)"),
        planted("decays_own_token", "keep * S + write", "keep * (S + write)"),
        planted("forgets_the_state", "S = state", "S = 0 * state"),
        planted("scales_queries", "q[:, :, t], S)", "q[:, :, t] * q.shape[-1] ** -0.5, S)"),
        Edit("nothing is forgotten", "Multiply S by e^(−s) before the write.", "keep * S", "S"),
        Edit("the memory grows by e^(+s)", "The exponent is negative: e^(−s).", "np.exp(-slopes)", "np.exp(slopes)"),
        Edit("the slope itself multiplies the state", "The factor is e^(−s).", "np.exp(-slopes)", "slopes"),
    ),
)  # fmt: skip
def recurrent(q, k, v, slopes, state):
    """Lightning attention, one position at a time: S ← e^(−s) S + k vᵀ, then o = Sᵀ q.

    q, k [B, H, T, d], v [B, H, T, e], slopes [H], state [B, H, d, e] → (out [B, H, T, e], state).
    The state handed in is what came before; do not change it in place. float32 in, float32 out.
    """
    keep = np.exp(-slopes).astype(q.dtype)[:, None, None]
    S = state
    out = np.empty(v.shape, q.dtype)
    for t in range(q.shape[2]):
        write = k[:, :, t, :, None] * v[:, :, t, None, :]
        S = keep * S + write
        out[:, :, t] = np.einsum("bhd,bhde->bhe", q[:, :, t], S)
    return out, S


def slope_cases(rng):
    """First, middle and last layers; few heads and many."""
    for label, H, layer, L in (
        ("first layer", 8, 0, 80), ("a layer in between", 64, 3, 80), ("a layer in between", 4, 5, 8),
        ("last layer", 8, 7, 8), ("one head", 1, 2, 4),
    ):  # fmt: skip
        yield Case(label, {"num_heads": H, "layer_idx": layer, "num_layers": L})
    H, L = 2 ** int(rng.integers(1, 6)), int(rng.integers(4, 60))
    yield Case("a layer in between", {"num_heads": H, "layer_idx": L // 2, "num_layers": L})


@implement(
    "2.4",
    "One number a head",
    minutes=8,
    difficulty=1,
    hints=("Heads are counted from 0 here, and the formula has h + 1.", "s = 2^(−8 (h+1)/H) · (1 − l/(L−1) + 1e-5)."),
    reason="The first head forgets fastest; the last layer, with its factor of 1e-5, hardly at all.",
    cases=slope_cases,
    truth=ops.decay_slopes,
    outputs={"slopes": "H"},
    mistakes=(
        planted("divides_by_L", "(num_layers - 1)", "num_layers"),
        planted("leaves_out_the_epsilon", " + 1e-5", ""),
        planted("has_no_layer_factor", "(1 - layer_idx / (num_layers - 1) + 1e-5)", "(1 + 1e-5)"),
        planted("reverses_the_slopes", "np.arange(1, num_heads + 1)", "np.arange(num_heads, 0, -1)"),
        Edit("heads are counted from 0 in the exponent", "The exponent is −8 (h + 1)/H: no head has rate 1.",
             "np.arange(1, num_heads + 1)", "np.arange(num_heads)"),
        Edit("the rates are powers of e", "They are powers of 2.", "2.0 **", "math.e **"),
        Edit("what is returned is the decay e^(−s), not the rate s", "Return s; the exponential comes later.",
             "return rates * ", "return np.exp(-rates) ** "),
    ),
)  # fmt: skip
def slopes(num_heads, layer_idx, num_layers):
    """Decay rates of the heads of a layer, [H]: s_h = 2^(−8 (h+1)/H) · (1 − l/(L−1) + 1e-5).

    H is a power of two. Layers l = 0 … L − 1 are counted over the whole model.
    """
    rates = 2.0 ** (-8 * np.arange(1, num_heads + 1) / num_heads)
    return rates * (1 - layer_idx / (num_layers - 1) + 1e-5)


number(
    "2.5",
    "Half a memory",
    "predict",
    "MiniMax-Text-01 has 64 heads. After how many tokens has the 32nd head (h = 31) of layer 0 forgotten half of what "
    "a token wrote?",
    minutes=6,
    difficulty=2,
    solution="math.log(2) / (2 ** (-8 * 32 / 64) * (1 + 1e-5))",
    reason="s = 2^(−4) · 1.00001 = 0.0625, and e^(−s n) = 1/2 where n = ln 2 / s: eleven tokens.",
    hints=("Find s first: 2^(−8 (h+1)/H).", "e^(−s n) = 1/2 gives n = ln 2 / s."),
    mistakes=(
        Mistake("1/s is taken, after which 37 % are left", "Half is left after ln 2 / s.", "16"),
        Mistake("the exponent has h in place of h + 1", "h = 31, so h + 1 = 32.", "math.log(2) / 2 ** (-8 * 31 / 64)"),
        Mistake(
            "the exponent has h + 2: the 32nd head is h = 31, not 32",
            "Heads count from 0.",
            "math.log(2) / 2 ** (-8 * 33 / 64)",
        ),
        Mistake("1 / (2 s) is taken for half", "Decay is exponential: ln 2 / s.", "8"),
    ),
)


number(
    "2.6",
    "Who has forgotten “the”",
    "predict",
    "Layer 0 of MiniMax-Text-01, 64 heads. 500 tokens after it was written, in how many heads is less than 1 % of "
    "“the” left?",
    minutes=8,
    difficulty=2,
    solution="sum(math.exp(-500 * 2 ** (-8 * (h + 1) / 64) * (1 + 1e-5)) < 0.01 for h in range(64))",
    reason="e^(−500 s) < 0.01 where s > ln 100 / 500 = 0.0092. s = 2^(−(h+1)/8), so h + 1 ≤ 54: heads 0 … 53. Ten "
           "heads still know it, the last with 14 % of its weight.",
    hints=("How large must s be for e^(−500 s) < 0.01?", "2^(−(h+1)/8) > ln 100 / 500: take logarithms, base 2."),
    mistakes=(
        Mistake("the index of the slowest such head is given", "Heads 0 … 53 are 54 heads.", "53"),
        Mistake("half forgotten, or all but 37 %, counts as forgotten",
                "Every head of layer 0 has lost that much. Solve e^(−500 s) < 0.01.", "64"),
        Mistake("the heads that still know it are counted", "The question asks for those that have forgotten.", "10"),
        Mistake("a tenth is taken for 1 %", "ln 100, not ln 10.", "62"),
        Mistake("a thousandth is taken for 1 %", "ln 100, not ln 1000.", "49"),
        Mistake("one head too many is counted", "s of head 54 is 0.0085: 1.4 % are left.", "55"),
    ),
)  # fmt: skip

number(
    "2.7",
    "Room for strangers",
    "derive",
    "n values are stored in one state under random keys of length 1 in d = 128 channels, and nothing decays. Reading "
    "one of them brings along a little of all others. From which n on is what comes along expected to be at least half "
    "as large as the value itself?",
    minutes=10,
    difficulty=3,
    solution="128 / 4 + 1",
    reason="The product of two random directions has variance 1/d, so n − 1 strangers add √((n − 1)/d) of a value: ½ "
           "at n − 1 = d/4. A state is not full all at once: it blurs.",
    hints=(
        "kᵢᵀ S = vᵢ + Σ (kᵢ·kⱼ) vⱼ. What is the variance of kᵢ·kⱼ for two random directions?",
        "The variances 1/d of n − 1 strangers add up; the size is the root: √((n − 1)/d) = ½.",
    ),
    mistakes=(
        Mistake("sizes are added, not variances, or the root is left out",
                "Independent errors add as squares: √((n − 1)/d) = ½.", "128 / 2 + 1"),
        Mistake("the value itself is counted among the strangers", "There are n − 1 of them.", "128 / 4"),
        Mistake("the error is as large as the value, not half as large", "√((n − 1)/d) = ½.", "128 + 1"),
        Mistake("d values are thought to fit without a trace", "Only with keys at right angles; these are random.",
                "128"),
        Mistake("the product of two random directions is taken for 1/d", "Its variance is 1/d, its size 1/√d.",
                "128**2 / 4 + 1"),
    ),
)  # fmt: skip
