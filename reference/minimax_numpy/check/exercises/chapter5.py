"""5 · Norms, residuals, gate."""

import numpy as np

from ... import ops
from ..single import Case
from .functions import implement
from .registry import Edit, Mistake, planted
from .values import number


def norm_cases(rng):
    """Several axes, one vector, numbers so small that eps matters, float32."""
    for label, shape, eps in (
        ("shapes", (2, 5, 12), 1e-5), ("shapes", (3, 4), 1e-6),
        ("one vector", (8,), 1e-5), ("a large eps", (4, 6), 0.5),
    ):  # fmt: skip
        yield Case(label, {"x": rng.standard_normal(shape) + 0.5, "weight": rng.standard_normal(shape[-1]), "eps": eps})
    yield Case("small numbers", {"x": 1e-3 * rng.standard_normal((3, 8)), "weight": np.ones(8), "eps": 1e-5})
    x, weight = (rng.standard_normal(n).astype(np.float32) for n in ((2, 8), 8))
    yield Case("float32", {"x": x, "weight": weight, "eps": 1e-5})


@implement(
    "5.1",
    "The root-mean-square norm",
    minutes=6,
    difficulty=1,
    hints=("One number for each vector: the mean of its squares, plus eps, under the root.",
           "keepdims=True lets that number divide the whole last axis; the gain comes last."),
    reason="RMSNorm divides by the length and subtracts nothing; eps stands under the root.",
    cases=norm_cases,
    truth=ops.rms_norm,
    outputs={"out": ""},
    mistakes=(
        planted("subtracts_the_mean", "scale = np.sqrt(",
                "x = x - x.mean(axis=-1, keepdims=True)\n    scale = np.sqrt("),
        Edit("eps is added outside the root", "sqrt(mean(x²) + eps).",
             "np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)",
             "np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + eps"),
        Edit("the sum of squares is taken, not their mean", "Divide by the number of channels.", "np.mean(", "np.sum("),
        Edit("eps is left out", "sqrt(mean(x²) + eps): small vectors must stay small.", " + eps", ""),
        Edit("the mean runs over everything, not over each vector", "axis=-1: a vector knows nothing of the others.",
             "np.mean(x * x, axis=-1, keepdims=True)", "np.mean(x * x)"),
        Edit("the gain is left out", "Multiply by the weight.", "weight * (x / scale)", "x / scale"),
        Edit("it divides by the mean square, without the root", "Take the square root.", "np.sqrt(", "("),
    ),
)  # fmt: skip
def rms_norm(x, weight, eps):
    """Norm each vector of x [..., n] by its root mean square: weight ⊙ x / √(mean(x²) + eps).

    The mean is over the last axis. float32 in, float32 out.
    """
    scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    return (weight * (x / scale)).astype(x.dtype)


def inner_cases(rng):
    """Several heads, one head, numbers so small that eps matters."""
    for label, B, H, T, d, size in (
        ("shapes", 2, 3, 4, 5, 1.0), ("shapes", 1, 4, 2, 4, 3.0), ("one head", 2, 1, 3, 6, 1.0),
        ("small numbers", 1, 2, 3, 4, 1e-3),
    ):  # fmt: skip
        loud = 1 + np.arange(H)[:, None, None]  # heads of unlike size: a norm per head would level them
        out = size * loud * rng.standard_normal((B, H, T, d))
        yield Case(label, {"out": out, "weight": rng.standard_normal(H * d)})


@implement(
    "5.2",
    "One norm over all heads",
    minutes=8,
    difficulty=2,
    hints=("First put the heads side by side again: [B, H, T, d] → [B, T, H·d].",
           "swapaxes(1, 2), then reshape; then the norm of 5.1 with eps = 1e-6."),
    reason="All H·d channels share one norm, so a loud head stays louder than a quiet one; its eps is 1e-6, fixed.",
    cases=inner_cases,
    truth=lambda out, weight: ops.inner_norm(ops.merge_heads(out), weight),
    outputs={"out": "B T Hd"},
    mistakes=(
        planted("norms_each_head", "x = out.swapaxes(1, 2).reshape(B, T, H * d)\n",
                "out = out / np.sqrt(np.mean(out * out, axis=-1, keepdims=True) + 1e-6)\n"
                "    return weight * out.swapaxes(1, 2).reshape(B, T, H * d)\n    x = out\n"),
        planted("takes_the_outer_eps", "1e-6", "1e-5"),
        Edit("heads are merged without putting time first", "swapaxes(1, 2) before the reshape.",
             "out.swapaxes(1, 2).reshape", "out.reshape"),
        Edit("channels are merged channel-major", "A token's vector is head 0's channels, then head 1's, …",
             "out.swapaxes(1, 2).reshape", "out.transpose(0, 2, 3, 1).reshape"),
        planted("subtracts_the_mean", "    return weight * (x /",
                "    x = x - x.mean(axis=-1, keepdims=True)\n    return weight * (x /"),
    ),
)  # fmt: skip
def inner_norm(out, weight):
    """Merge the heads of out [B, H, T, d] into [B, T, H·d] and norm each token as one vector, eps 1e-6.

    The weight [H·d] multiplies the result.
    """
    B, H, T, d = out.shape
    x = out.swapaxes(1, 2).reshape(B, T, H * d)
    return weight * (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6))


def residual_cases(rng):
    """Factors that differ, factors of the released model."""
    for label, shape, alpha, beta in (
        ("shapes", (2, 3, 6), 1.7, 0.6), ("shapes", (4, 5), 0.5, 2.0), ("as released", (1, 2, 8), 160**0.25, 1.0),
    ):  # fmt: skip
        x, update = 2 * rng.standard_normal(shape), rng.standard_normal(shape)
        weight = 1 + 0.3 * rng.standard_normal(shape[-1])
        yield Case(label, {"x": x, "weight": weight, "update": update, "alpha": alpha, "beta": beta})


@implement(
    "5.3",
    "What is carried on",
    minutes=6,
    difficulty=1,
    hints=("The residual is not x. Which value do the attention and the update see?",
           "n = RMSNorm(x) with the weight and eps 1e-5; return alpha n + beta update."),
    reason="The model carries on the normed value, scaled by alpha: every layer starts from a vector of known length.",
    cases=residual_cases,
    outputs={"out": ""},
    mistakes=(
        planted("carries_the_wrong_residual", "alpha * normed", "alpha * x"),
        planted("exchanges_alpha_and_beta", "alpha * normed + beta * update", "beta * normed + alpha * update"),
        planted("leaves_out_alpha", "alpha * normed", "normed"),
        Edit("the norm comes after the sum", "Norm x first; the sum is not normed until the next block.",
             "return alpha * normed + beta * update",
             "y = alpha * x + beta * update\n"
             "    return weight * (y / np.sqrt(np.mean(y * y, axis=-1, keepdims=True) + 1e-5))"),
        Edit("alpha multiplies the update, too", "alpha n + beta u.", "beta * update", "alpha * beta * update"),
    ),
)  # fmt: skip
def residual(x, weight, update, alpha, beta):
    """Join the stream x [..., D] and a block's update: alpha · RMSNorm(x) + beta · update.

    The norm has the weight [D] and eps 1e-5.
    """
    normed = weight * (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5))
    return alpha * normed + beta * update


def gate_cases(rng):
    """Square and not; logits far out."""
    for label, T, D, n, size in (("shapes", 5, 6, 6, 1.0), ("shapes", 3, 4, 8, 1.0), ("far out", 2, 4, 4, 300.0)):
        y, x, weight = (rng.standard_normal(s) for s in ((2, T, n), (2, T, D), (n, D)))
        yield Case(label, {"y": y, "x": size * x, "weight": weight})


@implement(
    "5.4",
    "The output gate",
    minutes=6,
    difficulty=1,
    hints=("The gate has a value for each channel of y, made from x.", "sigmoid(x Wᵀ) ⊙ y; weights are [out, in]."),
    reason="A sigmoid lets between none and all of each channel out. silu would also scale and flip it.",
    cases=gate_cases,
    truth=lambda y, x, weight: ops.output_gate(y, x, lambda x: x @ weight.T),
    outputs={"out": "B T n"},
    mistakes=(
        planted("gates_by_silu", "logits = x @ weight.T\n", "logits = x @ weight.T\n    y = y * logits\n"),
        Edit("the weight is not transposed", "Weights are stored [out, in]: x @ weight.T.",
             "x @ weight.T", "x @ (weight if weight.shape[0] == weight.shape[1] else weight.T)"),
        Edit("the gate is made from y", "The gate reads x, the normed input of the layer.", "x @ weight.T",
             "(y if y.shape == x.shape else x) @ weight.T"),
        Edit("the gate is added", "Multiply: σ(x Wᵀ) ⊙ y.", "* y", "+ y"),
        Edit("the gate is upside down", "σ(z) = 1 / (1 + e^(−z)).", "np.exp(-logits)", "np.exp(logits)"),
    ),
)  # fmt: skip
def output_gate(y, x, weight):
    """Let x decide how much of y gets out: sigmoid(x Wᵀ) ⊙ y, with y [B, T, n], x [B, T, D], weight W [n, D]."""
    logits = x @ weight.T
    return 1 / (1 + np.exp(-logits)) * y


number(
    "5.5",
    "Alpha",
    "by hand",
    "The released model scales its residuals by alpha = (2L)^¼ with L = 80 layers. What is alpha?",
    minutes=2,
    difficulty=1,
    solution="(2 * 80) ** 0.25",
    reason="√√160: there are two blocks a layer, and the factor is in the configuration as 3.5565588200778455.",
    hints=("Take a square root twice.", "√160 = 12.649."),
    mistakes=(
        Mistake("one block a layer is counted", "2L blocks: attention and experts.", "80**0.25"),
        Mistake("the square root is taken once", "The exponent is ¼.", "160**0.5"),
        Mistake("the eighth root is taken", "The exponent is ¼.", "160**0.125"),
    ),
)


number(
    "5.6",
    "What is left of the embedding",
    "measure",
    "Suppose every update has the length of the normed stream and a direction of its own, at right angles to all "
    "others, and all gains are 1. MiniMax-Text-01 joins 160 of them (alpha = 160^¼, beta = 1), norming before each. "
    "How long is the embedding's part of the normed stream at the end, where all of it has length 1?",
    minutes=10,
    difficulty=2,
    solution="alpha, parts = 160**0.25, np.array([1.0])  # the length of each contribution\n"
             "for _ in range(160):\n"
             "    parts = np.append(alpha * parts, 1.0)  # join ...\n"
             "    parts /= np.linalg.norm(parts)  # ... and norm\n"
             "answer = parts[0]\n",
    reason="Each join shrinks what was there by α/√(α² + 1) = 0.9627, and 0.9627¹⁶⁰ = 0.0023. With α = 1 it would be "
           "0.7071¹⁶⁰ = 8e-25: α decides how long a layer is heard.",
    hints=(
        "Keep one number for each contribution: multiply all by alpha, append 1, divide by the length of the whole.",
        "parts = np.append(alpha * parts, 1.0), then parts / np.linalg.norm(parts), 160 times.",
    ),
    mistakes=(
        Mistake("80 joins are counted", "A layer joins two updates: attention and experts.",
                "(160**0.25 / np.sqrt(160**0.5 + 1)) ** 80"),
        Mistake("its share of the square is given", "A length was asked for, not its square.",
                "(160**0.25 / np.sqrt(160**0.5 + 1)) ** 320"),
        Mistake("alpha is left out", "The normed stream is multiplied by alpha before each join.", "0.5**80"),
        Mistake("lengths are added as if all pointed one way", "At right angles squares add: √(α² + 1).",
                "(160**0.25 / (160**0.25 + 1)) ** 160"),
        Mistake("every contribution is taken to count the same", "What came later is longer: it was shrunk less often.",
                "1 / np.sqrt(161)"),
    ),
    within=5e-3,
)  # fmt: skip
