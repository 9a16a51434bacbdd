"""6 · Experts and routing."""

import math
from typing import Any

import numpy as np

from ... import ops
from ..single import Case
from .functions import implement
from .registry import Edit, Exercise, Mistake, Verdict, planted, register
from .values import number


def route_cases(rng):
    """Several shapes, one expert a token, ties, scores far out."""
    for label, shape, K in (
        ("shapes", (2, 5, 6), 2), ("shapes", (7, 4), 3), ("one expert a token", (5, 4), 1), ("every expert", (3, 4), 4),
    ):  # fmt: skip
        yield Case(label, {"logits": rng.standard_normal(shape), "top_k": K})
    ties = np.array([[0.0, 1.0, 1.0, 1.0], [2.0, 2.0, 0.0, 2.0]]) + float(rng.integers(0, 3))
    yield Case("ties", {"logits": ties, "top_k": 2})
    far = np.round(64 * rng.standard_normal((3, 5))) / 64  # float32 holds their sums with 900
    yield Case("scores far out", {"logits": far + np.array([[900.0], [-900.0], [0.0]]), "top_k": 2})


@implement(
    "6.1",
    "Two of thirty-two",
    minutes=12,
    difficulty=2,
    hints=(
        "np.argsort(-logits, kind=\"stable\") puts the best first and, among equals, the lower index.",
        "Softmax over all experts, np.take_along_axis for the chosen ones, then divide by their sum.",
    ),
    reason="The weights of the chosen sum to 1. (A softmax over the chosen scores alone gives the same numbers.)",
    cases=route_cases,
    truth=ops.route,
    outputs={"weights": "", "indices": ""},
    mistakes=(
        planted("leaves_weights_unnormalised", "chosen / chosen.sum(axis=-1, keepdims=True)", "chosen"),
        planted("exchanges_expert_weights", "return weights, indices", "return weights[..., ::-1], indices"),
        Edit("the best expert stands last", "Best first: sort −logits.",
             "indices = np.argsort(-logits, axis=-1, kind=\"stable\")[..., :top_k]",
             "indices = np.argsort(logits, axis=-1, kind=\"stable\")[..., -top_k:]"),
        Edit("the worst experts are chosen", "argsort goes upwards: sort −logits.", "np.argsort(-logits,",
             "np.argsort(logits,"),
        Edit("ties go to the higher index", "Among equals the lower index comes first: a stable sort of −logits.",
             "indices = np.argsort(-logits, axis=-1, kind=\"stable\")[..., :top_k]",
             "indices = np.argsort(logits, axis=-1, kind=\"stable\")[..., ::-1][..., :top_k]"),
        Edit("the scores themselves are the weights", "Exponentiate before you divide.",
             "powers = np.exp(logits - logits.max(axis=-1, keepdims=True))", "powers = logits"),
        Edit("nothing is subtracted before the exponential", "Subtract the row's largest score: e^900 overflows.",
             "np.exp(logits - logits.max(axis=-1, keepdims=True))", "np.exp(logits)"),
    ),
)  # fmt: skip
def route(logits, top_k):
    """Choose each token's experts: logits [..., E] → (weights [..., K], indices [..., K]), best first.

    Softmax over all experts; the weights of the K chosen are divided by their sum. Among equal scores the lower
    index comes first. Scores may be as large as ±900.
    """
    indices = np.argsort(-logits, axis=-1, kind="stable")[..., :top_k]
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    chosen = np.take_along_axis(powers / powers.sum(axis=-1, keepdims=True), indices, axis=-1)
    weights = chosen / chosen.sum(axis=-1, keepdims=True)
    return weights, indices


def expert_cases(rng):
    """Two of four, one of three, all of them, a single token."""
    for label, T, E, K, D, F in (
        ("shapes", 6, 4, 2, 5, 3), ("shapes", 4, 4, 2, 4, 4), ("one expert a token", 5, 3, 1, 4, 6),
        ("every expert", 3, 3, 3, 4, 5), ("one token", 1, 4, 2, 5, 3),
    ):  # fmt: skip
        weights, indices = ops.route(rng.standard_normal((T, E)), K)
        w1, w3, w2 = (rng.standard_normal(s) for s in ((E, F, D), (E, F, D), (E, D, F)))
        yield Case(
            label,
            {"x": rng.standard_normal((T, D)), "weights": weights, "indices": indices, "w1": w1, "w3": w3, "w2": w2},
        )


@implement(
    "6.2",
    "Send tokens through their experts",
    minutes=15,
    difficulty=2,
    hints=(
        "Loop over tokens and their K choices: y[t] += weights[t, k] · expert(indices[t, k], x[t]).",
        "An expert is W2 (silu(W1 x) ⊙ W3 x), silu(z) = z / (1 + e^(−z)); matrices are [out, in].",
    ),
    reason="Each token visits K small networks, and what they say is averaged with the router's weights.",
    cases=expert_cases,
    truth=lambda x, weights, indices, w1, w3, w2: ops.mix_experts(
        x, weights, indices, np.concatenate([w1, w3], axis=1), w2
    ),
    outputs={"y": "T D"},
    mistakes=(
        planted("exchanges_w1_and_w3", "gate, up = w1[e] @ x[t], w3[e] @ x[t]",
                "gate, up = w3[e] @ x[t], w1[e] @ x[t]"),
        planted("exchanges_expert_weights", "weights[t, k] *", "weights[t, -1 - k] *"),
        Edit("the router's weights are not applied", "Multiply each expert's answer by its weight.", "weights[t, k] *",
             "1.0 *"),
        Edit("only the first choice speaks", "Sum over all K choices.", "range(indices.shape[1])", "range(1)"),
        Edit("the last choice overwrites the others", "Add: y[t] += …", "y[t] += ", "y[t] = "),
        Edit("the gate is a sigmoid, not a silu", "silu(z) = z σ(z).", "gate / (1 + np.exp(-gate))",
             "1 / (1 + np.exp(-gate))"),
        Edit("expert k works, not expert indices[t, k]", "Look the expert up: e = indices[t, k].", "e = indices[t, k]",
             "e = k"),
    ),
)  # fmt: skip
def mix_experts(x, weights, indices, w1, w3, w2):
    """Send each token of x [T, D] through its experts: y_t = Σ_k weights_tk · expert_(indices_tk)(x_t), [T, D].

    weights, indices [T, K]; w1, w3 [E, F, D], w2 [E, D, F]; an expert is W2 (silu(W1 x) ⊙ W3 x).
    """
    y = np.zeros(x.shape)
    for t in range(len(x)):
        for k in range(indices.shape[1]):
            e = indices[t, k]
            gate, up = w1[e] @ x[t], w3[e] @ x[t]
            y[t] += weights[t, k] * (w2[e] @ (gate / (1 + np.exp(-gate)) * up))
    return y


number(
    "6.3",
    "One expert",
    "estimate",
    "In MiniMax-Text-01, D = 6,144 and an expert's hidden size is F = 9,216. How many parameters has one expert?",
    minutes=3,
    difficulty=1,
    solution="3 * 6144 * 9216",
    reason="W1, W3 and W2, each D · F: 169,869,312, and no bias.",
    hints=("How many matrices has a SwiGLU expert?", "W1 and W3 are [F, D], W2 is [D, F]."),
    mistakes=(
        Mistake("W3 is forgotten", "A SwiGLU has three matrices.", "2 * 6144 * 9216"),
        Mistake("one matrix is counted", "A SwiGLU has three matrices.", "6144 * 9216"),
        Mistake("all 32 experts are counted", "One expert.", "32 * 3 * 6144 * 9216"),
        Mistake("bytes are given", "Count numbers, not the two bytes of each.", "2 * 3 * 6144 * 9216"),
    ),
    within=1e-4,
)

number(
    "6.4",
    "A perfect balance",
    "predict",
    "Two of 32 experts are taken, every expert gets equally many tokens, and every mean probability is 1/32. What is "
    "the balance loss E · Σ_e f_e P_e, where f_e counts the assignments to expert e per token?",
    minutes=6,
    difficulty=2,
    solution="32 * 32 * (2 / 32) * (1 / 32)",
    reason="f_e sums to K over the experts, so the least value is K, not 1.",
    hints=("What do the f_e sum to?", "Each token makes K = 2 assignments: f_e = 2/32."),
    mistakes=(
        Mistake("each token is counted once", "f_e counts assignments, K for each token.",
                "32 * 32 * (1 / 32) * (1 / 32)"),
        Mistake("the factor E is left out", "E · Σ f_e P_e.", "32 * (2 / 32) * (1 / 32)"),
        Mistake("the sum over the experts is left out", "Add over all 32.", "32 * (2 / 32) * (1 / 32) / 32"),
    ),
)  # fmt: skip


AT_WORK, IN_A_LAYER, SETS = 2 * 9216, 32 * 9216, 10**9  # hidden units of MiniMax-Text-01's experts; sets asked for


def judge_experts(exercise: Exercise, answer: Any) -> Verdict:
    """No more parameters than now, almost all that may be at work, and many sets of experts."""
    if answer is ... or answer is None:
        return exercise.failed("There is no answer yet. A way to begin:", exercise.hints[0])
    if not isinstance(answer, list | tuple) or [type(n) for n in answer] != [int] * 3 or min(answer) < 1:
        return exercise.failed("The answer is three whole numbers, (E, K, F).")
    E, K, F = answer
    if K > E or F % 256:
        return exercise.failed("K is at most E, and F a multiple of 256.")
    not_smaller, still_two, still_few = exercise.mistakes
    if E * F > IN_A_LAYER or K * F > AT_WORK:
        told = f"E · F = {E * F:,} of {IN_A_LAYER:,} in a layer, K · F = {K * F:,} of {AT_WORK:,} at work: too many."
        return exercise.failed(told, mistake=not_smaller if F == 9216 else None)
    if K * F < 0.95 * AT_WORK:
        told = f"K · F = {K * F:,}: only {K * F / AT_WORK:.0%} of the {AT_WORK:,} hidden units that may be at work."
        return exercise.failed(told, mistake=still_two if K <= 2 else None)
    told = f"{K} of {E} experts: {math.comb(E, K):,} sets."
    if math.comb(E, K) < SETS:
        return exercise.failed(f"{told} That is less than a billion.", mistake=still_few if E <= 32 else None)
    return exercise.passed(told)


register(
    Exercise(
        "6.5",
        "Finer experts",
        "design",
        10,
        2,
        "A layer of MiniMax-Text-01 has E = 32 experts of F = 9,216 hidden units, and K = 2 of them see a token: one "
        "of 496 sets. Choose other E, K and F, with no more expert parameters in a layer and no more at work on a "
        "token than now, at least 95 % of those that may be at work used, F a multiple of 256, and at least a billion "
        "sets. Answer with (E, K, F).",
        (
            "An expert has 3 · D · F parameters, so E · F and K · F are what may not grow.",
            "Cut every expert into n: E · n experts of F/n hidden units, K · n at work. How many sets for n = 3?",
        ),
        "answer = ...  # (E, K, F)\n",
        "(32 * 4, 2 * 4, 9216 // 4)",
        "Experts cut into four cost the same and combine in 1.4 · 10¹² ways. (Into three, 0.93 · 10⁹: not quite.) The "
        "price is paid elsewhere: thinner matrices, and a token that is sent to up to eight machines in place of two.",
        judge_experts,
        (
            Mistake("there are more experts, but of the same size", "Make them smaller as they become more: E · F and "
                    "K · F may not grow.", "(128, 8, 9216)"),
            Mistake("still only two experts are at work, on a token that may have more", "Smaller experts leave room "
                    "for more of them: K · F = 18,432.", "(128, 2, 2304)"),
            Mistake("there are still only 32 experts", "Smaller experts leave room for more of them: E · F = 294,912.",
                    "(32, 8, 2304)"),
        ),
    )
)  # fmt: skip

number(
    "6.6",
    "A near tie",
    "predict",
    "A router's scores for experts 0 to 3 are 1.0, 5.004, 5.008 and 5.012. They are rounded to bfloat16, which has 8 "
    "significant bits, before the best expert is taken. Which one is that? Answer with its index.",
    minutes=4,
    difficulty=2,
    solution="np.argmax(np.round(32 * np.array([1.0, 5.004, 5.008, 5.012])) / 32)",
    reason="Between 4 and 8 bfloat16 numbers are 1/32 apart: all three become 5.0, and among equals the lower index "
           "comes first. So this model's routers are float32, and the scores are computed in it.",
    hints=("How far apart are bfloat16 numbers between 4 and 8?", "Among equal scores the lower index comes first."),
    mistakes=(
        Mistake("it is routed as without rounding", "5.004, 5.008 and 5.012 are one number in bfloat16.", "3"),
        Mistake("index 0 is taken, though its score is lower", "Only experts 1, 2 and 3 are equal.", "0"),
        Mistake("the score is given", "Answer with the expert's index.", "5"),
        Mistake("experts are counted from 1", "The first expert is expert 0.", "2"),
    ),
)  # fmt: skip
