# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11 · A Triton kernel in the interpreter
#
# 30 min, 30 more for the two kernels and the gradient that you write · after [from PyTorch to a
# kernel](../../path/to-kernel/) and [from one step to one chunk](../03_chunks/) · any Linux machine, no GPU
#
# **Question.** What does a kernel look like from the inside, and how does one know that it is right?
#
# **You will** write a program that copies, one that attends within a chunk, and one that walks from chunk to
# chunk; read the real one; put it into a whole model; cut the walk, and walk it backwards, as the fast kernels
# do; and find three breakages by what the judge says.
#
# Triton compiles for GPUs. Told to interpret, it walks through the same functions with NumPy, and this notebook
# tells it so, before anybody imports it.

# %%
import importlib.util
import inspect
import os
import tempfile
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

if importlib.util.find_spec("triton") is None:
    print("Triton exists for Linux only; the cells below are left out.")
    skip = get_ipython().input_transformers_cleanup.append
    skip(lambda lines: [])

# %%
import matplotlib.pyplot as plt
import minimax_torch
import numpy as np
import torch
import triton
import triton.language as tl
from minimax_numpy import MiniMaxConfig, MiniMaxForCausalLM, ops
from minimax_numpy.check import check_op, crosscheck
from minimax_torch.kernels import lightning, segments

# %config InlineBackend.figure_formats = ["svg"]
ORANGE, GREY = "#d2622a", "#808a98"  # by day and by night
lines = [f"{part}.color" for part in ("text", "xtick", "ytick")]
lines += ["axes.edgecolor", "axes.labelcolor"]
plt.rcParams.update(dict.fromkeys(lines, GREY))
plt.rcParams.update(dict.fromkeys(["figure.facecolor", "axes.facecolor"], "none"))
draw = torch.Generator().manual_seed(0)

# %% [markdown]
# ## 1 · A program that copies
#
# A kernel is written for *one* program, and many run it. Each asks for its number, works out which part is its
# own, loads it, and stores something. Here each takes four numbers of ten.


# %%
@triton.jit
def copy(x, y, n, BLOCK: tl.constexpr):
    me = tl.program_id(0)
    i = me * BLOCK + tl.arange(0, BLOCK)  # my places
    there = i < n  # are there so many?
    tl.store(y + i, tl.load(x + i, mask=there), mask=there)


x = torch.arange(10.0)
for programs in 1, 2, 3:
    y = torch.full((10,), -1.0)
    copy[(programs,)](x, y, 10, BLOCK=4)
    print(f"{programs} programs:", *(f"{v:3.0f}" for v in y))

# %% [markdown]
# Four things to see, and there is hardly more to Triton:
#
# - `x` is an address. `x + i` is a tile of addresses, and `tl.load` fetches what lies there.
# - A tile has a size that is known beforehand, a power of two. Ten is none, so the third program has two places
#   too many, and the mask holds them back. Without it, it would write into somebody else’s memory.
# - Nobody makes sure that all is done. Too few programs, and the rest stays as it was.
# - Between a load and a store, nothing touches memory.
#
# ### Your turn: fade
#
# Change the copy so that place i is multiplied by $e^{-s i}$, with i counted from the beginning of the whole
# array. One line will do; `tl.exp` is the exponential.


# %%
@triton.jit
def fade(x, y, n, s, BLOCK: tl.constexpr):
    me = tl.program_id(0)
    i = me * BLOCK + tl.arange(0, BLOCK)
    there = i < n
    tl.store(y + i, tl.load(x + i, mask=there), mask=there)


y = torch.zeros(10)
fade[(3,)](torch.ones(10), y, 10, 0.5, BLOCK=4)
off = (y - torch.exp(-0.5 * torch.arange(10))).abs()
right = off.max() < 1e-6
print("right" if right else f"not yet: place {int(off.argmax())} is {off.max():.2f} off")

# %% [markdown]
# <details><summary>A hint</summary>
#
# i is the same i that the address is made of, and grows from program to program.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# faded = tl.load(x + i, mask=there) * tl.exp(-s * i)
# tl.store(y + i, faded, mask=there)
# ```
#
# The exponent is never positive, so nothing overflows, whatever the length.
#
# </details>
#
# ## 2 · One chunk
#
# One head, 16 positions, 16 channels, and no past. The sum that the chunk needs is
#
# $$o = \bigl((q k^\top) \odot M\bigr)\, v, \qquad M_{ri} = e^{-s(r-i)} \text{ for } i \le r, \text{ else } 0$$
#
# Tiles of two axes are made as in NumPy, with `None`. `tl.dot` multiplies matrices, and takes none with a side
# below 16. Here is where a GPU gains: scores and decays are never stored anywhere.


# %%
@triton.jit
def one_chunk(q, k, v, out, s, C: tl.constexpr, d: tl.constexpr):
    r, i = tl.arange(0, C), tl.arange(0, d)
    at = r[:, None] * d + i[None, :]  # (C, d): row after row
    qc, kc, vc = tl.load(q + at), tl.load(k + at), tl.load(v + at)

    causal = r[:, None] >= r[None, :]
    lag = tl.where(causal, r[:, None] - r[None, :], 0)
    M = tl.where(causal, tl.exp(-s * lag), 0)

    scores = tl.dot(qc, tl.trans(kc), input_precision="ieee") * M
    o = tl.dot(scores, vc, input_precision="ieee")
    tl.store(out + at, o)


def heads(*tensors):
    """One sequence and one head around [T, d], as the reference wants it."""
    return (x[None, None].numpy() for x in tensors)


q, k, v = torch.randn(3, 16, 16, generator=draw)
out = torch.empty(16, 16)
one_chunk[(1,)](q, k, v, out, 0.1, C=16, d=16)
want, _ = ops.lightning_attention_direct(*heads(q, k, v), np.array([0.1]))
print(f"{np.abs(out.numpy() - want[0, 0]).max():.0e} from the definition")

# %% [markdown]
# ## 3 · The loop
#
# Now a text of several chunks. The state S is a variable of the program. On a GPU it lies in registers, the
# nearest memory that there is, from the first chunk to the last:
#
# $$o = (e^{-s r} q)\, S + \bigl((q k^\top) \odot M\bigr)\, v, \qquad S \leftarrow e^{-s C} S + (e^{-s(C-r)} k)^\top v$$


# %%
@triton.jit
def walk(q, k, v, out, state, s, T, C: tl.constexpr, d: tl.constexpr):
    r, i = tl.arange(0, C), tl.arange(0, d)
    n = r[:, None] + 1  # 1 … C, a column
    causal = r[:, None] >= r[None, :]
    lag = tl.where(causal, r[:, None] - r[None, :], 0)
    M = tl.where(causal, tl.exp(-s * lag), 0)
    S = tl.full((d, d), 0, tl.float32)

    for start in range(0, T, C):
        at = (start + r[:, None]) * d + i[None, :]
        there = (start + r[:, None] < T) & (i[None, :] < d)
        qc = tl.load(q + at, mask=there, other=0)
        kc = tl.load(k + at, mask=there, other=0)
        vc = tl.load(v + at, mask=there, other=0)

        scores = tl.dot(qc, tl.trans(kc), input_precision="ieee") * M
        past = tl.dot(qc * tl.exp(-s * n), S, input_precision="ieee")
        o = past + tl.dot(scores, vc, input_precision="ieee")
        tl.store(out + at, o, mask=there)

        m = C
        to_end = kc * tl.exp(-s * (m - n))
        write = tl.dot(tl.trans(to_end), vc, input_precision="ieee")
        S = tl.exp(-s * m) * S + write

    tl.store(state + i[:, None] * d + i[None, :], S)


def compare(kernel, T):
    q, k, v = torch.randn(3, T, 16, generator=draw)
    out, state = torch.empty(T, 16), torch.empty(16, 16)
    kernel[(1,)](q, k, v, out, state, 0.1, T, C=16, d=16)
    want = ops.lightning_attention_direct(*heads(q, k, v), np.array([0.1]))
    off = [np.abs(x - y[0, 0]).max() for x, y in zip((out.numpy(), state.numpy()), want)]
    told = ("out", "state")
    verdict = [f"{n} {'right' if x < 1e-4 else f'off by {x:.1f}'}" for n, x in zip(told, off)]
    print(f"T = {T}:", ", ".join(verdict))


for T in 16, 48, 64, 40:
    compare(walk, T)

# %% [markdown]
# Three whole lengths are right. With 40, two chunks and a half, what was read is still right and what is
# *remembered* is not: the next call would be wrong, and no look at the outputs would tell. Half a chunk of 8
# tokens has decayed the state as a full one of 16 would.
#
# ### Your turn: the short chunk
#
# In a copy of the kernel, give m its true value. Mind the exponents of positions that do not exist: m − n must
# not go below 0, for $e^{+s n}$ overflows where a head forgets fast and a chunk is long.


# %%
@triton.jit
def mine(q, k, v, out, state, s, T, C: tl.constexpr, d: tl.constexpr):
    r, i = tl.arange(0, C), tl.arange(0, d)
    n = r[:, None] + 1
    causal = r[:, None] >= r[None, :]
    lag = tl.where(causal, r[:, None] - r[None, :], 0)
    M = tl.where(causal, tl.exp(-s * lag), 0)
    S = tl.full((d, d), 0, tl.float32)

    for start in range(0, T, C):
        at = (start + r[:, None]) * d + i[None, :]
        there = (start + r[:, None] < T) & (i[None, :] < d)
        qc = tl.load(q + at, mask=there, other=0)
        kc = tl.load(k + at, mask=there, other=0)
        vc = tl.load(v + at, mask=there, other=0)

        scores = tl.dot(qc, tl.trans(kc), input_precision="ieee") * M
        past = tl.dot(qc * tl.exp(-s * n), S, input_precision="ieee")
        o = past + tl.dot(scores, vc, input_precision="ieee")
        tl.store(out + at, o, mask=there)

        m = C  # <- and the line below
        to_end = kc * tl.exp(-s * (m - n))
        write = tl.dot(tl.trans(to_end), vc, input_precision="ieee")
        S = tl.exp(-s * m) * S + write

    tl.store(state + i[:, None] * d + i[None, :], S)


for T in 48, 40, 1:
    compare(mine, T)

# %% [markdown]
# <details><summary>A hint</summary>
#
# How many of the C positions from `start` on are below T? `tl.minimum(a, b)` is the smaller of two.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# m = tl.minimum(C, T - start)
# to_end = kc * tl.exp(-s * tl.maximum(m - n, 0))
# ```
#
# Keys that are not there were loaded as 0, so any finite factor will do for them, and 1 is finite.
#
# </details>
#
# ## 4 · The whole kernel
#
# One program for one head would leave most of a GPU idle. The state’s columns do not need each other, one value
# channel writes and reads one of them, so the real kernel gives each program E columns of one head’s state: a grid
# of programs. Here each signs the part of the output that it owns: six heads of 80 channels, E = 32.


# %%
@triton.jit
def sign(owner, e, E: tl.constexpr):
    head, block = tl.program_id(0), tl.program_id(1)
    j = block * E + tl.arange(0, E)
    tl.store(owner + head * e + j, head * 3 + block, mask=j < e)


owner = torch.full((6, 80), -1, dtype=torch.int32)
sign[6, 3](owner, 80, E=32)

fig, ax = plt.subplots(figsize=(7, 2.4))
for program in range(18):
    heads_, channels = np.nonzero(owner.numpy() == program)
    left, right = channels.min() + 0.4, channels.max() + 0.6
    place = dict(height=0.85, color=ORANGE, alpha=0.6 if program == 7 else 0.25)
    ax.barh(heads_[0], right - left, left=left, **place)
    ax.text((left + right) / 2, heads_[0], program, ha="center", va="center")
ax.set(xlabel="value channel", ylabel="head", ylim=(5.6, -0.6))
ax.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# **Notice** that every place has one owner, so nobody waits for anybody; and that the third column of programs is
# half empty, for 80 is no multiple of 32.
#
# The real kernel does what section 3 does, for such a grid, for any strides, with a state handed in and rows
# that are padded. It looks longer than it is: half of it is addresses. Read it with section 3 beside it.

# %%
print(inspect.getsource(lightning.lightning_forward.fn))

# %% [markdown]
# **Notice** the clock. It counts *real* tokens up to each position, so at padding it stands still, and past the
# end of the text, too. With that the short chunk needs no line of its own.
#
# Around the kernel stands a function with the op’s signature, so the op’s judge can have it: ten cases with
# tails, one token, wide heads, a state handed in, padding that holds NaN.

# %%
kernel = lightning.lightning_attention
name = "lightning_attention_chunked"

print(check_op(name, kernel))

# %% [markdown]
# In float64 it is the same function. In bfloat16 it may round, and rounds as it must:

# %%
for dtype in "float32", "float16", "bfloat16":
    report = check_op(name, kernel, dtype=dtype)
    used = max(row.error / row.allowed for row in report.rows)
    print(f"{dtype:9} {'right' if report.ok else 'wrong'}, uses {used:.0%} of what is allowed")

# %% [markdown]
# And then the whole model, through the one door: each part of the twin, with the kernel at work in it, against
# the NumPy reference; prompts, tokens one by one, padding. Three layers will do.

# %%
layers = ("linear_attention", "linear_attention", "full_attention")
config = MiniMaxConfig.tiny(layer_types=layers)
model = MiniMaxForCausalLM(config, seed=0, dtype=np.float64)
twin = minimax_torch.MiniMaxForCausalLM.from_reference(model)
at_work = []


def watched(q, *rest, **options):
    at_work.append(tuple(q.shape))
    return kernel(q, *rest, **options)


with minimax_torch.ops.using(lightning_attention_chunked=watched):
    report = crosscheck(model, twin, length=40)
print("the same model" if report.ok else report)
print(f"the kernel ran {len(at_work)} times, on", *sorted(set(at_work)))

# %% [markdown]
# ## 5 · Cut the walk, and walk it backwards
#
# That kernel is there to be read. [The kernels that run](../../concepts/kernels/) do two things more, and both can
# be done by hand with the reference’s op, which takes a state and returns one.
#
# **Segments.** Where the batch is small, one program a head leaves most of a GPU with nothing to do. So 64 tokens
# become four segments of 16. First each but the last finds what it adds, from nothing, all at one time. Then what
# they add is handed on, decayed by a segment’s length. Then all walk at one time, each from its own beginning.

# %%
q, k, v = torch.randn(3, 1, 1, 64, 16, generator=draw, dtype=torch.float64)
slopes = torch.tensor([0.1], dtype=torch.float64)
rate, m = slopes.numpy(), 16
pieces = [tuple(x.numpy() for x in piece) for piece in zip(*(x.split(m, 2) for x in (q, k, v)))]

adds = [ops.lightning_attention_chunked(*piece, rate)[1] for piece in pieces[:-1]]  # 1 ends

begins = [np.zeros((1, 1, 16, 16))]  # 2 hand on
for A in adds:
    begins.append(np.exp(-rate * m) * begins[-1] + A)

outs = [  # 3 walk
    ops.lightning_attention_chunked(*piece, rate, B)[0] for piece, B in zip(pieces, begins)
]

whole, _ = ops.lightning_attention_direct(q.numpy(), k.numpy(), v.numpy(), rate)
print(f"{np.abs(np.concatenate(outs, axis=2) - whole).max():.0e} from the definition")

# %% [markdown]
# The same sum, so the same numbers. `begins` is also what the real kernel writes between its steps. Here it is, in
# the interpreter, with the same cut:

# %%
cut = segments.Tiles(chunk=16, columns=16, segment=m, stretch=m)
found = segments.Walks(q, v, slopes, None, cut).begins(k, v, None)
off = np.abs(found[0].numpy() - np.concatenate(begins)[:, 0]).max()
print(f"{len(found[0])} beginnings, {off:.0e} from those made by hand")

# %% [markdown]
# **Backwards.** Let `do` be the gradient of the output. Token j’s value was read by every query from j on, with the
# weight $e^{-s(t-j)} (q_t \cdot k_j)$, so
#
# $$dv_j = \sum_{t \ge j} e^{-s(t-j)}\, (k_j \cdot q_t)\; do_t$$
#
# That is lightning attention once more: k reads, q are the keys, do the values, and time runs from the last token to
# the first. No new kernel is needed for it, only `flip`.


# %%
def backwards(reads, keys, values):
    """Lightning attention from the last token to the first."""
    turned = (x.flip(2).numpy() for x in (reads, keys, values))
    out, _ = ops.lightning_attention_chunked(*turned, rate)
    return torch.from_numpy(out).flip(2)


do = torch.randn(1, 1, 64, 16, generator=draw, dtype=torch.float64)
asked = [x.clone().requires_grad_() for x in (q, k, v)]
out, _ = minimax_torch.ops.lightning_attention_direct(*asked, slopes)
dq, dk, dv = torch.autograd.grad(out, asked, do)
print(f"dv is {(backwards(k, q, do) - dv).abs().max():.0e} from autograd's")

# %% [markdown]
# ### Your turn: the gradient of the keys
#
# Token j’s key was met by the same queries, with the same decays. Which three tensors go in, and in which order?

# %%
mine = backwards(k, q, do)  # <- dv; make it dk

off = (mine - dk).abs().max()
print("right" if off < 1e-10 else f"not yet: {off:.1f} off")

# %% [markdown]
# <details><summary>A hint</summary>
#
# In $do_t \cdot o_t$ stands $(q_t \cdot k_j)\,(v_j \cdot do_t)$. Take $k_j$ away: a number times a vector is left.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# mine = backwards(v, do, q)
# ```
#
# $dk_j = \sum_{t \ge j} e^{-s(t-j)} (v_j \cdot do_t)\, q_t$: v reads, do are the keys, q the values. And dq needs no
# flip: do reads, v are the keys, k the values, forwards.
#
# </details>
#
# The real kernel’s gradients are these walks, cut into segments. All three, against autograd:

# %%
asked = [x.clone().requires_grad_() for x in (q, k, v)]
out, _ = segments.lightning_attention(*asked, slopes, tiles=cut)
for told, found, want in zip(("dq", "dk", "dv"), torch.autograd.grad(out, asked, do), (dq, dk, dv)):
    print(f"{told}: {(found - want).abs().max():.0e}")

# %% [markdown]
# ## 6 · Three breakages
#
# A kernel is read from its file, so a broken one is the file with a line changed. `broken` makes such a file and
# hands it to the judge. Before you run a cell, say what it will say.


# %%
def broken(was, becomes, dtype="float64"):
    """Change a line of the kernel, and ask the judge."""
    source = Path(lightning.__file__).read_text(encoding="utf-8")
    assert was in source, f"there is no {was}"
    file = Path(tempfile.mkdtemp()) / "edited.py"
    file.write_text(source.replace(was, becomes), encoding="utf-8")
    place = importlib.util.spec_from_file_location("minimax_torch.kernels.edited", file)
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    report = check_op(name, module.lightning_attention, dtype=dtype)
    wrong = [row for row in report.rows if row.wrong]
    print(f"{len(wrong)} of {len(report.rows)} answers are wrong")
    for row in wrong[:1]:
        print(f"{row.part} of: {row.phase}; {row.where}")
        print(f"error {row.error:.0e}, allowed {row.allowed:.0e}")
    print("looks like:", report.looks_like or "none of the planted ones")


# %% [markdown]
# **One.** A comparison without its equals sign.

# %%
broken("r[:, None] >= r[None, :]", "r[:, None] > r[None, :]")

# %% [markdown]
# A token no longer sees itself: as if the state were read after the decay and before the write.
#
# **Two.** Each program computes the same block of value channels.

# %%
broken("tl.program_id(1) * E + tl.arange(0, E)", "tl.arange(0, E)")

# %% [markdown]
# Only heads with more than 32 channels have a second block, so nine cases of ten are right. A kernel that is tried
# on small heads alone would have passed.
#
# **Three.** A matrix product in bfloat16, as one might write it for speed. On a GPU this is right. Here it is not:

# %%
broken("mask=keys, other=0).to(wide)", "mask=keys, other=0)", "bfloat16")

# %% [markdown]
# The interpreter keeps a bfloat16 as its 16 bits and multiplies those as whole numbers, without a word. That is
# the interpreter’s mistake and not the kernel’s, and it is why the kernel widens what it loads.
#
# What else does the interpreter not prove? That the function compiles, that its tiles fit into the registers
# and the shared memory of a GPU, that no two programs write to one place, and how fast it is. [From PyTorch to a
# kernel](../../path/to-kernel/) has what was measured on one.
#
# ## In three lines
#
# - A kernel is one program’s work: which part is mine, load it, compute, store it.
# - What is kept between chunks is a variable; what is not there is masked; what decays, decays by what was there.
# - The judge of the op is the judge of the kernel, line by line and in the whole model.
#
# ## Try it
#
# 1. With `broken`, change `m = tl.load(clock + tl.minimum(start + C, T)) - before` to `m = C`. Which planted
#    mistake does the judge name?
# 2. Give `lightning.lightning_attention` a chunk of 16 and of 64 in float64. How far apart are the results, and
#    why are they not the same bits?
#
# <details><summary>Answers</summary>
#
# 1. The short last chunk decays the state as a full one.
# 2. About 1e-16 of their size: the same sum, cut elsewhere, is added in another order.
#
# </details>
#
# **Next:** [check somebody’s kernel](../12_check/).
