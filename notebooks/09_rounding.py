# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 9 · Numbers: float64 to bfloat16
#
# 15 min, 45 more for the exercises · after [what rounding does](../../path/rounding/) and [from one step to one
# chunk](../03_chunks/) · any laptop, no GPU, no PyTorch
#
# **Question.** A model of 456 billion parameters is stored in numbers of 16 bits. Which of its parts put up with
# that, and which do not?
#
# **You will** look at the bits, write the rounding that hardware does, see a memory stop counting, find where
# an error grows with the length of a text and where it does not, and watch tokens change their experts.

# %%
import inspect

import matplotlib.pyplot as plt
import numpy as np
from minimax_numpy import MiniMaxForCausalLM, ops
from minimax_numpy.check import exercise, judge
from minimax_numpy.ops import lightning
from minimax_numpy.shipped import TINY
from minimax_numpy.trace import UNIT_ROUNDOFF, Trace, recording, round_to

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
# ## 1 · One number, bit by bit
#
# A number is stored as a sign, an exponent (which power of two) and a fraction (where between that power and
# the next). The leading 1 of the fraction is not stored: it is always there.


# %%
def bits(x, dtype):
    """Sign, exponent and fraction of a number, and what it is then."""
    if dtype == "float16":
        word, split = f"{np.float16(x).view(np.uint16):016b}", 6
    else:  # bfloat16 is the upper half of a float32
        wide = np.float32(round_to(np.array(x), dtype))
        word, split = f"{wide.view(np.uint32):032b}", 9
        word = word[:16] if dtype == "bfloat16" else word
    value = float(round_to(np.array(x), dtype))
    return f"{word[0]} {word[1:split]} {word[split:]}", value


for dtype in "float32", "float16", "bfloat16":
    word, value = bits(0.1, dtype)
    print(f"{dtype:9} {word:34} {value:.12f}")

# %% [markdown]
# bfloat16 keeps float32’s eight bits of exponent, so it reaches as far, and pays with the fraction: seven bits
# are stored, eight are significant. float16 does it the other way round: finer, but nothing above 65,504.

# %%
for x in 1e-6, 257.0, 70000.0:
    with np.errstate(over="ignore"):
        told = (f"{dtype} {bits(x, dtype)[1]:g}" for dtype in UNIT_ROUNDOFF if dtype != "float64")
        print(f"{x:<9g}", ", ".join(told))

# %% [markdown]
# {{ exercise 8.1 }}

# %% [markdown]
# ## 2 · Draw it
#
# Here are all numbers that a bfloat16 can be between 0.9 and 1.1, and above them the factors $e^{-s}$ by which
# the 64 heads of layer 40 forget.

# %%
factors = np.exp(-ops.decay_slopes(64, 40, 80))
near = np.unique(round_to(np.linspace(0.9, 1.1, 10_000), "bfloat16"))
rounded = round_to(factors, "bfloat16")

fig, ax = plt.subplots(figsize=(7, 1.9))
ax.vlines(near, 0, 0.5, color=GREY, lw=0.8)
for f, g in zip(factors, rounded):
    if f > 0.9:
        ax.plot([f, g], [1, 0.55], color=ORANGE, lw=0.8)
ax.set(yticks=[0.25, 1], yticklabels=["bfloat16", "heads"], xlim=(0.9, 1.02))
ax.set_title("Below 1 the gap is 1/256, and many slow heads share a number")
ax.spines["left"].set_visible(False)
plt.show()
shared = len(np.unique(rounded))
print(f"layer 40: 64 heads, {shared} different factors")
for layer in 40, 60, 78:
    there = round_to(np.exp(-ops.decay_slopes(64, layer, 80)), "bfloat16")
    print(f"layer {layer}: {(there == 1).sum()} never forget")

# %% [markdown]
# **Notice** the right end. A head whose factor rounds to 1 is no longer a slow head: it is one that never
# forgets. The later the layer, the more of them.
#
# ## 3 · A memory that stops counting
#
# Take a head that never forgets, q = k = 1 and values of 1: the state counts the tokens. How far?

# %% [markdown]
# {{ exercise 8.2 }}

# %% [markdown]
# Here is what happens, in three types:

# %%
counted = {"float32": [], "float16": [], "bfloat16": []}
for dtype, seen in counted.items():
    state = np.zeros(())
    for _ in range(3000):
        state = round_to(state + 1, dtype)
        seen.append(float(state))

fig, ax = plt.subplots()
for (dtype, seen), colour in zip(counted.items(), (GREY, BLUE, ORANGE)):
    ax.plot(seen, color=colour)
    ax.text(3030, seen[-1], dtype, color=colour, va="center")
ax.set(xlabel="tokens", ylabel="what the state says")
plt.show()

# %% [markdown]
# ## 4 · Write it
#
# Rounding to nearest is what hardware does, and three lines of integer arithmetic do it in NumPy.

# %% [markdown]
# {{ exercise 8.3 }}

# %% [markdown]
# The rest of this notebook works with what you wrote. How far off is it, in u?


# %%
def by_the_library(x):
    return round_to(x, "bfloat16")


to_bf16 = yours_or("8.3", to_bfloat16, by_the_library)
rng = np.random.default_rng(0)
x = rng.standard_normal(100_000).astype(np.float32)
off = np.abs(to_bf16(x) / x - 1) / UNIT_ROUNDOFF["bfloat16"]
print(f"at most {off.max():.3f} u off, on average {off.mean():.2f} u")

# %% [markdown]
# ## 5 · Derive it: a factor and a rate
#
# A head forgets by $e^{-sn}$ over n tokens. Two ways to get there, each with one rounding, a share δ of the
# number:
#
# $$\begin{aligned} \bigl(e^{-s}(1+\delta)\bigr)^n &\approx e^{-sn}\,(1 + n\,\delta) \\ e^{-s(1+\delta)\,n} &\approx
# e^{-sn}\,(1 - sn\,\delta) \end{aligned}$$
#
# The recurrent form does the first, step by step. A decay table does the second. What is at stake is the error
# times what is left of the memory by then, $e^{-sn}$:

# %%
s = ops.decay_slopes(64, 78, 80)[63]  # the slowest of all heads
n = np.arange(1, 100_001)
left = np.exp(-s * n)
by_factor = float(np.float32(np.exp(-s))) ** n - left
by_rate = np.exp(-float(np.float32(s)) * n) - left

fig, ax = plt.subplots()
ax.loglog(n, np.abs(by_factor), color=ORANGE)
ax.loglog(n, np.maximum(np.abs(by_rate), 1e-13), color=BLUE)
ax.text(2, 1e-5, "a rounded factor, n times", color=ORANGE)
ax.text(2, 1e-10, "a rounded rate, times n", color=BLUE)
ax.set(xlabel="tokens n", ylabel="error of what is left")
plt.show()
worst = n[np.abs(by_factor).argmax()]
print(f"worst after {worst:,} tokens; 1/s is {1 / s:,.0f}")

# %% [markdown]
# $n\,e^{-sn}$ is largest at n = 1/s: the factor’s error grows until the memory itself is gone.

# %% [markdown]
# {{ exercise 8.4 }}

# %% [markdown]
# ## 6 · Break it: error against length
#
# Now the whole op. Two forms are given the same float32 numbers, and their outputs compared with float64’s. Then
# the state is kept in bfloat16, rounded whenever a form hands it on.


# %%
def rms(x):
    return np.sqrt(np.mean(np.square(x, dtype=np.float64)))


def in_steps(form, step, x, slopes):
    """Run `step` tokens at a time, with a state that is kept in bfloat16."""
    state, out = None, []
    for t in range(0, x[0].shape[2], step):
        part = (y[:, :, t : t + step] for y in x)
        o, state = form(*part, slopes, state)
        state = to_bf16(state)
        out.append(o)
    return np.concatenate(out, axis=2)


recurrent = ops.lightning_attention_recurrent
chunked = ops.lightning_attention_chunked
slopes = ops.decay_slopes(64, 78, 80)[[0, 21, 42, 63]]
ways = {
    "recurrent": lambda x: recurrent(*x, slopes)[0],
    "chunked": lambda x: chunked(*x, slopes, chunk=64)[0],
    "recurrent, bfloat16 state": lambda x: in_steps(recurrent, 1, x, slopes),
    "chunked, bfloat16 state": lambda x: in_steps(chunked, 64, x, slopes),
}

lengths = 2 ** np.arange(4, 12)
errors = {name: [] for name in ways}
for T in lengths:
    x = [ops.silu(rng.standard_normal((1, 4, T, 16))) for _ in range(3)]
    x = [y.astype(np.float32) for y in x]
    exact, _ = chunked(*(y.astype(np.float64) for y in x), slopes)
    for name, way in ways.items():
        errors[name].append(rms(way(x) - exact) / rms(exact))

fig, ax = plt.subplots(figsize=(7, 4))
for name, style in zip(ways, (ORANGE, BLUE) * 2):
    dashed = "--" if "bfloat16" in name else "-"
    ax.loglog(lengths, errors[name], dashed, color=style)
    ax.text(lengths[-1] * 1.1, errors[name][-1], name, color=style, va="center")
ax.set(xlabel="length", ylabel="relative error", title="Layer 78")
plt.show()

# %% [markdown]
# **Notice** three things. The recurrent line climbs in step with the length and the chunked one does not: that
# is section 5. With a state in bfloat16 both are worse by a factor of thousands. And the chunked form is better
# off even then, for it hands the state on once in 64 tokens. Decoding can only be recurrent, so it is decoding
# that needs the wide state.
#
# ## 7 · What no tolerance can excuse
#
# In every layer a router picks two experts for each token. Two scores that are nearly equal are decided by
# rounding, and then another network answers. Here is the model that comes with the package, with every part
# rounded to a type:

# %%
model = MiniMaxForCausalLM.from_pretrained(TINY, np.float64)
ids = rng.integers(3, model.config.vocab_size, (4, 128))


def run(dtype):
    """Logits, and each layer's pair of experts for each token."""
    parts = Trace(round_to=dtype)
    with recording(parts):
        logits = model(ids).logits
    pairs = [np.sort(x) for name, x in parts.items() if "indices" in name]
    return logits, np.array(pairs)  # (layers, B, T, 2)


exact, pairs = run("float64")
fig, axes = plt.subplots(1, 2, figsize=(7, 3), sharey=True)
for ax, dtype in zip(axes, ("float16", "bfloat16")):
    logits, others = run(dtype)
    flipped = (pairs != others).any(-1).any(0)  # (B, T)
    off = np.sqrt(((logits - exact) ** 2).mean(-1)) / rms(exact)
    ax.semilogy(np.sort(off[~flipped]), ".", ms=2, color=GREY)
    after = off[~flipped].size
    ax.semilogy(after + np.arange(flipped.sum()), np.sort(off[flipped]), ".", ms=4, color=ORANGE)
    ax.set(title=f"{dtype}: {flipped.mean():.1%} flipped", xlabel="tokens, sorted")
axes[0].set(ylabel="error of the logits")
plt.show()

# %% [markdown]
# Orange are the tokens that met another expert in some layer. They are not rounded more, they are computed by
# somebody else, and a tolerance that lets them pass lets anything pass. That is why the judge compares structure
# in float64, and hands the experts the truth’s choice when it judges a narrow type.
#
# A narrow type hides mistakes without any router, too: those that are smaller than its rounding. Here is one that a
# port can make. Which type shows it?

# %% [markdown]
# {{ exercise 8.6 }}

# %% [markdown]
# ## 8 · The real ones
#
# Rates are kept wide, powers are taken in float64, and each table is rounded once, when it is finished:

# %%
source = inspect.getsource(lightning._decay_tables)
print(source.partition('"""\n')[2])

# %% [markdown]
# And this is all that a narrow type is allowed: twice what plain NumPy loses in the same form, plus four
# roundings of the sum of absolute values.

# %%
print(inspect.getsource(judge.allowance).rpartition('"""\n')[2])

# %% [markdown]
# ## In three lines
#
# - A rounded factor, multiplied n times, is off by n u; a rounded rate is not.
# - What adds up over a text stays in float32: state, rates, norms, softmax, router. bfloat16 carries the rest.
# - Rounding can change which expert answers; so whether a program is right is asked in float64.
#
# ## Try it
#
# 1. Which heads of the real model never forget if their factor is a float16? Count them for all lightning layers.
# 2. Round the state to float16 in section 6, not to bfloat16. How much better is it, and what does it risk?
#
# <details><summary>Answers</summary>
#
# 1. 39 of 4,480, in the last layers; `MiniMaxConfig.text_01().layer_types` says which layers are lightning.
# 2. About ten times: three more bits. But a state that passes 65,504 is infinite, and nothing brings it back.
#
# </details>
#
# **Next:** [what rounding excuses](../../proof/tolerances/), or [recall: three trained models](../10_recall/).
