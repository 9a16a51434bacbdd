# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 12 · Check somebody’s kernel
#
# 15 min, 135 more for the exercises, 100 of them for three programs in your language · after
# [the twin](../08_twin/) · any laptop; NumPy, PyTorch and matplotlib
#
# **Question.** An engineer has a kernel for lightning attention, fast and foreign: other axes, another sign, a state
# the other way round. Does it compute what this model needs? And if not, what is it that it does instead?
#
# **You will** let kernels draw themselves, write adapters of a few lines for the conventions of four projects, read
# what `check_op` says of a wrong one, run a foreign kernel inside the whole model, find out what low precision proves
# and what it does not, check gradients, and judge a program that shares not a line with this library.

# %%
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import minimax_torch
import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from minimax_numpy import MiniMaxForCausalLM
from minimax_numpy.check import DEFECTS, broken, check_op, crosscheck, exercise
from minimax_numpy.check.golden import judge_golden, write_op
from minimax_numpy.checkpoint import read_tensors
from minimax_numpy.shipped import TINY

# %config InlineBackend.figure_formats = ["svg"]
ORANGE, BLUE, GREY = "#d2622a", "#3f8bd0", "#808a98"  # legible by day and by night
lines = [f"{part}.color" for part in ("text", "xtick", "ytick")]
lines += ["axes.edgecolor", "axes.labelcolor"]
plt.rcParams.update(dict.fromkeys(lines, GREY))
plt.rcParams.update(dict.fromkeys(["figure.facecolor", "axes.facecolor"], "none"))
plt.rcParams.update(dict.fromkeys(["axes.spines.top", "axes.spines.right"], False))
plt.rcParams["figure.figsize"] = 7, 3.4

# %% [markdown]
# ## 1 · The contract, by hand
#
# What this model asks of a kernel:
#
# $$\begin{aligned}
# S_t &= e^{-s} S_{t-1} + k_t v_t^\top \\
# o_t &= S_t^\top q_t
# \end{aligned}$$
#
# | the op | |
# |---|---|
# | takes | q, k [B, H, T, d], v [B, H, T, e], the rates s [H], perhaps a state, perhaps a mask [B, T] |
# | returns | o [B, H, T, e] and the state [B, H, d, e], row i for channel i of k |
# | order | decay, write, read; no scale; padding neither writes nor decays |
#
# The smallest case that can tell: one channel, q = k = 1, half forgotten at each token, the values 8, 4, 2. By hand:
# 8, then 8/2 + 4 = 8, then 8/2 + 2 = 6, and the state is 6.
#
# ## 2 · Three kernels, as they came
#
# These stand in for code from elsewhere. They are short loops in PyTorch with the *conventions* of three projects:
# names, axes, signs, order and scale are theirs, and a kernel in Triton would be called in the same way.


# %%
def simple_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
    """As fla's chunk_simple_gla: q, k, v [B, T, H, ·], g [B, T, H] the log of the decay.

    The scale is 1/√d unless it is given, and the state is returned where it is asked for.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    S, out = initial_state, []
    if S is None:
        S = torch.zeros(len(q), q.shape[2], q.shape[3], v.shape[3], dtype=wide)
    for t in range(q.shape[1]):
        write = k[:, t, :, :, None].to(wide) * v[:, t, :, None]
        S = g[:, t].exp()[..., None, None] * S + write
        out.append(torch.einsum("bhd,bhde->bhe", scale * q[:, t].to(wide), S))
    return torch.stack(out, dim=1).to(q.dtype), S if output_final_state else None


def ssd(X, A, B, C, block_len, initial_states=None):
    """As Mamba-2's listing: X [b, l, h, p], A [b, l, h] the log of the decay, B and C [b, l, h, n].

    l is a multiple of the block, and the state is [b, h, p, n].
    """
    assert X.shape[1] % block_len == 0
    S, Y = initial_states, []
    if S is None:
        S = X.new_zeros(len(X), X.shape[2], X.shape[3], B.shape[3])
    for x, a, b, c in zip(*(part.split(block_len, dim=1) for part in (X, A, B, C))):
        total = a.cumsum(dim=1).transpose(1, 2)  # (b, h, l)
        lag = total[..., :, None] - total[..., None, :]  # (b, h, l, s)
        later = torch.ones(block_len, block_len).triu(1).bool()
        L = lag.masked_fill(later, -torch.inf).exp()
        scores = torch.einsum("blhn,bshn->bhls", c, b) * L
        from_state = total.exp().transpose(1, 2)[..., None]  # (b, l, h, 1)
        before = torch.einsum("blhn,bhpn->blhp", c * from_state, S)
        Y.append(torch.einsum("bhls,bshp->blhp", scores, x) + before)
        to_end = (total[..., -1:] - total).exp().transpose(1, 2)[..., None]
        written = torch.einsum("blhp,blhn->bhpn", x, b * to_end)
        S = total[..., -1].exp()[..., None, None] * S + written
    return torch.cat(Y, dim=1), S


def wkv6(r, k, v, w, u, state):
    """As RWKV-6: heads before time, w [B, H, T, d] the log of the decay.

    u [H, d] is the weight of the newest token.
    """
    out = []
    for t in range(r.shape[2]):
        kv = k[:, :, t, :, None] * v[:, :, t, None, :]
        out.append(torch.einsum("bhd,bhde->bhe", r[:, :, t], state + u[..., None] * kv))
        state = w[:, :, t, :, None].exp() * state + kv
    return torch.stack(out, dim=2), state


# %% [markdown]
# Three numbers each. No adapter yet, only what the kernel itself asks for:

# %%
one, v = torch.ones(1, 3, 1, 1), torch.tensor([8.0, 4.0, 2.0]).reshape(1, 3, 1, 1)
half = torch.full((1, 3, 1), -np.log(2))  # the log of ½, for each token
heads_first = (x.reshape(1, 1, 3, 1) for x in (one, one, v, half))
answers = {
    "simple_gla": simple_gla(one, one, v, half, output_final_state=True),
    "ssd": ssd(v, half, one, one, block_len=3),
    "wkv6": wkv6(*heads_first, u=torch.ones(1, 1), state=torch.zeros(1, 1, 1, 1)),
}
for name, (out, state) in answers.items():
    print(f"{name:11} {out.ravel().tolist()}  state {state.item()}")

# %% [markdown]
# The third says 8, 12, 10 and leaves 6. Its state is right and its answers are not: it reads *before* it decays and
# adds the newest token at full weight. Two of three look the same, and yet each has a catch that one channel cannot
# show.
#
# ## 3 · Let a kernel draw itself
#
# The output is linear in v. So give the kernel the unit matrix for v, and q and k with q · k = 1: what comes out at
# (t, j) *is* the weight that token t gives to token j. No source is needed for this, only the function.

# %%
clear = LinearSegmentedColormap.from_list("", [f"{ORANGE}00", ORANGE])


def portrait(op, T=10, s=0.3, state=None):
    """The weights, [T, T], of a function that is called as this model calls the op."""
    q = k = torch.full((1, 1, T, 4), 0.5).double()  # d = 4, so that a scale shows
    v = torch.eye(T).double()[None, None]
    out, _ = op(q, k, v, torch.tensor([s]).double(), state)
    return out[0, 0].numpy()


def gallery(named, **options):
    """Portraits side by side, with what the newest token gives itself and the last."""
    size = 7, 7 / len(named) + 0.5
    fig, axes = plt.subplots(1, len(named), figsize=size, layout="constrained")
    for ax, (name, op) in zip(axes, named.items()):
        M = portrait(op, **options)
        ax.pcolormesh(M, cmap=clear, vmin=0, vmax=1.35, edgecolors=GREY, lw=0.2)
        ax.set(aspect="equal", ylim=(len(M), 0), xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel(f"own {M[-1, -1]:.2f}, one back {M[-1, -2]:.2f}", fontsize=8)
    plt.show()


def empty(q, v):
    """A state that has seen nothing, [B, H, d, e]."""
    return q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3])


def right(q, k, v, slopes, state=None):
    """The twin's own op."""
    return minimax_torch.ops.lightning_attention_recurrent(q, k, v, slopes, state)


def gla_as_it_came(q, k, v, slopes, state=None):
    """Axes and sign, nothing else."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o, _ = simple_gla(q, k, v, -slopes.expand(*q.shape[:3]))
    return o.transpose(1, 2), None


def wkv_as_it_came(q, k, v, slopes, state=None):
    """Axes and sign, nothing else."""
    w, u = -slopes[:, None, None].expand(q.shape), torch.ones(q.shape[1::2])
    return wkv6(q, k, v, w, u, empty(q, v))


gallery({"this model": right, "simple_gla": gla_as_it_came, "wkv6, u = 1": wkv_as_it_came})

# %% [markdown]
# **Notice** what each picture says before any report does. The second fades as it should and is pale all over: a
# scale, 1/√4. In the third the past is *one decay too young*: one back weighs 1 where it should weigh 0.74.
#
# ## 4 · First adapter: another layout, another sign, a scale
#
# An adapter gives a kernel the op’s arguments in the op’s order. Here is one for `simple_gla` that has forgotten
# something, handed to the judge.


# %%
def gla(q, k, v, slopes, state=None):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # positions before heads
    g = -slopes.expand(*q.shape[:3])  # the log of the decay, for every token
    o, S = simple_gla(q, k, v, g, initial_state=state, output_final_state=True)
    return o.transpose(1, 2), S


report = check_op("lightning_attention_recurrent", gla)
print(report)

# %% [markdown]
# Read it from the end: the guess, then the first difference, then the table. All states are *same* and all outputs
# differ, each by one factor that the note names; so it is the reading, not the memory. Two cases are *missing*, for
# this adapter takes no `mask`.
#
# The whole adapter. Padding comes for nothing where the decay is given token by token: at a padded token the log of
# the decay is 0, and k and v are 0 by selection (a padded key may be NaN, and 0 · NaN is NaN).


# %%
def unpadded(k, v, slopes, mask):
    """Keys and values 0 at padding, and each token's rate [B, T, H], 0 there, too."""
    mask = torch.ones(k.shape[::2], dtype=torch.bool) if mask is None else mask
    k, v = (torch.where(mask[:, None, :, None], x, 0) for x in (k, v))
    return k, v, slopes * mask[..., None]


def gla(q, k, v, slopes, state=None, *, mask=None):
    k, v, rates = unpadded(k, v, slopes, mask)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o, S = simple_gla(q, k, v, -rates, 1.0, state, output_final_state=True)
    return o.transpose(1, 2), S


def verdict(op, **options):
    """One line on a function."""
    report = check_op("lightning_attention_recurrent", op, **options)
    missing = {row.phase for row in report.rows if row.verdict == "missing"}
    told = "the same"
    if not report.ok:
        told = f"{report.first} differs: {report.looks_like or 'no known mistake'}"
    return told + (f" ({len(missing)} cases left out)" if missing else "")


print("gla:", verdict(gla))

# %% [markdown]
# ## 5 · Second adapter: other names, whole blocks, a state on its side
#
# Mamba-2 calls them C, B and X: what reads, what is written under, what is written. Its listing wants whole blocks,
# and its state has the value’s channels first. The short last block is filled up with tokens that neither write nor
# decay, which is padding again.


# %%
def mamba(q, k, v, slopes, state=None, *, mask=None, block=16, turned=True):
    k, v, rates = unpadded(k, v, slopes, mask)
    T, fill, pad = q.shape[2], -q.shape[2] % block, torch.nn.functional.pad
    C, B, X = (pad(x.transpose(1, 2), (0, 0, 0, 0, 0, fill)) for x in (q, k, v))
    A = pad(-rates, (0, 0, 0, fill))
    state = state if state is None or not turned else state.mT
    Y, S = ssd(X, A.to(X.dtype), B, C, block, state)
    return Y[:, :T].transpose(1, 2), S.mT if turned else S


def on_its_side(*arrays, mask=None):
    """Mamba's state as it is, in and out."""
    return mamba(*arrays, mask=mask, turned=False)


print("mamba:                   ", verdict(mamba))
print("… with its state as it is:", verdict(on_its_side))

# %% [markdown]
# **Notice** the second line. d and e are mostly equal, so no shape complains of a transposed state; and a kernel that
# is handed its own state back never notices. It goes wrong on the day that another one goes on: a decode kernel after
# a prefill kernel, a cache that was saved. That is why the judge hands in a state of its own.
#
# ## 6 · Third adapter: another order
#
# RWKV-6 reads the memory before it decays, and adds the newest token with a weight u of its own. Can it compute ours?
#
# $$\begin{aligned}
# \text{theirs} &= \bigl(S_{t-1} + u\,k v^\top\bigr)^\top r \\
# \text{ours} &= \bigl(e^{-s} S_{t-1} + k v^\top\bigr)^\top q \\
# &= \bigl(S_{t-1} + e^{+s} k v^\top\bigr)^\top (e^{-s} q)
# \end{aligned}$$
#
# So r = $e^{-s}$ q and u = $e^{+s}$. Five lines, and exact, though no setting of the kernel says so.


# %%
def rwkv(q, k, v, slopes, state=None, *, mask=None):
    k, v, rates = unpadded(k, v, slopes, mask)
    decay = slopes[:, None].expand(q.shape[1::2])  # (H, d): theirs is one a channel
    w = -rates.transpose(1, 2)[..., None].expand(q.shape)  # (B, H, T, d)
    state = empty(q, v) if state is None else state
    return wkv6(q * (-decay[:, None]).exp(), k, v, w, decay.exp(), state)


print("rwkv:", verdict(rwkv))
gallery({"gla": gla, "mamba": mamba, "rwkv": rwkv})

# %% [markdown]
# Three foreign kernels, one function. What was different:
#
# | | axes | decay | scale | state | order |
# |---|---|---|---|---|---|
# | this model | B H T d | s, a head | none | d × e | write, read |
# | fla, simple GLA | B T H d | −s, a token | 1/√d | d × e | write, read |
# | Mamba-2 | B T H d | −s, a token | none | e × d | write, read |
# | RWKV-6 | B H T d | −s, a channel | 1/√d | d × e | read, write |
#
# Read in `fla/ops/simple_gla`, `fla/ops/rwkv6/recurrent_naive.py` and `mamba_ssm/modules/ssd_minimal.py`.
#
# ### Your turn: a fourth
#
# A kernel in the manner of retention, as somebody might have written it for a chip where time lies innermost. It is
# right. Write the adapter. It knows no padding, so leave `mask` out.


# %%
def retention(gamma, q, k, v, memory):
    """q, k [B, H, d, T], v [B, H, e, T], gamma [H] the factor of decay, memory [B, H, e, d].

    Returns (memory, out).
    """
    out = []
    for t in range(q.shape[-1]):
        memory = gamma[:, None, None] * memory + v[..., t, None] * k[..., None, :, t]
        out.append(torch.einsum("bhd,bhed->bhe", q[..., t], memory))
    return memory, torch.stack(out, dim=-1)


def fourth(q, k, v, slopes, state=None):
    raise NotImplementedError


# %%
try:
    print("fourth:", verdict(fourth))
except ValueError as error:
    print("fourth: not yet. Which axes does it want, which decay, which state?")
    print("And in which order does it return its answers?", error, sep="\n")

# %% [markdown]
# The cell below has one way to write it. Write yours first.


# %%
def one_way(q, k, v, slopes, state=None):
    state = empty(q, v) if state is None else state
    memory, out = retention((-slopes).exp(), q.mT, k.mT, v.mT, state.mT)
    return out.mT, memory.mT


print("one way:", verdict(one_way))

# %% [markdown]
# ## 7 · What a wrong kernel looks like
#
# Six mistakes from the library’s collection, each planted in a right kernel. First their portraits, each of ten tokens
# that go on from an empty state, in chunks of four.

# %%
names = {
    "reads first": "reads_before_writing",
    "own decays": "decays_own_token",
    "scaled": "scales_queries",
    "no state": "forgets_the_state",
    "turned": "transposes_the_state",
    "short chunk": "decays_the_short_chunk_as_a_full_one",
}


def planted(name):
    """The twin's chunked op with a mistake in it, in chunks of four."""
    wrong = DEFECTS[name].plant(minimax_torch.ops)["lightning_attention_chunked"]

    def kernel(q, k, v, slopes, state=None, *, chunk=4, mask=None):
        return wrong(q, k, v, slopes, state, chunk=chunk, mask=mask)

    return kernel


kernels = {short: planted(name) for short, name in names.items()}
for some in (list(kernels)[:3], list(kernels)[3:]):
    gallery({short: kernels[short] for short in some})

# %% [markdown]
# The lower three are perfect: their mistake is in the *state*, and a picture of the outputs cannot show it. So the
# judge hands in states, asks for states back, and cuts texts short.

# %%
for short, kernel in kernels.items():
    report = check_op("lightning_attention_chunked", kernel)
    wrong = [row for row in report.rows if row.wrong]
    which = " and ".join(sorted({row.part for row in wrong}))
    print(f"{short}: {len(wrong)} of {len(report.rows)} answers are wrong, {which}")
    print(f"    first in “{wrong[0].phase}”: {wrong[0].part}, {wrong[0].where}")
    print(f"    looks like: {report.looks_like}")

# %% [markdown]
# ## 8 · In the whole model
#
# An op that is right by itself can still be called wrongly. So put the foreign kernel inside the twin, and compare the
# whole model, part by part, in all phases. (The layers ask for chunks, so the adapter takes a `chunk` and does not mind
# it.)

# %%
model = MiniMaxForCausalLM.from_pretrained(TINY, np.float64)
twin = minimax_torch.MiniMaxForCausalLM.from_reference(model)


def in_place(op):
    """An adapter as the layers call it."""
    return lambda *arrays, chunk=256, mask=None: op(*arrays, mask=mask)


prompt = torch.arange(40, 60)[None]
want = twin.generate(prompt, max_new_tokens=8)

adapters = {"gla": gla, "mamba": mamba, "rwkv": rwkv}
for name, op in {**adapters, "mamba, its state on its side": on_its_side}.items():
    with minimax_torch.ops.using(lightning_attention_chunked=in_place(op)):
        report = crosscheck(model, twin, length=20, decode=1)
        same = torch.equal(want, twin.generate(prompt, max_new_tokens=8))
    told = "the same in all parts"
    if not report.ok:
        told = f"{report.first} differs: {report.looks_like}"
    print(f"{name}: {told}\n    generates the same tokens: {same}")

# %% [markdown]
# **Notice** the last. The same tokens, and yet not the same model: no text that it writes by itself will tell.
#
# Other people’s kernels are not only lightning. Here are two models with somebody’s fused part in them, a softmax
# kernel and a router. Each has one mistake in it, and its report says where.

# %%
for n in (2, 5):
    print(f"broken({n})")
    for line in str(broken(n)).splitlines():
        if "(first wrong" in line:
            print(line)

# %% [markdown]
# {{ exercise 9.2 }}

# %% [markdown]
# {{ exercise 9.5 }}

# %% [markdown]
# ## 9 · Low precision: which rule
#
# A kernel for a GPU computes in bfloat16, and 1e-11 is out of reach. What may it err? Not a number that somebody
# chose, but what the type costs anybody: twice the error of plain NumPy in the same type, plus four roundings of the
# sum of absolute values ([why](../../proof/tolerances/)). Two customs from elsewhere stand beside it, an absolute
# tolerance, and the same with small inputs, which keep the outputs small.


# %%
def within(op, atol, size):
    """Whether an absolute tolerance lets a kernel pass, with inputs of that size."""
    rng = np.random.default_rng(0)
    q, k, v = torch.from_numpy(size * rng.standard_normal((3, 1, 4, 128, 16)))
    arrays = q, k, v, minimax_torch.ops.decay_slopes(4, 2, 9)
    return torch.allclose(op(*arrays)[0], right(*arrays)[0], rtol=0, atol=atol)


def zeros(q, k, v, slopes, state=None, **_):
    """The fastest kernel of all."""
    return torch.zeros_like(v), empty(q, v)


def slower(q, k, v, slopes, state=None, *, mask=None):
    """Every rate 1 % too small."""
    return gla(q, k, v, 0.99 * slopes, state, mask=mask)


def in_type(dtype):
    """The judge of this library in a type."""
    return lambda op: check_op("lightning_attention_recurrent", op, dtype=dtype).ok


judges = {dtype: in_type(dtype) for dtype in ("float64", "float32", "bfloat16")} | {
    "atol 0.1": lambda op: within(op, 0.1, 1.0),
    "… inputs × 0.01": lambda op: within(op, 0.1, 0.01),
}
print(f"{'':12}", *(f"{name:>15}" for name in judges))
suspects = {"gla, right": gla, "reads first": kernels["reads first"]}
suspects |= {"rates − 1 %": slower, "zeros": zeros}
for name, op in suspects.items():
    told = ("passes" if judge(op) else "caught" for judge in judges.values())
    print(f"{name:12}", *(f"{word:>15}" for word in told))

# %% [markdown]
# **Notice** the rows from below. Zeros pass the last custom, and it is in use, in
# [vLLM’s test of its lightning kernel](../../proof/register/#vllm). One per cent in the rates passes in bfloat16: the
# type is too coarse to tell. So: the structure in float64, even if only a slow build of the kernel can do that; then
# the narrow type, for its rounding.
#
# And what does the narrow type find? Rounding where none should be. Here the same kernel keeps its **state** in
# bfloat16. The ten cases are short, and they do not see it:


# %%
def narrow_state(q, k, v, slopes, state=None, *, mask=None):
    """The state is rounded to bfloat16 after each token."""
    out = []
    for t in range(q.shape[2]):
        part = None if mask is None else mask[:, t : t + 1]
        now = (x[:, :, t : t + 1] for x in (q, k, v))
        o, state = gla(*now, slopes, state, mask=part)
        state = state.bfloat16().to(state.dtype)
        out.append(o)
    return torch.cat(out, dim=2), state


print("in bfloat16:", verdict(narrow_state, dtype="bfloat16"))
print("in float32: ", verdict(narrow_state, dtype="float32"))

counting = torch.ones(1, 1, 1000, 1)
for name, op in (("gla", gla), ("narrow_state", narrow_state)):
    _, count = op(counting, counting, counting, torch.zeros(1))
    print(f"{name:13} counts to {count.item():.0f} in 1,000 tokens")

# %% [markdown]
# It stands still at 256, where 256 + 1 rounds to 256. What the judge allows in bfloat16 must leave room for kernels
# that are right; ask for float32 from whatever keeps a sum, and count to a thousand.
#
# ## 10 · Gradients
#
# Training needs the derivative, and kernels bring their own, written by hand. Autograd through the twin’s op in
# float64 is the judge here; every input counts, the state that is handed in, too.


# %%
def gradients(op):
    """Of one number made of both answers, with respect to q, k, v and the state."""
    rng = np.random.default_rng(1)
    q, k, v, by_out = torch.from_numpy(rng.standard_normal((4, 2, 3, 33, 8)))
    state, by_state = torch.from_numpy(rng.standard_normal((2, 2, 3, 8, 8)))
    inputs = [x.requires_grad_() for x in (q, k, v, state)]
    out, new = op(q, k, v, minimax_torch.ops.decay_slopes(3, 2, 9), state)
    number = (out * by_out).sum() + (new * by_state).sum()
    return torch.autograd.grad(number, inputs)


truth = gradients(right)
for name, op in {**adapters, "no state": kernels["no state"]}.items():
    try:
        apart = [(x - y).norm() / y.norm() for x, y in zip(gradients(op), truth)]
        told = (f"{n} {x.item():.0e} " for n, x in zip(("dq", "dk", "dv", "dS"), apart))
        print(f"{name:9}", *told)
    except RuntimeError as error:
        print(f"{name:9} {str(error).partition('.')[0]}")

# %% [markdown]
# For the last, torch itself has the verdict: its answers do not depend on the state at all.
#
# ## 11 · A program that shares nothing
#
# A kernel in C++ or CUDA is no Python function. It reads a file and writes a file. `write_op` writes *golden vectors*:
# inputs and right answers, of the same ten cases.

# %%
holder = tempfile.TemporaryDirectory()  # gone when the notebook is
folder = Path(holder.name)
write_op(folder, "lightning_attention_recurrent")
for file in sorted(folder.iterdir()):
    print(f"{file.name:22} {file.stat().st_size:9,} bytes")
raw = (folder / "inputs.safetensors").read_bytes()
length = int.from_bytes(raw[:8], "little")
print("\nthe first eight bytes say", length, "and the header begins")
print(raw[8:86].decode(), "…")

# %% [markdown]
# The format is all that the two sides share: eight bytes, a header in JSON, and the numbers, row by row. Here is a
# program that imports nothing of this library, run as a process of its own. It computes in float32 and knows no
# padding. ([The same in C](../../proof/golden/) is a hundred lines.)

# %%
PROGRAM = """
import json, sys
import numpy as np

raw = open(sys.argv[1], "rb").read()
start = 8 + int.from_bytes(raw[:8], "little")
inputs = {}
for name, x in json.loads(raw[8:start]).items():
    if x.get("dtype") == "F64":
        begin, end = x["data_offsets"]
        numbers = np.frombuffer(raw[start + begin : start + end])
        inputs[name] = numbers.reshape(x["shape"]).astype("f4")

answers = {}
for case in range(8):  # those after it are padded
    q, k, v, s = (inputs[f"{case}.{name}"] for name in ("q", "k", "v", "slopes"))
    S = inputs.get(f"{case}.state", np.zeros((*q.shape[:2], q.shape[3], v.shape[3]), "f4"))
    out = np.empty(v.shape, "f4")
    for t in range(q.shape[2]):
        S = np.exp(-s)[:, None, None] * S
        S = S + k[:, :, t, :, None] * v[:, :, t, None, :]
        out[:, :, t] = np.einsum("bhd,bhde->bhe", q[:, :, t], S)
    answers |= {f"{case}.out": out, f"{case}.state": S}

header, body = {}, b""
for name, x in answers.items():
    data = x.tobytes()
    place = [len(body), len(body) + len(data)]
    header[name] = {"dtype": "F32", "shape": x.shape, "data_offsets": place}
    body += data
head = json.dumps(header).encode()
open(sys.argv[2], "wb").write(len(head).to_bytes(8, "little") + head + body)
"""


def run(program):
    """Let it read and write; judge what it wrote."""
    (folder / "program.py").write_text(program)
    files = folder / "program.py", folder / "inputs.safetensors", folder / "actual.safetensors"
    subprocess.run([sys.executable, "-I", *map(str, files)], check=True)
    return judge_golden(folder, files[-1])


report = run(PROGRAM)
print("\n".join(str(report).splitlines()[-2:]))

# %% [markdown]
# Such a program in *your* language is what exercise 10.3 asks for, at the end of this section; its check takes the path
# of the file that the program wrote.

# %%
exercise("10.3", folder / "actual.safetensors")

# %% [markdown]
# It stored float32, so it is judged as float32. The errors and limits of one case, and where the limit comes from:

# %%
case = 6
row = report.rows[2 * case]  # a row for out, a row for the state
expected = read_tensors(folder / "expected.safetensors")
size = np.sqrt(np.mean(expected[f"{case}.out"] ** 2))
plain, magnitude = expected[f"{case}.out.plain.float32"], expected[f"{case}.out.magnitude"]
print(f"{row.part}, “{row.phase}”: error {row.error:.1e}, allowed {row.allowed:.1e}")
print(f"which is 2 × {plain / size:.1e}, plain NumPy's, plus 4 × 2⁻²⁴ × {magnitude / size:.1f}")
print(f"     or {(2 * plain + 4 * 2.0**-24 * magnitude) / size:.1e}")

# %% [markdown]
# And a program with a mistake: two lines have changed places, so that what is read has not been written yet.

# %%
of_note = [line for line in PROGRAM.splitlines() if "S = S + k" in line or "einsum" in line]
report = run(PROGRAM.replace("\n".join(of_note), "\n".join(reversed(of_note))))
wrong = next(row for row in report.rows if row.wrong)
print(f"first difference: {wrong.part}, {wrong.where}")
print("looks like:", report.looks_like)
print("cure:", report.cure)

# %% [markdown]
# ### In your language
#
# Now without Python, if you like: three ops, from the shortest to the one of this notebook. In the first most of the
# work is reading and writing the file, and you can keep that part for the other two.

# %% [markdown]
# {{ exercise 10.1 }}

# %% [markdown]
# {{ exercise 10.2 }}

# %% [markdown]
# {{ exercise 10.3 }}

# %% [markdown]
# ## In three lines
#
# - An adapter for axes, signs, scale, order and state; then one call. Most foreign kernels are ours in other clothes.
# - Both answers count. A mistake in the state is invisible in the first call and in every picture of outputs.
# - float64 for what it computes, the narrow type for how it rounds, gradients for whoever trains; in the whole model
#   last.
#
# ## Try it
#
# 1. Leave the `torch.where` of `unpadded` out, but keep the rates 0 at padding. Which case tells?
# 2. Give `mamba` blocks of 7. What changes?
# 3. Judge `gla` as a *chunked* kernel in float32, `check_op("lightning_attention_chunked", gla, dtype="float32")`. By
#    whose error is it judged now, and why does it pass all the same?
#
# <details><summary>Answers</summary>
#
# 1. Both with padding: in the first what is padded is written, in the second it is NaN.
# 2. Nothing but the order of sums: it is still the same function.
# 3. By that of plain NumPy’s chunks, which round less. The ten cases are short, and its heads forget too fast for a
#    rounded factor to be compounded often; over thousands of tokens a recurrence errs
#    [up to fifty times as much](../../proof/tolerances/).
#
# </details>
#
# **Next:** [check your own in ten lines](../../proof/kernel/), or [bring a tensor](../../proof/tensor/) into the page.
