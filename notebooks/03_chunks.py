# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 · From one step to one chunk
#
# 20 min, 55 more for the exercises · after [chunks: 256 steps at once](../../path/chunks/) and [the memory
# matrix](../02_memory/) · any laptop, no GPU; the last section needs PyTorch
#
# **Question.** The recurrence is exact, but it takes a step for every token. Can we take 256 tokens at a time
# and change nothing?
#
# **You will** cut a sum in two, derive three decay tables with an assertion at each step, write the dozen lines
# that GPUs run, and break them in three ways.

# %%
import inspect
import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from minimax_numpy import ops
from minimax_numpy.check import exercise

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
# ## 1 · Four tokens in two chunks, by hand
#
# One head, d = e = 1, every q and k is 1, and half is forgotten at each token. The values are 8, 4, 2, 16. Step
# by step the memory goes 8, then 8/2 + 4 = 8, then 8/2 + 2 = 6, then 6/2 + 16 = 19, and what is read is the
# memory.
#
# Now two at a time. The second chunk starts from the memory that the first one left, and asks for nothing else
# of the past:

# %%
v = [8.0, 4.0, 2.0, 16.0]

first = [v[0], v[0] / 2 + v[1]]
S = v[0] / 2 + v[1]  # what the first chunk leaves
second = [
    S / 2 + v[2],  # one step after the memory
    S / 4 + v[2] / 2 + v[3],  # two steps after it
]
print("in two chunks:", first + second)

one = np.ones((1, 1, 4, 1))
values = np.array(v).reshape(1, 1, 4, 1)
half = np.array([math.log(2)])
out, _ = ops.lightning_attention_recurrent(one, one, values, half)
print("step by step: ", out.ravel().tolist())

# %% [markdown]
# Both lines of the second chunk have two parts: *what came before the chunk*, through S, and *what is inside
# it*, token by token. The two lines do not need each other, so they can be computed at the same time.
#
# ## 2 · Draw it
#
# The definition weighs every pair of tokens by their distance:
#
# $$o_t = \sum_{j \le t} e^{-s(t-j)}\,(q_t \cdot k_j)\; v_j$$
#
# A row below is a query t, a column a key j, a cell is as strong as $e^{-s(t-j)}$. On the left is the
# definition, on the right the same cells in chunks of four.


# %%
def fading(colour):
    """From nothing to a colour."""
    ends = [f"{colour}00", colour]
    return LinearSegmentedColormap.from_list("fading", ends)


def grid(ax, weights, colour):
    """Weights between 0 and 1 as cells of a colour, the first row on top."""
    ax.pcolormesh(weights, cmap=fading(colour), vmin=0, vmax=1, lw=0)
    ax.set(aspect="equal", xticks=[], yticks=[], ylim=(len(weights), 0))
    ax.spines[:].set_visible(False)


T, C, s = 12, 4, 0.2
t = np.arange(T)
weights = np.exp(-s * (t[:, None] - t)) * np.tri(T)
inside = t[:, None] // C == t // C  # query and key are in the same chunk

fig, axes = plt.subplots(1, 2, figsize=(7, 3.3))
grid(axes[0], weights, GREY)
grid(axes[1], weights * inside, ORANGE)
grid(axes[1], weights * ~inside, BLUE)
for edge in range(0, T + 1, C):
    axes[1].plot([edge, edge], [edge, T], color=GREY, lw=0.8)
    axes[1].plot([0, edge], [edge, edge], color=GREY, lw=0.8)
axes[0].set(xlabel="key j", ylabel="query t", title="every pair")
axes[1].set(xlabel="key j", title="inside a chunk, and before it")
plt.show()

# %% [markdown]
# **Notice** how the blue area grows with the text while the orange triangles stay as they are. The blue part of
# a row is never computed cell by cell: all of it is in the state. So the work grows as T, not as T².
#
# ## 3 · Derive it
#
# Take a head with d = 3, e = 2, twelve tokens, and look at the second chunk, positions a = 4 to b = 7. Its
# tokens have local numbers r = 1 … m. First the definition, for later comparison:

# %%
rng = np.random.default_rng(0)
q, k = rng.standard_normal((2, T, 3))
v = rng.standard_normal((T, 2))


def pairs(t, keys):
    """The part of o_t that comes from these keys, by the definition."""
    return sum(np.exp(-s * (t - j)) * (q[t] @ k[j]) * v[j] for j in keys)


o = np.array([pairs(t, range(t + 1)) for t in range(T)])

a, m = 4, 4
chunk = range(a, a + m)
Q, K, V = q[a : a + m], k[a : a + m], v[a : a + m]
r = np.arange(1, m + 1)[:, None]  # (m, 1)

# %% [markdown]
# **Step 1: cut the sum at the chunk’s edge.** Nothing happens here yet.
#
# $$o_t = \sum_{j < a} \dots \;+\; \sum_{a \le j \le t} \dots$$

# %%
before = np.array([pairs(t, range(a)) for t in chunk])
within = np.array([pairs(t, range(a, t + 1)) for t in chunk])
assert np.allclose(before + within, o[a : a + m])

# %% [markdown]
# **Step 2: the part before goes through one matrix.** A decay over t − j steps is one up to the chunk’s edge
# and one from there on. The first half belongs to the key, the second to the query:
#
# $$\begin{aligned} e^{-s(t-j)} &= e^{-s r}\; e^{-s(a-1-j)} \\
# \sum_{j<a} \dots &= (e^{-s r} q_t)\; S, \\
# S &= \sum_{j<a} e^{-s(a-1-j)}\, k_j v_j^\top \end{aligned}$$
#
# S is the memory of notebook 2. The first table is $e^{-sr}$, a number for each row.

# %%
S = sum(np.exp(-s * (a - 1 - j)) * np.outer(k[j], v[j]) for j in range(a))
from_state = np.exp(-s * r)  # (m, 1)
assert np.allclose((from_state * Q) @ S, before)

# %% [markdown]
# **Step 3: the part inside is the definition again, small.** Scores of all pairs of the chunk, times a table
# $M_{ri} = e^{-s(r-i)}$ for i ≤ r, and 0 above the diagonal. Write that table.

# %% [markdown]
# {{ exercise 3.3 }}


# %%
def by_the_library(slopes, m):
    """Where the values are unit vectors, what comes out are the weights."""
    one = np.ones((1, len(slopes), m, 1))
    unit = np.broadcast_to(np.eye(m), (1, len(slopes), m, m))
    return ops.lightning_attention_direct(one, one, unit, slopes)[0][0]


table_inside = yours_or("3.3", decay_matrix, by_the_library)
M = table_inside(np.array([s]), m)[0]  # (m, m)
assert np.allclose(((Q @ K.T) * M) @ V, within)
assert np.allclose((from_state * Q) @ S + ((Q @ K.T) * M) @ V, o[a : a + m])

# %% [markdown]
# That is the output of the chunk in three matrix products, with no loop over its tokens.
#
# **Step 4: the state for the next chunk.** What was there has decayed m times. What the chunk writes has
# decayed as often as there were tokens after it:
#
# $$S \leftarrow e^{-s m} S + (e^{-s(m-r)} k)^\top v$$
#
# The last key of the chunk is written whole. The third table is $e^{-s(m-r)}$.

# %%
to_end = np.exp(-s * (m - r))  # (m, 1)
after = np.exp(-s * m) * S + (to_end * K).T @ V

b = a + m - 1
all_of_it = (np.exp(-s * (b - j)) * np.outer(k[j], v[j]) for j in range(b + 1))
assert np.allclose(after, sum(all_of_it))

# %% [markdown]
# Three tables, then, and a number. Here they are for m = 8: what reads the state, what weighs pairs, and what
# writes.

# %%
m, s = 8, 0.3
r = np.arange(1, m + 1)[:, None]
tables = [
    (np.exp(-s * r), BLUE, "from the state\n$e^{-sr}$"),
    (table_inside(np.array([s]), m)[0], ORANGE, "inside\n$e^{-s(r-i)}$"),
    (np.exp(-s * (m - r)), GREY, "to the end\n$e^{-s(m-r)}$"),
    (np.array([[np.exp(-s * m)]]), GREY, "the whole\n$e^{-sm}$"),
]
fig, axes = plt.subplots(1, 4, figsize=(7, 2.9), width_ratios=[2, 8, 2, 2])
for ax, (table, colour, name) in zip(axes, tables):
    grid(ax, table, colour)
    ax.set_title(name, fontsize=9)
plt.show()

# %% [markdown]
# **Notice** that they run in opposite directions: the first rows read the state best, the last rows are
# remembered best. Two questions on the third table, for a chunk that is not full:

# %% [markdown]
# {{ exercise 3.1 }}

# %% [markdown]
# {{ exercise 3.2 }}

# %% [markdown]
# ## 4 · Write it
#
# You have every piece. Loop over chunks; inside there is no loop.

# %% [markdown]
# {{ exercise 3.4 }}

# %% [markdown]
# Your function must agree with the recurrence for any width of the chunk, those that do not divide the length
# included, and for any cut into two calls. Here are 130 tokens, four heads.


# %%
def ours(q, k, v, slopes, state, chunk):
    return ops.lightning_attention_chunked(q, k, v, slopes, state, chunk=chunk)


by_chunks = yours_or("3.4", chunked, ours)
slopes = ops.decay_slopes(4, 1, 8)


def inputs(T, seed=0):
    """Queries, keys and values of four heads, and an empty state."""
    q, k, v = np.random.default_rng(seed).standard_normal((3, 1, 4, T, 16))
    return q, k, v, np.zeros((1, 4, 16, 16))


def apart(x, exact):
    """The largest difference, relative to the largest number."""
    return np.abs(x - exact).max() / np.abs(exact).max()


q, k, v, empty = inputs(130)
want, left = ops.lightning_attention_recurrent(q, k, v, slopes, empty)
for C in (1, 7, 64, 130, 256):
    out, state = by_chunks(q, k, v, slopes, empty, C)
    errors = f"out {apart(out, want):.0e}, state {apart(state, left):.0e}"
    print(f"chunks of {C:3}: {errors} apart")

cut = 50
head, state = by_chunks(*(x[:, :, :cut] for x in (q, k, v)), slopes, empty, 64)
tail, state = by_chunks(*(x[:, :, cut:] for x in (q, k, v)), slopes, state, 64)
both = np.concatenate([head, tail], axis=2)
print(f"in two calls: {apart(both, want):.0e} apart")

# %% [markdown]
# What does it save?

# %% [markdown]
# {{ exercise 3.5 }}

# %% [markdown]
# The rest of the bill: where there is a state, a token reads it and writes to it, d · e products each. Here are
# the products that a token costs in a head of the real model, d = e = 128, and how many steps must be taken one
# after another. They are counted, not timed: a time in NumPy tells more of Python’s loop than of the three
# forms.

# %%
d = e = 128
C = 256
print("             products a token               steps in a row")
print("   tokens      direct  chunked  recurrent    chunked  recurrent")
for T in (256, 4096, 65536, 1048576):
    direct, through = T * (d + e), 2 * d * e  # all pairs; the state
    work = f"{direct:11,} {C * (d + e) + through:8,} {through:10,}"
    print(f"{T:9,} {work} {T // C:10,} {T:10,}")

# %% [markdown]
# The recurrence does the least work, in the most steps, and each step is a vector times a matrix. Chunks do a
# few times the work in 256 times fewer steps, as products of matrices, which is [what a GPU is made
# for](../../path/to-kernel/). So a prompt is read in chunks, and a text is written step by step.
#
# ## 5 · Break it
#
# **The short chunk.** 130 = 64 + 64 + 2. Suppose that the state is decayed by $e^{-sC}$ after the last chunk,
# too, as if it were full:


# %%
def as_if_full(q, k, v, slopes, state, chunk):
    """Decays the short last chunk as a full one."""
    out, right = by_chunks(q, k, v, slopes, state, chunk)
    start = (q.shape[2] - 1) // chunk * chunk  # of the last chunk
    m = q.shape[2] - start
    _, before = by_chunks(*(x[:, :, :start] for x in (q, k, v)), slopes, state, chunk)
    s = slopes[:, None, None]
    return out, right + (np.exp(-s * chunk) - np.exp(-s * m)) * before


q, k, v, empty = inputs(131)
want, _ = ops.lightning_attention_recurrent(q, k, v, slopes)
prompt, token = ([x[:, :, cut] for x in (q, k, v)] for cut in (np.s_[:130], np.s_[130:]))
out, state = as_if_full(*prompt, slopes, empty, 64)
then, _ = by_chunks(*token, slopes, state, 64)
print(f"130 tokens:    {apart(out, want[:, :, :130]):.0e} apart")
print(f"the next one:  {apart(then, want[:, :, 130:]):.0e} apart\n")
print(exercise("3.4", as_if_full))

# %% [markdown]
# A prompt is read without a fault, and what is generated after it comes from a wrong memory. Whoever compares
# outputs of one call will never see it: compare the state.
#
# **float32.** Both forms are the same mathematics. They are not the same arithmetic: the recurrence multiplies
# by one rounded factor T times, and its error compounds. Against float64, for layer 40 of 80:

# %%
slopes = ops.decay_slopes(4, 40, 80)
lengths = [16, 32, 64, 128, 256, 512, 1024, 2048]
errors = {"one by one": [], "chunks of 64": []}
for T in lengths:
    q, k, v, empty = inputs(T)
    exact, _ = by_chunks(q, k, v, slopes, empty, 64)
    narrow = [x.astype(np.float32) for x in (q, k, v)]
    start = empty.astype(np.float32)
    steps, _ = ops.lightning_attention_recurrent(*narrow, slopes, start)
    mine, _ = by_chunks(*narrow, slopes.astype(np.float32), start, 64)
    for name, out in zip(errors, (steps, mine)):
        assert out.dtype == np.float32
        error = np.linalg.norm(out - exact) / np.linalg.norm(exact)
        errors[name].append(error)

fig, ax = plt.subplots()
for (name, error), colour in zip(errors.items(), (GREY, ORANGE)):
    ax.loglog(lengths, error, color=colour, marker="o", ms=3)
    ax.text(2300, error[-1], name, color=colour, va="center")
ax.axhline(2**-24, color=GREY, lw=0.8, ls=":")
ax.text(16, 2**-24, "unit roundoff", va="bottom", fontsize=8)
ax.set(xlabel="tokens", ylabel="relative error", ylim=(4e-8, 1e-5))
ax.set_title("The same sum, with other rounding")
plt.show()

# %% [markdown]
# A chunk exponentiates the rate anew, $e^{-s r}$ for each r, and rounds once. So a budget for rounding belongs
# to a form, not only to a type.
#
# **Fast heads.** It is tempting to split the table inside a chunk like the other:
# $e^{-s(r-i)} = e^{-sr} e^{+si}$, two vectors in place of a matrix, and each is correct. In float32, with C =
# 256 and the 64 heads of layer 0:

# %%
C = 256
rates = ops.decay_slopes(64, 0, 80).astype(np.float32)
i = np.arange(1, C + 1, dtype=np.float32)
with np.errstate(over="ignore", invalid="ignore"):
    split = np.exp(-rates * C)[:, None] * np.exp(rates[:, None] * i)
spoilt = np.flatnonzero(~np.isfinite(split).all(1))  # in the last row, r = C
print(f"{len(spoilt)} of 64 heads hold infinity or NaN: {spoilt}")
whole = table_inside(rates[spoilt], C)
print("with one exponential of r − i, all finite:", np.isfinite(whole).all())

# %% [markdown]
# $e^{+si}$ overflows in a head whose $e^{-sr}$ has long vanished. No exponent in the library is ever positive.
# A test with slow heads or short chunks does not see this either.
#
# ## 6 · The real one, and its twin
#
# The reference has the same loop. It also takes a mask, builds the tables once for all full chunks, and casts
# them once from float64.

# %%
print(inspect.getsource(ops.lightning_attention_chunked).split('"""')[-1])

# %% [markdown]
# Here is the twin’s loop, and both in numbers. Look for what differs: the name of a transpose, and a list in
# place of an array that is filled.

# %%
import minimax_torch.ops
import torch

twin = minimax_torch.ops.lightning_attention_chunked
body = inspect.getsource(twin).split('"""')[-1]
print(body[body.index("    for start") :])

slopes = ops.decay_slopes(4, 1, 8)
q, k, v, empty = inputs(130)
out, state = by_chunks(q, k, v, slopes, empty, 64)
twins = twin(*(torch.from_numpy(x) for x in (q, k, v, slopes)), chunk=64)
for name, x, y in zip(("out", "state"), (out, state), twins):
    print(f"{name:5} {list(x.shape)}, {apart(x, y.numpy()):.0e} apart")

# %% [markdown]
# ## In three lines
#
# - Cut the sum at a chunk’s edge: what is before goes through the state, what is inside is a small square.
# - Three tables do it, $e^{-sr}$ to read, $e^{-s(r-i)}$ inside, $e^{-s(m-r)}$ to write, with m the tokens that
#   are there.
# - It is the same mathematics in T/C steps, and better arithmetic.
#
# **Next:** [softmax and rotary](../04_softmax/), the one layer in eight that keeps everything.
