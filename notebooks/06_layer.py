# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6 · A whole layer
#
# 10 min, 45 more for the exercises · after [lightning attention](../03_chunks/),
# [softmax](../04_softmax/) and [experts](../05_experts/) · any laptop; NumPy and matplotlib
#
# **Question.** You have seen every part of a layer by itself. What joins them, and is what you then hold the
# model, or something like it?
#
# **You will** write the norm, the shortcut, the norm over all heads and the gate; put a layer together from
# them; compare it with the model’s own, part by part; run the *whole model* on it; and see where in a layer each
# of nine mistakes shows first.

# %%
import dataclasses
import re

import matplotlib.pyplot as plt
import numpy as np
from minimax_numpy import MiniMaxConfig, MiniMaxForCausalLM, ops
from minimax_numpy.check import DEFECTS, broken, exercise
from minimax_numpy.layers import Weights
from minimax_numpy.shipped import TINY
from minimax_numpy.trace import Trace, recording

# %config InlineBackend.figure_formats = ["svg"]
ORANGE, BLUE, GREY = "#d2622a", "#3f8bd0", "#808a98"  # legible by day and by night
lines = [f"{part}.color" for part in ("text", "xtick", "ytick")]
lines += ["axes.edgecolor", "axes.labelcolor"]
plt.rcParams.update(dict.fromkeys(lines, GREY))
plt.rcParams.update(dict.fromkeys(["figure.facecolor", "axes.facecolor"], "none"))
plt.rcParams.update(dict.fromkeys(["axes.spines.top", "axes.spines.right"], False))
plt.rcParams["figure.figsize"] = 7, 3.4


def yours_or(number, yours, ours):
    """Your function once its check says right; until then the library's."""
    right = exercise(number, yours).ok
    until = f"the library's, until yours of {number} is right."
    print("At work:", "your own." if right else until)
    return yours if right else ours


def rms(x):
    """The size of an array's numbers: the root of their mean square."""
    return np.sqrt(np.mean(x * x))


# %% [markdown]
# ## 1 · One join, by hand
#
# A layer does two things to a token’s vector: it mixes in what other positions say (attention), and it sends the
# result through two experts. Each time the same three steps:
#
# $$\begin{aligned}
# n &= \mathrm{RMSNorm}(x) \\
# u &= \mathrm{block}(n) \\
# x &\leftarrow \alpha\,n + \beta\,u
# \end{aligned}$$
#
# Two channels are enough to see it. The vector (3, 4) has a root mean square of √12.5 = 3.54. Let the block
# answer (1, 0), and take α = 2, β = 1. Work out the new x before you run the cell.

# %%
x, u = np.array([3.0, 4.0]), np.array([1.0, 0.0])
n = x / rms(x)
print("n      =", n.round(3), " its root mean square is", rms(n).round(3))
print("x, new =", (2 * n + u).round(3))

# %% [markdown]
# Note what became of the 3 and the 4: only their *ratio* went on. Most models add u to x itself. This one adds
# it to n, so nothing remembers how long x was.

# %% [markdown]
# {{ exercise 5.1 }}

# %% [markdown]
# From here on the notebook works with your function where it is right, and with the library’s where it is not yet.

# %%
norm = yours_or("5.1", rms_norm, ops.rms_norm)
print("the norm of (3, 4):", norm(np.array([3.0, 4.0]), np.ones(2), 0.0).round(3))

# %% [markdown]
# ## 2 · Draw it: how long is the stream?
#
# Forty layers with fresh weights, three ways to carry on. The first is the model’s. The second carries x where the
# model carries n, and keeps the α that was meant for n: a mistake that ports do make. The third is what most
# models do: carry x, with α = 1.

# %%
tiny = MiniMaxConfig.tiny()
FACTORS = [f"{part}_alpha_factor" for part in ("full_attn", "linear_attn", "mlp")]


def deep(alpha, **changes):
    """Five times the tiny model's layers."""
    changes |= {"layer_types": tiny.layer_types * 5, **dict.fromkeys(FACTORS, alpha)}
    return MiniMaxForCausalLM(dataclasses.replace(tiny, **changes), dtype=np.float64)


alpha = (2 * 40) ** 0.25
models = {
    "α n + u, this model": (deep(alpha), ORANGE),
    "α x + u, a mistake": (deep(alpha, postnorm=False), GREY),
    "x + u, most models": (deep(1.0, postnorm=False), BLUE),
}
ids = np.arange(40, 72)[None]  # (B, T); any 32 tokens will do

fig, ax = plt.subplots()
for name, (deep_model, colour) in models.items():
    states = deep_model(ids, output_hidden_states=True).hidden_states[:-1]
    size = [rms(x) for x in states]
    print(f"{name:19} {size[0]:4.2f} at first, {size[-1]:8.3g} after 40 layers")
    ax.plot(size, color=colour)
    place = (40.5, size[-1]) if size[-1] < 9 else (1.2, 7.4)
    ax.text(*place, name, color=colour, va="center")
ax.set(xlabel="layers passed", ylabel="root mean square of x", xlim=(0, 40), ylim=(0, 8))
ax.set_title("Re-normed at every join, the stream keeps its length")
plt.show()

# %% [markdown]
# **Notice** that the orange line does not grow at all: α says how much of the stream a block may replace, in the
# first layer as in the last. With x carried the stream grows slowly where α is 1, and by $\alpha^2$ a layer, out of
# the picture at once, where somebody has overlooked the word *normed*.
#
# Why that α? The released model takes the one of DeepNorm, by its number of layers.

# %% [markdown]
# {{ exercise 5.5 }}

# %% [markdown]
# {{ exercise 5.3 }}


# %%
def join(x, weight, update, alpha, beta):
    """The library's, in the form of the exercise."""
    return ops.add_residual(x, ops.rms_norm(x, weight), update, alpha, beta)


join = yours_or("5.3", residual, join)
again = join(np.array([3.0, 4.0]), np.ones(2), u, 2.0, 1.0)
print("by hand it was 2.697 and 2.263; now:", again.round(3))

# %% [markdown]
# What is carried is shrunk a little at each join, for the norm divides by a vector that has just grown. How much of
# the first vector, the embedding, is left when the last layer is done?

# %% [markdown]
# {{ exercise 5.6 }}

# %% [markdown]
# ## 3 · What the heads read is normed as one vector
#
# Now the inside of lightning attention, after q, k and v have done [their work](../03_chunks/). Each head has
# read d numbers from its memory. A memory is a *sum*: heads that forget slowly have summed more, and speak louder.
#
# This is the model that ships with the library, whose gains are not all one, so that no mistake can hide behind a 1.

# %%
model = MiniMaxForCausalLM.from_pretrained(TINY, np.float64)
config = model.config
L, H, G = config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads
parts = Trace()
with recording(parts):  # every part of a run, by name
    logits = model(ids).logits

read = ops.split_heads(parts["model.layers.0.self_attn.norm.input"], H)  # (B, H, T, d)
together = read / np.sqrt(np.mean(read**2, axis=(1, 3), keepdims=True))
each = read / np.sqrt(np.mean(read**2, axis=3, keepdims=True))

fig, axes = plt.subplots(1, 3, figsize=(7, 2.4), layout="constrained")
shown = {"as read": read, "one norm for all": together, "a norm a head": each}
for ax, (title, y) in zip(axes, shown.items()):
    colour = GREY if y is each else ORANGE
    ax.bar(range(H), [rms(y[0, h]) for h in range(H)], color=colour)
    ax.set(title=title, xlabel="head", xticks=range(H))
axes[0].set_ylabel("root mean square")
plt.show()

# %% [markdown]
# **Notice** the middle: the loud stay louder. On the right every head is equally loud, whatever it has to say;
# that is another model. It runs, it trains, and no shape betrays it.

# %% [markdown]
# {{ exercise 5.2 }}


# %%
def norm_of_heads(out, weight):
    """The library's, in the form of the exercise."""
    return ops.inner_norm(ops.merge_heads(out), weight)


norm_of_heads = yours_or("5.2", inner_norm, norm_of_heads)
y = norm_of_heads(read, model.weights["model.layers.0.self_attn.norm.weight"])
apart = np.abs(y - parts["model.layers.0.self_attn.norm"]).max()
print(f"apart from the model's own: {apart:.0e}")

# %% [markdown]
# Its ε is 1e-6, and fixed; the other norms take 1e-5 from the configuration. Keep this in mind for section 6.
#
# ## 4 · The gate
#
# Before the heads are projected back, the layer’s input has a last word. Each of the H · d channels passes through
# a valve that the *normed input* of the layer opens or shuts: a memory may know something, and the token may not
# want it.

# %% [markdown]
# {{ exercise 5.4 }}


# %%
def gate(y, x, weight):
    """The library's, in the form of the exercise."""
    return ops.output_gate(y, x, lambda x: x @ weight.T)


gate = yours_or("5.4", output_gate, gate)
opened = ops.sigmoid(parts["model.layers.0.self_attn.output_gate"])[0]  # (T, H·d)
print(f"of the valves {(opened < 0.25).mean():.0%} are nearly shut")
print(f"and {(opened > 0.75).mean():.0%} nearly open")

# %% [markdown]
# ## 5 · Put it together
#
# Four functions of yours, and ops that you know from the notebooks before this one. Every part is filed under the
# name that the model has for it. `w` reads a layer’s weights by their names in a checkpoint.


# %%
def lightning(w, n1, layer, part):
    """Lightning attention of a layer: seven of eight."""
    part["self_attn.qkv_proj"] = qkv = n1 @ w["qkv_proj.weight"].T
    q, k, v = ops.split_qkv(qkv, H)  # (B, H, T, d) each; SiLU on all three
    slopes = ops.decay_slopes(H, layer, L, config.slope_rule)
    out, part["self_attn.state"] = ops.lightning_attention_recurrent(q, k, v, slopes)
    part["self_attn.norm"] = y = norm_of_heads(out, w["norm.weight"])
    part["self_attn.out_proj.input"] = gated = gate(y, n1, w["output_gate.weight"])
    part["self_attn.out_proj"] = update = gated @ w["out_proj.weight"].T
    return update


def softmax(w, n1, layer, part):
    """Softmax attention of a layer: one of eight."""
    positions = np.arange(n1.shape[1])[None]  # (1, T)
    heads = {"q": H, "k": G, "v": G}
    q, k, v = (ops.split_heads(n1 @ w[f"{x}_proj.weight"].T, heads[x]) for x in "qkv")
    R, base = config.rotary_dim, config.rope_theta
    q, k = (ops.apply_rotary(x, positions, R, base) for x in (q, k))
    out = ops.merge_heads(ops.softmax_attention(q, k, v))
    part["self_attn.o_proj"] = update = out @ w["o_proj.weight"].T
    return update


def experts(w, n2, part):
    """Two of six for each token."""
    part["mlp.gate"] = scores = n2 @ w["gate.weight"].T
    weights, indices = ops.route(scores, config.num_experts_per_tok)
    part["mlp.gate.weights"], part["mlp.gate.indices"] = weights, indices
    matrices = w["experts.gate_up_proj"], w["experts.down_proj"]
    part["mlp"] = update = ops.mix_experts(n2, weights, indices, *matrices)
    return update


def my_layer(x, layer):
    """Attend and join; experts, and join. Returns x, and the parts by name."""
    w, part = Weights(model.weights, f"model.layers.{layer}"), {}
    kind = config.layer_types[layer]
    attention = lightning if kind == "linear_attention" else softmax
    g1, g2 = w["input_layernorm.weight"], w["post_attention_layernorm.weight"]

    part["input_layernorm"] = n1 = norm(x, g1, 1e-5)
    update = attention(w / "self_attn", n1, layer, part)
    x = join(x, g1, update, alpha=2.0, beta=1.0)
    part["post_attention_layernorm.input"] = x
    part["post_attention_layernorm"] = n2 = norm(x, g2, 1e-5)
    x = join(x, g2, experts(w / "mlp", n2, part), alpha=2.0, beta=1.0)
    return x, part


# %% [markdown]
# Is it the layer? Feed it the embeddings of 32 tokens and lay every part beside the model’s own.

# %%
x = model.weights["model.embed_tokens.weight"][ids]  # (B, T, D)
x, mine = my_layer(x, 0)
for name, y in {**mine, "": x}.items():  # the layer itself has no name of its own
    theirs = parts[f"model.layers.0.{name}".rstrip(".")]
    shape = "×".join(map(str, y.shape))
    print(f"{name or 'the layer':32} {shape:12} {np.abs(y - theirs).max():8.0e} apart")

# %% [markdown]
# If every line ends in 1e-14 or less, it is: float64 has room for nothing else. And eight of these are a model.

# %%
x = model.weights["model.embed_tokens.weight"][ids]
for layer in range(L):
    x, _ = my_layer(x, layer)
x = norm(x, model.weights["model.norm.weight"], 1e-5)
mine = x @ model.weights["lm_head.weight"].T

at_work = {norm, join, norm_of_heads, gate}
yours = len(at_work & {rms_norm, residual, inner_norm, output_gate})
print(f"logits {mine.shape}, {np.abs(mine - logits).max():.0e} apart")
print(f"{yours} of the four functions are yours")

# %% [markdown]
# ## 6 · Break it
#
# Nine mistakes, each made by somebody, somewhere; one a column. The library commits them for
# us (`DEFECTS[…].plant(ops)`). Rows are the parts of layer 0 in the order in which they are computed, and then the
# logits; the larger a dot, the larger its relative error. Orange is the first part that is wrong.

# %%
MISTAKES = (
    "reads_before_writing",
    "scales_queries",
    "norms_each_head",
    "takes_the_outer_eps",
    "gates_by_silu",
    "gates_by_the_unnormed_input",
    "carries_the_wrong_residual",
    "leaves_out_alpha",
    "leaves_weights_unnormalised",
)
PARTS = [name for name in parts if name.startswith("model.layers.0")]
PARTS = [name for name in PARTS if not name.endswith("indices")] + ["lm_head"]

errors = np.zeros((len(MISTAKES), len(PARTS)))
for row, mistake in enumerate(MISTAKES):
    wrong = Trace()
    with recording(wrong), ops.using(**DEFECTS[mistake].plant(ops)):
        model(ids)
    errors[row] = [rms(wrong[name] - parts[name]) / rms(parts[name]) for name in PARTS]
print(f"largest error of mistake 4: {errors[3].max():.0e}")
print(f"mistake 2 in the logits:    {errors[1, -1]:.0e}\n")

for number, mistake in enumerate(MISTAKES, 1):
    print(number, DEFECTS[mistake].says)

size = np.log10(np.maximum(errors, 1e-8)) + 8  # 0 below 1e-8, 8 where all is wrong
fig, ax = plt.subplots(figsize=(6, 4.8), layout="constrained")
for column, dots in enumerate(size):
    wrong = np.flatnonzero(dots)
    colours = [ORANGE, *[GREY] * (len(wrong) - 1)]
    place = [column + 1] * len(wrong), wrong
    ax.scatter(*place, s=3 * dots[wrong] ** 2, color=colours, linewidths=0)
labels = [re.sub(r"model\.layers\.0\.(self_attn\.)?", "", name) for name in PARTS[:-2]]
labels += ["the layer", "logits"]
ax.set_yticks(range(len(PARTS)), labels)
ax.set(xticks=range(1, len(MISTAKES) + 1), xlabel="mistake")
ax.set_ylim(len(PARTS) - 0.5, -0.5)
ax.tick_params(length=0)
ax.set_title("Where each mistake shows first")
plt.show()

# %% [markdown]
# **Notice** three things.
#
# - Read a column from above. It begins at one part, and most of what follows is wrong with it. The *first* dot names
#   the fault; the last one only says that there is one.
# - Mistake 2 is large where it begins and then all but vanishes. The norm takes a constant factor out again, all but
#   its ε. A test that looks at logits with a tolerance of 1e-4 will not find it; one that looks at the part will.
# - Mistake 4, ε = 1e-5 in place of 1e-6, is small everywhere. There, too, 1e-4 has no chance.
#
# Now the other way round: you find the mistake. `broken(3)` is a model of four layers with one of the library’s
# mistakes in it. Nothing in what it says gives it away.

# %%
said = broken(3)(ids).logits
print(f"logits {said.shape}, all finite: {np.isfinite(said).all()}")
print(f"and of an ordinary size: {rms(said):.2f}")

# %% [markdown]
# Printed, it shows its parts beside those of the model as it should be. Look for the first that differs, and ask
# what lies between it and the last that is right.

# %% [markdown]
# {{ exercise 9.3 }}

# %% [markdown]
# ## 7 · The real one
#
# [decoder_layer](../../reference/numpy/#minimax_numpy.layers.decoder_layer) is `my_layer` with a memory between calls
# and a place for padding; open its source there and find your four functions.
# [Its twin](../../reference/torch/) says the same in PyTorch, and [notebook 8](../08_twin/) shows that it does.
#
# | in the real model | |
# |---|---|
# | α | 3.5566 = (2 · 80)^¼, for attention and experts alike; β is 1 |
# | D, H · d | 6,144 and 8,192: inside attention the vector is wider than the stream |
# | the gate | as large as each of q, k and v: 50 million parameters a layer |
#
# ## In three lines
#
# - A layer is norm, block, join, twice; the join carries the **normed** value.
# - All heads are normed as one vector, so that loud heads stay louder; then a sigmoid of the layer’s input decides
#   what gets out.
# - Compare part by part: the first difference is where the fault is, the last is where everybody looks.
#
# ## Try it
#
# 1. Give `my_layer` the alpha 1.0 in its second join only. Which part of layer 0 tells first, and why not `mlp`?
# 2. In section 6, why does `the state is read before it is written` leave `state` itself right?
# 3. Replace `ops.lightning_attention_recurrent` in `lightning` by the function that you wrote in
#    [notebook 2](../02_memory/) or [3](../03_chunks/), and run the whole model on it.
#
# <details><summary>Answers</summary>
#
# 1. The layer’s own output. `mlp` is the update, computed before the join; the join is the last thing that a layer
#    does.
# 2. The same numbers are written, at the same time. Only the reading comes too early.
# 3. An empty state is `np.zeros((1, H, 16, 16))`. The logits stay 1e-14 apart.
#
# </details>
#
# **Next:** [generate, and watch the cache](../07_cache/).
