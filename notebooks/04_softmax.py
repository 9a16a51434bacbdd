# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 · Softmax and rotary
#
# 25 min, 65 more for the exercises · after [attention as a lookup](../../path/lookup/) and [rotary on half the
# channels](../../path/rotary/) · any laptop, no GPU; the last section needs PyTorch
#
# **Question.** One layer in eight keeps every key and looks things up. How does a lookup become a formula, and
# how does a key say where it stands?
#
# **You will** soften a dictionary, write attention for one head, turn pairs of channels until only distances
# are left, share keys among heads, and find out in trained models which of these mistakes anybody would notice.

# %%
import inspect

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from minimax_numpy import MiniMaxForCausalLM, ops
from minimax_numpy.check import exercise
from recall.task import HERE, draw

# %config InlineBackend.figure_formats = ["svg"]
ORANGE, BLUE, GREY = "#d2622a", "#3f8bd0", "#808a98"  # by day and by night
lines = [f"{part}.color" for part in ("text", "xtick", "ytick")]
lines += ["axes.edgecolor", "axes.labelcolor"]
plt.rcParams.update(dict.fromkeys(lines, GREY))
plt.rcParams.update(dict.fromkeys(["figure.facecolor", "axes.facecolor"], "none"))
plt.rcParams.update(dict.fromkeys(["axes.spines.top", "axes.spines.right"], False))
plt.rcParams["figure.figsize"] = 7, 3.4
fade = LinearSegmentedColormap.from_list("fade", [f"{ORANGE}00", ORANGE])


def yours_or(number, yours, ours):
    """Your function once its check says right; until then the library's."""
    right = exercise(number, yours).ok
    until = f"the library's, until yours of {number} is right."
    print("At work:", "your own." if right else until)
    return yours if right else ours


# %% [markdown]
# ## 1 · A dictionary, softened
#
# A dictionary finds a key that *equals* the query, or nothing. Attention asks how well each key *matches*,
# makes weights of the matches that sum to 1, and returns the average of the values:
#
# $$o = \sum_j w_j v_j, \qquad w_j = \frac{e^{x_j}}{\sum_i e^{x_i}}, \qquad x_j = q \cdot k_j$$
#
# The exponential makes any score a positive weight, and turns *better by a little* into *more by a factor*.

# %% [markdown]
# {{ exercise 1.1 }}

# %% [markdown]
# ## 2 · Draw it
#
# Twelve keys stand in a circle, the query points up and a little to the right. A dot is as large as its key’s
# weight. From left to right the scores are multiplied by 1, 4 and 16.

# %%
angle = 2 * np.pi * np.arange(12) / 12
keys = np.stack([np.sin(angle), np.cos(angle)], axis=1)  # (J, d)
query = np.array([np.sin(0.4), np.cos(0.4)])

fig, axes = plt.subplots(1, 3, figsize=(7, 2.6))
for ax, factor in zip(axes, (1, 4, 16)):
    weights = ops.softmax(factor * keys @ query)
    ax.scatter(*keys.T, s=700 * weights, color=ORANGE, lw=0)
    ax.scatter(*keys.T, s=4, color=GREY)
    arrow = dict(arrowstyle="->", color=GREY)
    ax.annotate("", 0.75 * query, (0, 0), arrowprops=arrow)
    ax.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    ax.set_title(f"scores × {factor}", fontsize=10)
    ax.axis("off")
plt.show()

# %% [markdown]
# **Notice** that one formula goes from *the mean of everything* to *the best key alone*. How long q and k are
# decides where on that way a head stands, and training decides how long they are.
#
# ## 3 · Write the softmax
#
# Scores have no upper limit, and $e^{900}$ is more than a float64 can hold. Mind it.

# %% [markdown]
# {{ exercise 1.2 }}

# %%
weigh = yours_or("1.2", softmax, ops.softmax)

scores = np.array([900.0, 899.0, -np.inf])
with np.errstate(over="ignore", invalid="ignore"):
    print("by the formula:", np.exp(scores) / np.exp(scores).sum())
print("carefully:     ", weigh(scores).round(3))

# %% [markdown]
# ## 4 · Attention of one head
#
# Every token asks, and may look at itself and at what came before. Scores are divided by √d.

# %% [markdown]
# {{ exercise 1.3 }}

# %% [markdown]
# What does a head see? Give it the unit vectors for values, and what comes out are its weights. Here every
# letter is its own key and query, so a letter looks for itself.


# %%
def one_head(q, k, v):
    return ops.softmax_attention(*(x[None, None] for x in (q, k, v)))[0, 0]


attend = yours_or("1.3", attention, one_head)

word = "abracadabra"
unit = np.eye(len(word))
letters = 6 * np.array([[c == x for x in "abcdr"] for c in word])  # (T, 5)


def show(ax, weights, title):
    """Weights as cells, with the word along both sides."""
    places = np.arange(len(word)) + 0.5
    ax.pcolormesh(weights, cmap=fade, vmin=0, vmax=1, lw=0)
    ax.set(aspect="equal", ylim=(len(word), 0), xlabel="key", ylabel="query")
    ax.set_xticks(places, word)
    ax.set_yticks(places, word)
    ax.tick_params(length=0)
    ax.set_title(title, fontsize=10)


fig, ax = plt.subplots(figsize=(3.4, 3.4))
show(ax, attend(letters, letters, unit), "each letter looks for itself")
plt.show()

# %% [markdown]
# **Notice** the last row. The last *a* spreads evenly over all five: near and far are the same to it. Attention
# has no notion of order; it must be told, and section 5 tells it. First a question of size.

# %% [markdown]
# {{ exercise 1.4 }}

# %% [markdown]
# Why √d? A score is a sum of d products and grows as √d by itself. Without the division a wide head would be
# far to the right in the picture of section 2 before it has learned anything. Among 256 random keys, how many
# does a query really look at? (The exponential of its weights’ entropy.)

# %%
rng = np.random.default_rng(0)
print("   d   with 1/√d   without")
for d in (16, 64, 256, 1024):
    q, k = rng.standard_normal((64, d)), rng.standard_normal((256, d))
    row = f"{d:4}"
    for scores in (q @ k.T / np.sqrt(d), q @ k.T):
        w = weigh(scores)
        entropy = -(w * np.log(np.maximum(w, 1e-300))).sum(-1)
        row += f" {np.exp(entropy).mean():10.1f}"
    print(row)

# %% [markdown]
# ## 5 · Rotary: turn the pairs
#
# Take two channels of a query or key as a point in the plane, and turn it by an angle that grows with the
# position. Each pair turns at a speed of its own:
#
# $$\theta = t \cdot b^{-2i/R}, \qquad i < R/2$$
#
# Below are the pairs of R = 8 channels with b = 100, at positions 0 to 6; all begin pointing to the right.

# %%
R, base = 8, 100.0
pairs = np.concatenate([np.ones(R // 2), np.zeros(R // 2)])  # (R,): all at (1, 0)
seven = np.tile(pairs, (1, 1, 7, 1))  # (B, H, T, R)
turned = ops.apply_rotary(seven, np.arange(7)[None], R, base)[0, 0]

fig, axes = plt.subplots(1, 4, figsize=(7, 2))
for i, ax in enumerate(axes):
    for t in range(7):
        x, y = turned[t, i], turned[t, i + R // 2]
        ax.plot([0, x], [0, y], color=ORANGE, alpha=0.25 + 0.75 * t / 6)
        if i < 2 or t in (0, 6):  # there is room for it
            ax.text(1.3 * x, 1.3 * y, t, fontsize=7, ha="center", va="center")
    ax.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    ax.set_title(f"pair {i}: {base ** (-2 * i / R):.2g} a token", fontsize=9)
    ax.axis("off")
plt.show()

# %% [markdown]
# Like the hands of a clock: the fast ones tell near positions apart and repeat soon, the slow ones hardly move
# and tell far from near. In the real model R = 64 and b = 10,000,000, and the slowest hand takes 38 million
# tokens to go round.

# %% [markdown]
# {{ exercise 4.1 }}

# %% [markdown]
# Which two channels make a pair? Not neighbours: channel i goes with channel i + R/2. And only the first R of a
# head’s d channels turn, 64 of 128 in the real model. The others pass through and match at any distance.

# %% [markdown]
# {{ exercise 4.2 }}

# %% [markdown]
# Why turn at all, if both the query and the key are turned? Because a score is a product of lengths and the
# cosine of the angle *between* them. Turn both by the same angle and nothing changes. Turn them by their
# positions, and what is left is the difference:

# %%
turn = yours_or("4.2", rotary, ops.apply_rotary)
q, k = rng.standard_normal((2, 1, 1, 1, 128))


def score(t, j):
    """q at position t times k at position j."""
    at_t = turn(q, np.array([[t]]), 64, 1e7)
    at_j = turn(k, np.array([[j]]), 64, 1e7)
    return (at_t * at_j).sum()


for t, j in ((5, 3), (105, 103), (1_000_005, 1_000_003), (5, 4)):
    print(f"query at {t:9,}, key at {j:9,}: {score(t, j):.6f}")

# %% [markdown]
# Back to the word. Give each letter eight more channels, all alike, that turn. What matches is still the
# letter, but among equal letters the near one now wins.

# %%
always = np.ones((len(word), 8))
channels = np.concatenate([0.8 * always, letters], axis=1)  # (T, 13)
positions = np.arange(len(word))[None]
turned = turn(channels[None, None], positions, 8, 10.0)[0, 0]

fig, axes = plt.subplots(1, 2, figsize=(7, 3.4))
show(axes[0], attend(channels, channels, unit), "not turned")
show(axes[1], attend(turned, turned, unit), "turned by position")
plt.show()

# %% [markdown]
# And at full size: how much of a match is left at a distance, if query and key are alike? In the half of the
# channels that turns, it is the mean cosine of 32 pairs (here also of distances up to 15 % away, which smooths
# the curve); with a base of 10,000 for comparison.

# %%
distance = np.geomspace(1, 1e6, 121)
around = distance[:, None] * np.linspace(0.85, 1.15, 41)
fig, ax = plt.subplots()
for b, colour in ((1e7, ORANGE), (1e4, GREY)):
    angles = around[..., None] * ops.rotary_frequencies(64, b)
    ax.semilogx(distance, np.cos(angles).mean((1, 2)), color=colour)
ax.text(1e4, 0.5, "base 10,000,000", color=ORANGE)
ax.text(50, 0.3, "base 10,000", color=GREY, ha="right")
ax.axhline(1, color=BLUE)
ax.text(1e6, 1.03, "the 64 channels that pass through", color=BLUE, ha="right")
ax.set(xlabel="distance in tokens", ylabel="match that is left")
plt.show()

# %% [markdown]
# **Notice** the difference from a decay. A far key is not faint: it has its full length, and points elsewhere.
# Of the half that turns less and less agrees; the half that passes through finds a word wherever it stands.
# With the larger base the hands are slower, and a thousand tokens away there is still something of *near*.
#
# ## 6 · Heads that share their keys
#
# The real model has 64 query heads and 8 key heads: eight queries read the same keys, and the cache holds an
# eighth. Query head h reads key head ⌊h / (H/G)⌋, so neighbours share. *Tiling* the key heads also gives every
# query one, the wrong one.

# %%
H, G = 8, 2
fig, axes = plt.subplots(1, 2, figsize=(7, 1.6))
readings = {
    "neighbours share: h // (H/G)": np.arange(H) // (H // G),
    "tiled, wrong: h % G": np.arange(H) % G,
}
for ax, (name, reads) in zip(axes, readings.items()):
    for h, g in enumerate(reads):
        colour = (ORANGE, BLUE)[g]
        ax.plot([h, 4 * g + 1.5], [1, 0], color=colour, lw=1)
        ax.scatter([h, 4 * g + 1.5], [1, 0], color=colour, s=30, zorder=2)
    ax.set(xlim=(-1.6, H), ylim=(-0.3, 1.3))
    ax.text(-1, 1, "q", va="center")
    ax.text(-1, 0, "k, v", va="center", ha="center")
    ax.set_title(name, fontsize=10)
    ax.axis("off")
plt.show()

# %% [markdown]
# {{ exercise 4.3 }}

# %% [markdown]
# With it, a text can be read in pieces: keep the keys, ask with the new queries only. Ten tokens at once, or
# nine and then one with nine kept keys:

# %%
attend_grouped = yours_or("4.3", grouped_attention, ops.softmax_attention)
q = rng.standard_normal((1, 8, 10, 16))
k, v = rng.standard_normal((2, 1, 2, 10, 16))
at_once = attend_grouped(q, k, v)
last = attend_grouped(q[:, :, 9:], k, v)  # one query, ten keys
print(f"the last token: {np.abs(last - at_once[:, :, 9:]).max():.0e} apart")

# %% [markdown]
# ## 7 · A window
#
# Some models let a query see only the last w keys, its own included; then only w must be kept. MiniMax-Text-01
# does not, but its configuration has a place for it, so both twins can. Position decides who is seen, not the
# slot where a key happens to lie: that makes windows, padding and caches one case ([exercise
# 7.3](../../reference/exercises/#e7-3)).

# %%
t = np.arange(10)[None]
fig, axes = plt.subplots(1, 3, figsize=(7, 2.4))
windows = {"all keys": None, "w = 4": 4, "w = 1": 1}
for ax, (name, w) in zip(axes, windows.items()):
    seen = ops.visible_keys(t, t, w)[0]
    ax.pcolormesh(seen, cmap=fade, vmin=0, vmax=1, edgecolors=GREY, lw=0.2)
    ax.set(aspect="equal", xticks=[], yticks=[], ylim=(10, 0))
    ax.spines[:].set_visible(False)
    ax.set_title(f"{name}: {seen.sum()} scores", fontsize=10)
plt.show()

# %% [markdown]
# ## 8 · Break it
#
# **In trained models.** Two of the models that were trained on recall: SSSS has four softmax layers, LLLS three
# lightning layers and one softmax layer. Both are asked about 32 pairs, first with your functions, then with
# mistakes.


# %%
def attends(q, k, v, visible=None):
    return attend_grouped(q, k, v)  # these calls are not padded


def scaled(factor):
    return lambda q, k, v, visible=None: attends(factor * q, k, v)


def turned_by(R=None, b=None, sign=1):
    """Your rotary with other settings than R = 8 of d = 16, b = 1e7."""
    return lambda x, t, r, base: turn(x, sign * t, R or r, b or base)


def later(x, t, r, base):
    return turn(x, t + 1, r, base)


MISTAKES = {
    "none": {},
    "√d is forgotten": dict(softmax_attention=scaled(4)),
    "d in place of √d": dict(softmax_attention=scaled(1 / 4)),
    "no rotary": dict(apply_rotary=lambda x, *_: x),
    "the whole head turns": dict(apply_rotary=turned_by(R=16)),
    "base 10,000": dict(apply_rotary=turned_by(b=1e4)),
    "turned the wrong way": dict(apply_rotary=turned_by(sign=-1)),
    "positions from 1": dict(apply_rotary=later),
}
load = MiniMaxForCausalLM.from_pretrained
models = {name: load(HERE / name) for name in ("SSSS", "LLLS")}
ids, answers = draw(np.random.default_rng(1), rows=32, pairs=32)
print("mistake               ", *models)
for name, wrong in MISTAKES.items():
    right = []
    for model in models.values():
        yours = dict(softmax_attention=attends, apply_rotary=turn)
        with ops.using(**yours | wrong):
            said = model(ids, logits_to_keep=32).logits.argmax(-1)
        right.append(f"{(said == answers).mean():4.0%}")
    print(f"{name:22}", *right)

# %% [markdown]
# Three things to see.
#
# - *Positions from 1* is harmless in any model: only distances matter. It shows in cached keys, and nowhere
#   else.
# - The softmax model cannot do without its rotary: in one of its layers a head [looks exactly one token
#   back](../../path/recall/). The hybrid can, for this task, for its lightning layers join a value to what came
#   before.
# - A model that forgot √d answers as well as ever, since the best key stays the best. Answers prove little;
#   numbers are compared.
#
# **Far out.** Angles are products of a position and a frequency. In float32 such a product has 24 bits, and at
# a large position most of them are spent on whole turns. The largest error of an angle, in radians:

# %%
wide = ops.rotary_frequencies(64, 1e7)
for t in (1_000, 32_768, 1_048_575):
    narrow = np.float32(t) * wide.astype(np.float32)
    print(f"position {t:9,}: {np.abs(narrow - t * wide).max():.0e}")

# %% [markdown]
# At the end of a million tokens the error is about a degree, and it differs from key to key. The library forms
# angles in float64.
#
# ## 9 · The real one, and its twin
#
# Keys are cached after they are turned. The reference computes 64 queries at a time, so that the scores never
# fill memory.

# %%
print(inspect.getsource(ops.apply_rotary).split('"""')[-1])
print(inspect.getsource(ops.softmax_attention).split('"""')[-1])

# %%
import minimax_torch.ops
import torch

q = rng.standard_normal((1, 8, 50, 16))
k, v = rng.standard_normal((2, 1, 2, 50, 16))
t = np.arange(50)[None]
mine = attend_grouped(turn(q, t, 8, 1e7), turn(k, t, 8, 1e7), v)

q, k, v, t = (torch.from_numpy(x) for x in (q, k, v, t))
twin = minimax_torch.ops
turned = (twin.apply_rotary(x, t, 8, 1e7) for x in (q, k))
twins = twin.softmax_attention(*turned, v)
print(f"{list(mine.shape)}, {np.abs(mine - twins.numpy()).max():.0e} apart")

# %% [markdown]
# ## In three lines
#
# - Softmax attention averages values by how well keys match; it keeps every key, and by itself knows no order.
# - Rotary turns pairs by position, so that a score knows the distance; half of the channels do not turn.
# - Key heads are shared by neighbours; a window bounds who is seen.
#
# **Next:** [experts](../05_experts/), where a token is sent after it has looked around.
