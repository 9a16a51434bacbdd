"""Draw the stream through one layer, and how far updates turn it at any depth: `python docs/figures/residuals.py`.

A model of 80 layers with fresh weights and small sizes reads 64 random tokens, once as it is, once without α, once
with the stream itself carried past the norm. An update turns the stream by the angle between what was carried and
what it became; a layer has two, and the line is their mean.
"""

import numpy as np
from kit import Plot, arrow, cell, dot, line, sheet, text, write
from minimax_numpy import MiniMaxConfig, MiniMaxForCausalLM, ops
from minimax_numpy.config import HYBRID

LAYERS = 80
ALPHA = (2 * LAYERS) ** 0.25
MODELS = {
    "α n is carried, α = 3.557": (ALPHA, True),
    "n is carried": (1.0, True),
    "x is carried, as in most models": (1.0, False),
}


def rms(x):
    """Root of the mean square, vector by vector."""
    return np.sqrt(np.mean(x * x, axis=-1))


def joins(alpha, postnorm):
    """Angle, size of what is carried and size of the update, at each of the 2L joins; means over tokens."""
    factors = {f"{part}_alpha_factor": alpha for part in ("full_attn", "linear_attn", "mlp")}
    config = MiniMaxConfig.tiny(layer_types=HYBRID * (LAYERS // 8), postnorm=postnorm, **factors)
    model, right, found = MiniMaxForCausalLM(config, dtype=np.float64), ops.add_residual, []

    def watched(x, n, u, alpha, beta, postnorm):
        joined, carried = right(x, n, u, alpha, beta, postnorm), alpha * (n if postnorm else x)
        cosine = np.mean(joined * carried, axis=-1) / rms(joined) / rms(carried)
        found.append((np.degrees(np.arccos(cosine)).mean(), rms(carried).mean(), rms(u).mean()))
        return joined

    with ops.using(add_residual=watched):
        model(np.random.default_rng(0).integers(3, config.vocab_size, (1, 64)))
    return np.array(found)


def box(x, y, w, words):
    return cell(x, y, w, 26, "none") + text(x + w / 2, y + 17, words, "mid")


def stream(found):
    """One layer from left to right: the shortcut above, the blocks below, as thick as they are large."""
    carried, update = found[:, 1].mean(), found[:, 2].mean()
    y, high, start, parts = 100, 48, 14, [text(2, 104, "x")]
    for index, block in (("₁", "attention"), ("₂", "experts")):
        norm = start + 12
        fork, plus = norm + 79, norm + 182
        parts += [arrow([(start, y), (norm, y)]), box(norm, y - 13, 68, "RMSNorm"), line([(norm + 68, y), (fork, y)])]
        parts += [text(fork - 2, y + 19, f"n{index}", "mid"), dot(fork, y, 3.6, "hot")]
        shortcut = f"M{fork} {y} V{high} H{plus} V{y - 9}"
        parts += [f'<path d="{shortcut}" class="hot" style="stroke-width:{2 * carried:.1f};stroke-linejoin:round"/>']
        parts += [text((fork + plus) / 2, high - 10, f"α n{index}", "hot mid bold")]
        parts += [line([(fork, y), (fork + 12, y)]), box(fork + 12, y - 13, 68, block)]
        parts += [f'<path d="M{fork + 80} {y} H{plus - 9}" style="stroke-width:{2 * update:.1f}"/>']
        parts += [f'<circle cx="{plus}" cy="{y}" r="9" class="rim"/>', text(plus, y + 4, "+", "mid")]
        start = plus + 9
    return [*parts, arrow([(start, y), (start + 12, y)])]


def figures():
    """File name → content."""
    found = {name: joins(*how) for name, how in MODELS.items()}
    ours, without, plain = found.values()
    parts = [text(0, 14, "One layer. What goes into a sum is drawn as thick as it is large", "soft"), *stream(ours)]
    plot = Plot((0, LAYERS - 1), (0, 32), left=34, top=172, right=434, bottom=362)
    layers, degrees = {n: f"{n}" for n in (0, 19, 39, 59, 79)}, {n: f"{n}°" for n in (0, 10, 20, 30)}
    parts.append(plot.axes(layers, degrees, "layer", "how far an update turns the stream"))
    for (name, joined), style, place, side in zip(
        found.items(),
        ("hot thick", "dashed", "cool thick"),
        ((79, 10.6), (79, 29.6), (7, 14.2)),
        ("end", "end", ""),
        strict=True,
    ):
        parts.append(plot.curve(range(LAYERS), joined[:, 0].reshape(LAYERS, 2).mean(axis=1), style))
        colour = style.split()[0] if "thick" in style else ""
        parts.append(text(*plot.place(*place), name, f"{colour} {side}"))
    point = (
        f"What is carried past a block is α times the norm’s output, {ours[:, 1].mean():.1f} in size, against updates "
        f"of about {ours[:, 2].mean():.1f}. So each update turns the stream by about {ours[:, 0].mean():.0f} degrees "
        f"at any depth; without α by {without[:, 0].mean():.0f}; where x is carried, by {plain[:2, 0].mean():.0f} "
        f"degrees at first and {plain[-2:, 0].mean():.0f} at last."
    )
    return {"residuals.svg": sheet(440, 402, point, parts)}


if __name__ == "__main__":
    write(figures())
