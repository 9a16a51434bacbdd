# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2 · The memory matrix
#
# 15 min, 40 more for the exercises · after [the sum becomes a memory](../../path/memory/) · any laptop, no GPU;
# the last section needs PyTorch
#
# **Question.** A lightning layer keeps one matrix a head, however long the text. How does a matrix hold a
# sequence, and what does it lose?
#
# **You will** write three tokens into a matrix by hand and read them back, see why they disturb each other and
# how they fade, write the loop that does it, and put your loop into a trained model that answers questions.

# %%
import inspect
import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from minimax_numpy import Cache, MiniMaxForCausalLM, ops
from minimax_numpy.check import exercise
from recall.task import HERE, KEYS, draw

# %config InlineBackend.figure_formats = ["svg"]
ORANGE, BLUE, GREY = "#d2622a", "#3f8bd0", "#808a98"  # by day and by night
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
# A token has a key k, a value v, and later a query q comes along. To *write* it, make the matrix of all
# products of a key channel and a value channel: $S = k v^\top$. To *read*, multiply by the query:
# $o = S^\top q$.

# %%
k = np.array([1.0, 0.0])
v = np.array([3.0, 1.0, 2.0])
S = np.outer(k, v)  # (d, e)
print(S, "\n")
for q in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5]):
    print(f"q = {q} reads {q @ S}")

# %% [markdown]
# What comes back is the value, times q · k: all of it where the query is the key, nothing where it is at right
# angles, half where it points half-way. A lookup, without a list to look through.
#
# ## 2 · Three tokens in one matrix
#
# To write another token, add its matrix. The second key is at right angles to the first, so both come back
# exactly. In two dimensions there is no room for a third: it lies between them, disturbs both, and reads a
# little of everything.

# %%
keys = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
values = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [4.0, 0.0, 0.0]])

S = np.zeros((2, 3))
for n, (k, v) in enumerate(zip(keys, values), start=1):
    S = S + np.outer(k, v)
    print(f"{n} written; read back:", *(f"{key @ S}" for key in keys[:n]))
print("   was written:   ", *values)

# %% [markdown]
# That is the whole idea, and its price. How many keys fit comes in section 7.
#
# ## 3 · Draw it
#
# One thing is missing: time. At each token, everything that is already there is multiplied by $e^{-s}$. Here
# are four tokens, d = e = 4, half a memory lost at each token: what each has left in the matrix, and their sum.

# %%
rng = np.random.default_rng(4)
levels = [-1.5, -1.0, -0.5, 0.5, 1.0, 1.5]
K, V = rng.choice(levels, size=(2, 4, 4))  # (T, d), (T, e)
s = math.log(2)
left = np.exp(-s * np.array([3, 2, 1, 0]))  # 1/8, 1/4, 1/2, 1

signed = [(0, BLUE), (0.5, f"{BLUE}00"), (0.5, f"{ORANGE}00"), (1, ORANGE)]
signed = LinearSegmentedColormap.from_list("signed", signed)


def show(ax, matrix, title):
    """A matrix as coloured cells: orange above 0, blue below."""
    colours = dict(cmap=signed, vmin=-2, vmax=2)
    ax.pcolormesh(matrix, **colours, edgecolors=GREY, lw=0.3)
    ax.set(aspect="equal", xticks=[], yticks=[], ylim=(len(matrix), 0))
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize=10)


fig, axes = plt.subplots(1, 5, figsize=(7, 1.9))
for j, ax in enumerate(axes[:4]):
    share = f"1/{1 / left[j]:.0f} · " if j < 3 else ""
    show(ax, left[j] * np.outer(K[j], V[j]), f"{share}$k_{j} v_{j}^\\top$")
    sign = "+" if j < 3 else "="
    ax.text(4.5, 2, sign, ha="center", va="center", fontsize=13)
S = sum(left[j] * np.outer(K[j], V[j]) for j in range(4))
show(axes[4], S, "S")
plt.show()

# %% [markdown]
# **Notice** that each of the four is striped: all its rows are one row, scaled. Their sum is not. From the sum
# nobody can say which token wrote what; only a key can ask.
#
# ## 4 · Decay, write, read
#
# In a running text the sum is never formed anew. One line keeps it up to date, a second one reads:
#
# $$S_t = e^{-s} S_{t-1} + k_t v_t^\top, \qquad o_t = S_t^\top q_t$$
#
# First decay what is there, then write the new token whole, then read: a token sees itself. Try it on paper.

# %% [markdown]
# {{ exercise 2.1 }}

# %% [markdown]
# ## 5 · The loop and the sum are the same
#
# Put the first line into itself, and again. A token that was written at j has been multiplied by $e^{-s}$ once
# for every later token:
#
# $$S_{T-1} = \sum_{j=0}^{T-1} e^{-s(T-1-j)}\, k_j v_j^\top$$
#
# That is the picture of section 3. No loop is needed to form it.

# %% [markdown]
# {{ exercise 2.2 }}


# %%
def by_the_library(k, v, s):
    one = (x[None, None] for x in (k, k, v))  # any q will do
    return ops.lightning_attention_direct(*one, np.array([s]))[1][0, 0]


remember = yours_or("2.2", memory, by_the_library)

S = np.zeros((4, 4))
for t in range(4):
    S = np.exp(-s) * S + np.outer(K[t], V[t])  # decay, write
    assert np.allclose(S, remember(K[: t + 1], V[: t + 1], s))

fig, axes = plt.subplots(1, 4, figsize=(7, 2.1))
for t, ax in enumerate(axes):
    show(ax, remember(K[: t + 1], V[: t + 1], s), f"after token {t}")
plt.show()

# %% [markdown]
# The matrix is all that is left of the past, and it has the same size after four tokens as after a million.
#
# ## 6 · Write it
#
# Now for whole batches, all heads at once. Each head has its own rate, and a call may start from the state that
# an earlier one returned.

# %% [markdown]
# {{ exercise 2.3 }}

# %% [markdown]
# Is it good for anything? `recall/LLLS` is a trained model of this build: three lightning layers, then a
# softmax layer, four heads each. It was trained to remember pairs. Layers reach every op through one door, and
# `ops.using` puts your loop behind it. Below, eight pairs are told at once; then the model is asked key by key,
# with nothing but its cache to answer from. Keys are letters here and values digits, so that it speaks in text.

# %%
one_by_one = yours_or("2.3", recurrent, ops.lightning_attention_recurrent)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
model = MiniMaxForCausalLM.from_pretrained(HERE / "LLLS")


def in_place(function):
    """A function of the exercise's form, called as the model calls the op."""

    def op(q, k, v, slopes, state=None, **_):
        empty = np.zeros((*q.shape[:2], q.shape[3], v.shape[3]), q.dtype)
        state = empty if state is None else state
        return function(q, k, v, slopes, state)

    return op


def text(ids):
    """Ids as characters: a letter for a key, a hex digit for a value."""
    letter_or_digit = (LETTERS[i] if i < KEYS else f"={i - KEYS:x} " for i in ids)
    return "".join(letter_or_digit)


ids, answers = draw(np.random.default_rng(2), rows=1, pairs=8, keys=26)
with ops.using(lightning_attention_chunked=in_place(one_by_one)):
    cache = Cache(model.config, batch_size=1)
    model(ids[:, :16], cache=cache)
    print("told: ", text(ids[0, :16]))
    said = []
    for key in ids[:, 16:].T:
        logits = model(key[None], cache=cache).logits  # one token at a time
        said.append(logits[0, -1].argmax())
told = text(np.stack([ids[0, 16:], said], axis=1).ravel())
print("says: ", told)
print("right:", f"{(said == answers).sum()} of 8")

# %% [markdown]
# ## 7 · Break it
#
# **The order of the steps.** Here are four loops, each with one typical mistake, in the same model. It is asked
# about 32 pairs at a time, and each loop is also handed to the check.


# %%
def loop(step):
    """The loop of 2.3 with another step: (S, write, keep) → (S, what is read)."""

    def run(q, k, v, slopes, state):
        keep = np.exp(-slopes).astype(q.dtype)[:, None, None]
        S, out = state, np.empty(v.shape, q.dtype)
        for t in range(q.shape[2]):
            write = k[:, :, t, :, None] * v[:, :, t, None, :]
            S, seen = step(S, write, keep)
            out[:, :, t] = np.einsum("bhd,bhde->bhe", q[:, :, t], seen)
        return out, S

    return run


STEPS = {
    "decay, write, read": lambda S, w, keep: (keep * S + w, keep * S + w),
    "write, decay, read": lambda S, w, keep: (keep * (S + w), keep * (S + w)),
    "decay, read, write": lambda S, w, keep: (keep * S + w, keep * S),
    "read, decay, write": lambda S, w, keep: (keep * S + w, S),
    "write, read": lambda S, w, keep: (S + w, S + w),
}
ids, answers = draw(np.random.default_rng(1), rows=32, pairs=32)
for name, step in STEPS.items():
    with ops.using(lightning_attention_chunked=in_place(loop(step))):
        said = model(ids, logits_to_keep=32).logits.argmax(-1)
    verdict = exercise("2.3", loop(step))
    told = "right" if verdict.ok else f"“{verdict.mistake}”"
    print(f"{name:18} {(said == answers).mean():4.0%} right; check: {told}")

# %% [markdown]
# Read that twice. A model with a wrong loop can still be right nearly always: most of what it does survives,
# and a demonstration shows nothing amiss. The check compares numbers, and is not impressed by answers. Only the
# loop that forgets nothing at all gives itself away.
#
# **Too many keys.** Fill a matrix of 64 × 64 with 512 tokens with random keys, read each by its own key, and
# compare what comes back with its value: 1 is the value itself, up to its length, 0 something unrelated.


# %%
def recovered(half_life, d=64, T=512, rounds=12):
    """Cosine between what a key reads and what it wrote, by age in tokens."""
    rng = np.random.default_rng(0)
    left = 0.5 ** (np.arange(T)[::-1] / half_life)  # of each token
    cosines = np.zeros(T)
    for _ in range(rounds):
        k, v = rng.standard_normal((2, T, d))
        k /= np.linalg.norm(k, axis=1, keepdims=True)
        read = k @ ((left[:, None] * k).T @ v)
        lengths = np.linalg.norm(read, axis=1) * np.linalg.norm(v, axis=1)
        cosines += (read * v).sum(1) / lengths / rounds
    return cosines[::-1]


fig, ax = plt.subplots()
for half_life, strength in ((8, 1.0), (64, 0.65), (np.inf, 0.4)):
    cosines = recovered(half_life)
    smooth = np.convolve(cosines, np.ones(9) / 9, mode="valid")
    ax.plot(np.arange(4, 508), smooth, color=ORANGE, alpha=strength)
    name = "never fades" if half_life == np.inf else f"half-life {half_life}"
    at = {8: 10, 64: 75, np.inf: 420}[half_life]
    ax.text(at + 5, smooth[at] + 0.03, name)
ax.set(xlabel="tokens since it was written", ylabel="cosine with the value")
ax.set_ylim(-0.1, 1)
ax.set_title("A few clearly, or many dimly")
plt.show()

# %% [markdown]
# **Notice** that the memory that never fades is no better for it: everything is there, and everything is in the
# way. A fast head hears its last tokens clearly. What is the right rate? The model does not decide: it has
# heads of all rates, and uses them side by side. [How much a state can hold](../../concepts/capacity/) has the
# arithmetic.
#
# ## 8 · One number a head
#
# The rate s is not learned. It follows from the head and the layer: heads make a geometric row, and layers
# shrink it, down to almost nothing in the last.

# %% [markdown]
# {{ exercise 2.4 }}

# %% [markdown]
# Here is what five of the 64 heads of layer 0 of MiniMax-Text-01 still have of each word when they come to the
# last one, if a word is a token. Whoever is to say what was grey must go back to the cat.

# %%
rates_of = yours_or("2.4", slopes, ops.decay_slopes)
rates = rates_of(64, 0, 80)
sentence = "the cat that the dog that lived next door chased up the tree was grey"
words = sentence.split()

fig = plt.figure(figsize=(7, 1.9))
ax = fig.add_axes((0, 0, 1, 1), xlim=(-9, 78), ylim=(-4.7, 1.5))
ax.axis("off")
monospaced = dict(family="monospace", fontsize=9, color=ORANGE)
for row, head in enumerate((0, 7, 15, 31, 63)):
    left = np.exp(-rates[head] * np.arange(len(words))[::-1])
    column = 0
    for word, x in zip(words, left):
        ax.text(column, -row, word, alpha=max(x, 0.05), **monospaced)
        column += len(word) + 1
    ax.text(-1, -row, f"head {head}", ha="right")
    ax.text(column + 4, -row, f"{left[1]:.0%}", ha="right")
ax.text(column + 4, 0.9, "of “cat”", ha="right")
plt.show()

# %% [markdown]
# {{ exercise 2.5 }}

# %% [markdown]
# ## 9 · The real one, and its twin
#
# The reference is the same loop with a mask: a padded position neither writes nor decays.

# %%
print(inspect.getsource(ops.lightning_attention_recurrent).split('"""')[-1])

# %% [markdown]
# The twin has the same name and the same arguments, in PyTorch. Same numbers in, same numbers out, up to the
# last digit of a float64:

# %%
import minimax_torch.ops
import torch

q, k, v = np.random.default_rng(0).standard_normal((3, 2, 4, 100, 16))
rates = ops.decay_slopes(4, 1, 8)
state = np.zeros((2, 4, 16, 16))
mine, my_state = one_by_one(q, k, v, rates, state)
given = (torch.from_numpy(x) for x in (q, k, v, rates))
twins, twins_state = minimax_torch.ops.lightning_attention_recurrent(*given)
for name, a, b in (("out", mine, twins), ("state", my_state, twins_state)):
    print(f"{name:5} {list(a.shape)}, {np.abs(a - b.numpy()).max():.0e} apart")

# %% [markdown]
# ## In three lines
#
# - A memory is a sum of outer products: write by adding $k v^\top$, read by multiplying with q.
# - Decay, write, read: what was there fades, the token itself is whole.
# - Keys that are not at right angles disturb each other; forgetting makes room, and each head does it at its
#   own rate.
#
# **Next:** the loop takes one step a token. [From one step to one chunk](../03_chunks/) takes 256 at once and
# changes nothing.
