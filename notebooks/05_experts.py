# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5 · Experts
#
# 15 min, 35 more for the exercises · after [experts: two of thirty-two](../../path/experts/) · any laptop, no
# GPU; the last section needs PyTorch
#
# **Question.** MiniMax-Text-01 has 456 billion parameters and uses 46 of them on a token. Who chooses, and what
# does a choice do that a product cannot?
#
# **You will** route tokens by hand and in a picture, write the router and the mixture, see what a near tie does
# to two computers that round differently, and what keeps the load even.

# %%
import inspect

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from minimax_numpy import MiniMaxConfig, MiniMaxForCausalLM, ops
from minimax_numpy.check import exercise
from minimax_numpy.counts import count
from minimax_numpy.trace import Trace, recording

# %config InlineBackend.figure_formats = ["svg"]
ORANGE, BLUE, GREY = "#d2622a", "#3f8bd0", "#808a98"  # by day and by night
GREEN, VIOLET = "#4c9f70", "#a06cc8"
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


# %% [markdown]
# ## 1 · One token, by hand
#
# A router gives a token a score for each expert. A softmax makes probabilities of them, the best K are taken,
# and their probabilities are scaled to sum to 1. With four experts, two of them taken, and odds of 1 : 4 : 1 :
# 2:

# %%
logits = np.log([1.0, 4.0, 1.0, 2.0])
p = ops.softmax(logits)
best = np.argsort(-logits)[:2]
print("probabilities", p)
print("taken        ", best, "with", p[best])
print("scaled       ", p[best] / p[best].sum())

# %% [markdown]
# The token goes to experts 1 and 3. What comes back is ⅔ of what the one says and ⅓ of what the other says.
# Experts 0 and 2 are not asked, so they cost nothing: that is the point of it.
#
# ## 2 · Draw it
#
# Let a token be a point in the plane. A router is a matrix with a row for each expert, and a score is the
# product of a token with a row: how far the token lies in that expert’s direction. Four experts, 600 tokens,
# coloured by their first choice and by their second.

# %%
rng = np.random.default_rng(0)
colours = np.array([ORANGE, BLUE, VIOLET, GREEN])
directions = [[1.0, 0.4], [-0.3, 1.0], [-1.0, -0.2], [0.2, -1.0]]
directions = np.array(directions)  # (E, D)
tokens = rng.standard_normal((600, 2))

weights, indices = ops.route(tokens @ directions.T, top_k=2)

fig, axes = plt.subplots(1, 2, figsize=(7, 3.6))
titles = "first choice", "second choice"
for ax, choice, title in zip(axes, indices.T, titles):
    ax.scatter(*tokens.T, s=12, color=colours[choice], lw=0)
    for e, (x, y) in enumerate(directions):
        ax.plot([0, 2.4 * x], [0, 2.4 * y], color=GREY, lw=0.8)
        place = dict(ha="center", va="center", weight="bold")
        ax.text(2.9 * x, 2.9 * y, e, color=colours[e], **place)
    ax.set(xlim=(-3.4, 3.4), ylim=(-3.4, 3.4), aspect="equal")
    ax.set_title(title, fontsize=10)
    ax.axis("off")
plt.show()

# %% [markdown]
# **Notice** the borders. On either side of one, two tokens that hardly differ go to other experts. Second place
# has borders of its own, where first place has none. A product of matrices never has a border; a choice has.

# %% [markdown]
# {{ exercise 6.1 }}

# %% [markdown]
# With your router: how do the two weights of a token change on a walk around the circle, a little way out from
# the middle?

# %%
choose = yours_or("6.1", route, ops.route)

angle = np.linspace(0, 2 * np.pi, 721)
walk = np.stack([np.cos(angle), np.sin(angle)], axis=1)
weights, indices = choose(walk @ directions.T, 2)

fig, ax = plt.subplots(figsize=(7, 2.6))
given = np.zeros((len(walk), 4))
np.put_along_axis(given, indices, weights, axis=1)
for e in range(4):
    taken = np.where(given[:, e] > 0, given[:, e], np.nan)
    ax.plot(np.degrees(angle), taken, color=colours[e], label=f"expert {e}")
ax.axhline(0.5, color=GREY, lw=0.8, ls=":")
ax.set(xlabel="degrees", ylabel="weight", ylim=(0, 1))
ax.set_xticks(range(0, 361, 45))
ax.legend(frameon=False, ncols=4, fontsize=8, loc="upper center")
plt.show()

# %% [markdown]
# **Notice** two kinds of border. Where the lines cross at ½, first and second place are exchanged, and nothing
# happens to the sum. Where a line breaks off and another begins, second place goes to somebody else, and the
# output jumps.
#
# ## 3 · The experts
#
# An expert is a small network: two matrices make F channels each, one of them passes through a silu and opens
# or shuts the other, a third leads back.
#
# $$\mathrm{expert}(x) = W_2\,\bigl(\mathrm{silu}(W_1 x) \odot W_3 x\bigr)$$

# %% [markdown]
# {{ exercise 6.3 }}

# %% [markdown]
# So the size of the model, and what of it is at work on one token:

# %%
counts = count(MiniMaxConfig.text_01())
print(f"in all      {counts.total:16,}")
print(f"on a token  {counts.activated:16,}, embedding and head not counted")

# %% [markdown]
# Now send tokens through their experts and add up what these say, weighed.

# %% [markdown]
# {{ exercise 6.2 }}

# %% [markdown]
# ## 4 · Sorted by expert is the same
#
# The definition takes token after token. Each time it fetches three matrices and multiplies them by one vector.
# Nobody computes it so: fetch an expert *once*, and send it all of its tokens together. Here is that, step by
# step, for six tokens, beside your definition.


# %%
def ours(x, weights, indices, w1, w3, w2):
    gate_up = np.concatenate([w1, w3], axis=1)  # as the library keeps them
    return ops.mix_experts(x, weights, indices, gate_up, w2)


mix = yours_or("6.2", mix_experts, ours)

E, K, D, F = 4, 2, 8, 16
w1, w3 = rng.standard_normal((2, E, F, D)) / np.sqrt(D)
w2 = rng.standard_normal((E, D, F)) / np.sqrt(F)
router = rng.standard_normal((E, D))
x = rng.standard_normal((6, D))
weights, indices = choose(x @ router.T, K)

y = np.zeros(x.shape)
for e in range(E):
    token, choice = np.nonzero(indices == e)
    print(f"expert {e}: tokens {token}")
    inside = ops.silu(x[token] @ w1[e].T) * (x[token] @ w3[e].T)  # (n, F)
    y[token] += weights[token, choice, None] * (inside @ w2[e].T)

definition = mix(x, weights, indices, w1, w3, w2)
apart = np.abs(y - definition).max()
print(f"\nsorted by expert or token by token: {apart:.0e} apart")

# %% [markdown]
# The matrices of an expert are fetched once for all of its tokens: at most E fetches in place of K · T.
#
# The order of the experts carries no meaning. Rename them, in the router and in the matrices alike, and nothing
# changes but the order of a sum:

# %%
new = rng.permutation(E)
renamed, places = choose(x @ router[new].T, K)
again = mix(x, renamed, places, w1[new], w3[new], w2[new])
print(f"renamed: {np.abs(again - definition).max():.0e} apart")

# %% [markdown]
# ## 5 · Break it
#
# **A near tie.** Two computers round differently, so their scores differ in the last digit. Where two experts
# are almost level for second place, that digit decides. Take a token on such a border and move it by less and
# less:

# %%
D, E = 64, 32
w1, w3 = rng.standard_normal((2, E, F, D)) / np.sqrt(D)
w2 = rng.standard_normal((E, D, F)) / np.sqrt(F)
router = rng.standard_normal((E, D)) / np.sqrt(D)


def moe(x):
    weights, indices = choose(x @ router.T, 2)
    return mix(x, weights, indices, w1, w3, w2), indices


x = rng.standard_normal((1, D))
order = np.argsort(-(x @ router.T)[0])
second, third = router[order[1]], router[order[2]]
across = third - second
x -= (x @ across) * across / (across @ across)  # second and third are level

for step in (1e-2, 1e-4, 1e-6, 1e-8):
    here, one = moe(x - step * across)
    there, other = moe(x + step * across)
    jump = np.linalg.norm(here - there) / np.linalg.norm(here)
    chosen = f"experts {one[0]} or {other[0]}"
    print(f"moved by {step:.0e}: {chosen}, {jump:.0%} apart")

# %% [markdown]
# However small the step, the jump stays. So a different output need not be a wrong output, and whoever compares
# two implementations must first ask whether rounding alone could have changed the choice. The
# [cross-check](../../reference/check/) counts such tokens as undecided and leaves them out.
#
# How often does it matter? Here is the distance between second and third place, for 20,000 random tokens, and
# what a rounding to float32 and to bfloat16 can move.

# %%
x = rng.standard_normal((20_000, D))
scores = x @ router.T
ranked = -np.sort(-scores, axis=1)
gap = np.sort(ranked[:, 1] - ranked[:, 2])
share = np.arange(1, len(gap) + 1) / len(gap)
size = np.abs(scores).max(1).mean()
rounding = {"float32": 2**-24 * size, "bfloat16": 2**-8 * size}

fig, ax = plt.subplots()
ax.loglog(gap, share, color=ORANGE)
for name, moved in rounding.items():
    ax.axvline(moved, color=GREY, lw=0.8, ls=":")
    told = f"rounding to {name}"
    ax.text(1.2 * moved, 2e-4, told, rotation=90, fontsize=8)
ax.set(xlabel="second place ahead of third by", ylabel="share of tokens")
ax.set_xlim(1e-8, 5)
plt.show()
per_unit = (gap < 0.01).mean() / 0.01  # the line is straight below
for name, moved in rounding.items():
    once_in = float(f"{1 / (per_unit * moved):.1g}")
    print(f"nearer than {name} can tell: one token in about {once_in:,.0f}")

# %% [markdown]
# In one layer, and a token passes through 80. The released checkpoint keeps the router’s weights in float32
# where nearly all others are bfloat16, and both twins multiply them in float32 at least.
#
# **An exact tie** must be decided, too, and both twins decide alike: the lower index first. It is not an idle
# case: a token of zeros, or two experts with the same row.

# %%
weights, indices = choose(np.zeros((1, 32)), 2)
print("all scores equal: experts", indices[0], "with", weights[0])

# %% [markdown]
# **Weights that do not sum to 1.** If the chosen probabilities are not scaled, all that changes is the length
# of the output. How much, depends on how sure the router is:

# %%
p = ops.softmax(scores)
kept = -np.sort(-p, axis=1)[:, :2].sum(1)
least, most = kept.min(), kept.max()
print(f"the two best of 32 hold {least:.0%} to {most:.0%} of the probability")

# %% [markdown]
# ## 6 · An even load
#
# Nothing in the formulas keeps one expert from getting every token. In training a loss pushes against it:
#
# $$\mathrm{aux} = E \sum_e f_e P_e$$
#
# $f_e$ is the number of assignments to e per token, $P_e$ its mean probability. What is the value where all is
# even?

# %% [markdown]
# {{ exercise 6.4 }}

# %% [markdown]
# And where it is not? Push all scores towards expert 0, by more and more:

# %%
pushes = np.linspace(0, 8, 17)
losses, taken = [], []
for push in pushes:
    pushed = scores[:4000] + push * np.eye(E)[0]
    losses.append(ops.load_balancing_loss([pushed[None]], 2))
    _, indices = choose(pushed, 2)
    taken.append((indices == 0).any(1).mean())

fig, ax = plt.subplots()
ax.plot(pushes, losses, color=ORANGE)
ax.axhline(2, color=GREY, lw=0.8, ls=":")
ax.text(8, 0.4, "even", fontsize=8, ha="right")
ax.set(xlabel="push towards expert 0", ylim=(0, 34))
ax.set_ylabel("balance loss", color=ORANGE)
right = ax.twinx()
right.plot(pushes, 100 * np.array(taken), color=BLUE)
right.set_ylabel("tokens that go there, %", color=BLUE)
right.set_ylim(0, 105)
plt.show()

# %% [markdown]
# Its gradient flows through P alone, for f is a count. The paper trained with such a loss and with a limit to
# what one expert takes, dropping the rest; the released model drops no token when it runs, and neither do the
# twins.
#
# And in a whole model? The tiny one has random weights and six experts in each of eight layers. Your router is
# behind the door, and this is how often it took each expert for the tokens of one sentence.

# %%
model = MiniMaxForCausalLM(MiniMaxConfig.tiny(), seed=0, dtype=np.float64)
text = b"A router that was never trained has its favourites nevertheless."
ids = np.frombuffer(text, np.uint8).astype(int)[None]
parts = Trace()
with ops.using(route=choose), recording(parts):
    model(ids)
gates = [f"model.layers.{layer}.mlp.gate" for layer in range(8)]
load = np.zeros((8, 6), int)  # layers, experts
for row, gate in zip(load, gates):
    np.add.at(row, parts[f"{gate}.indices"].ravel(), 1)

fade = LinearSegmentedColormap.from_list("fade", [f"{ORANGE}00", ORANGE])
fig, ax = plt.subplots(figsize=(5, 3.4))
ax.pcolormesh(load, cmap=fade, vmin=0, vmax=100)
for (layer, e), n in np.ndenumerate(load):
    ax.text(e + 0.5, layer + 0.5, n, ha="center", va="center", fontsize=8)
ax.set(xlabel="expert", ylabel="layer", aspect="equal", ylim=(8, 0))
ax.set_xticks(np.arange(6) + 0.5, range(6))
ax.set_yticks(np.arange(8) + 0.5, range(8))
ax.tick_params(length=0)
plt.show()

gate_logits = [parts[gate] for gate in gates]
each = [ops.load_balancing_loss([x], 2) for x in gate_logits]
print("balance loss of a layer:", *(f"{x:.2f}" for x in each))
pooled = ops.load_balancing_loss(gate_logits, 2)
print(f"of all layers pooled:    {pooled:.2f}")

# %% [markdown]
# An even load would be the same number everywhere. **Notice** the last line: the loss counts the tokens of all
# layers together before it multiplies, and expert 0 of one layer with expert 0 of the next, so favourites that
# differ from layer to layer cancel. So it is defined, in transformers as here; the mean of the layers’ losses
# is another number.
#
# ## 7 · The real one, and its twin

# %%
print(inspect.getsource(ops.route).split('"""')[-1])
print(inspect.getsource(ops.mix_experts).split('"""')[-1])

# %%
import minimax_torch.ops
import torch

x = rng.standard_normal((50, D))
weights, indices = choose(x @ router.T, 2)
mine = mix(x, weights, indices, w1, w3, w2)

twin = minimax_torch.ops
x, logits = torch.from_numpy(x), torch.from_numpy(x @ router.T)
gate_up, down = (torch.from_numpy(w) for w in (np.concatenate([w1, w3], 1), w2))
chosen = twin.route(logits, 2)
twins = twin.mix_experts(x, *chosen, gate_up, down)
print("same choice:", bool((chosen[1].numpy() == indices).all()))
print(f"{list(mine.shape)}, {np.abs(mine - twins.numpy()).max():.0e} apart")

# %% [markdown]
# ## In three lines
#
# - A router scores all experts, two are asked, and their answers are averaged with weights that sum to 1.
# - Computed expert by expert, it is the same sum with each matrix read once.
# - A choice has borders: near one, a last digit can change the output by much, so compare choices before
#   outputs.
#
# **Next:** [a whole layer](../06_layer/), where attention and experts meet in the stream.
