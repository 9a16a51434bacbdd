# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · Recall: what one softmax layer buys
#
# 10 min · after [what one softmax layer buys](../../path/recall/) · any laptop, no GPU; training needs PyTorch
#
# **Question.** Seven layers in eight of MiniMax-Text-01 keep a memory of fixed size. What can they not do, and
# why is one softmax layer enough to mend it?
#
# **You will** load three small models of this very architecture that were trained to look things up, measure
# how much each can hold, watch where the softmax layer looks, and switch layers off to see who did what.

# %%
import json

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from minimax_numpy import Cache, MiniMaxForCausalLM, ops
from minimax_numpy.trace import Trace, recording
from recall.task import HERE, KEYS, accuracy, draw

# %config InlineBackend.figure_formats = ["svg"]
ORANGE, BLUE, GREY = "#d2622a", "#3f8bd0", "#808a98"  # legible by day and by night
lines = [f"{part}.color" for part in ("text", "xtick", "ytick")]
lines += ["axes.edgecolor", "axes.labelcolor"]
plt.rcParams.update(dict.fromkeys(lines, GREY))
plt.rcParams.update(dict.fromkeys(["figure.facecolor", "axes.facecolor"], "none"))
plt.rcParams.update(dict.fromkeys(["axes.spines.top", "axes.spines.right"], False))
plt.rcParams["figure.figsize"] = 7, 3.4

# %% [markdown]
# ## 1 · The task
#
# N keys, each followed by its value; then the keys again, in another order. At each of these the model must
# name the value. Pairs are drawn anew for every sequence: nothing can be learned by heart, so all that helps is
# to look back. There are 64 keys and 16 values.

# %%
ids, answers = draw(np.random.default_rng(0), rows=1, pairs=4)
told, asked = ids[0, :8].reshape(4, 2), ids[0, 8:]
print("told: ", *(f"key {k:2} is {v - KEYS:2} ·" for k, v in told))
print("asked:", *(f"key {k:2}       ·" for k in asked))
print("answer:", *(f"{v - KEYS:15}  " for v in answers[0]))

# %% [markdown]
# ## 2 · Three models
#
# Four layers each, 64 channels, 4 heads of 16: L is a lightning layer, S a softmax layer. The twin trained
# them, with the same sequences in the same order for the same number of steps; `python -m recall.train` in this
# folder does it again. Here the reference in NumPy reads them.

# %%
NAMES = {"LLLL": "all lightning", "LLLS": "three to one", "SSSS": "all softmax"}
COLOURS = {"LLLL": GREY, "LLLS": ORANGE, "SSSS": BLUE}
measured = json.loads((HERE / "measured.json").read_text())
models = {name: MiniMaxForCausalLM.from_pretrained(HERE / name) for name in NAMES}

print("          parameters   kept after 64 pairs")
ids, _ = draw(np.random.default_rng(0), rows=1, pairs=64)
for name, model in models.items():
    cache = Cache(model.config, batch_size=1)
    model(ids, cache=cache)
    print(f"{name}   {measured['parameters'][name]:12,}   {cache.nbytes / 1024:11.0f} KiB")

# %% [markdown]
# ## 3 · How many pairs can each hold
#
# First live, with few questions; then what the twin measured with 2,048 questions for each number of pairs, for
# three seeds. A line is the mean, the band goes from the worst seed to the best.

# %%
for name, model in models.items():
    print(name, *(f"{n} pairs: {accuracy(model, n, questions=256):4.0%}  " for n in (8, 32, 64)))

# %%
fig, ax = plt.subplots()
pairs = measured["pairs"]
for name in NAMES:
    seeds = 100 * np.array(measured["accuracy"][name])  # (seeds, numbers of pairs)
    ax.fill_between(pairs, seeds.min(0), seeds.max(0), color=COLOURS[name], alpha=0.25, lw=0)
    ax.plot(pairs, seeds.mean(0), color=COLOURS[name], label=NAMES[name])
ax.axhline(100 / 16, color=GREY, lw=0.8, ls=":")
ax.text(pairs[0], 8, "guessing")
ax.set(xlabel="pairs to remember", ylabel="answered rightly, %", ylim=(0, 104))
ax.legend(frameon=False)
ax.set_title("Right answers, by number of pairs")
plt.show()

# %% [markdown]
# ## 4 · How fast did they learn
#
# The loss of every 20 steps, each seed a line. Dashes mark where the number of pairs grew. Look at step 200: two of
# the three lightning models have not yet learned to look up 8 pairs, and never will. So the gap above is one of
# learning as well as of room.

# %%
fig, ax = plt.subplots()
for name in NAMES:
    for seed, losses in enumerate(measured["loss"][name]):
        label = NAMES[name] if seed == 0 else None
        ax.plot(20 * np.arange(1, len(losses) + 1), losses, color=COLOURS[name], lw=1, label=label)
for step in np.cumsum([steps for _, steps in measured["schedule"]])[:-1]:
    ax.axvline(step, color=GREY, lw=0.8, ls="--")
ax.set(xlabel="step", ylabel="loss, nats an answer", ylim=(0, 3.5))
ax.legend(frameon=False)
ax.set_title("The same schedule for all")
plt.show()

# %% [markdown]
# ## 5 · Where does the softmax layer look
#
# Ask the hybrid about eight pairs, and take the queries and keys of its last layer from the trace. Every row
# below is a question, every column a position of the past; the mark says where that question's value stands.


# %%
def looks(model, layer, ids):
    """Attention of a softmax layer, [B, H, T, T], from the recorded query and key."""
    parts = Trace()
    with recording(parts):
        model(ids)
    path = f"model.layers.{layer}.self_attn"
    q, k = (parts[f"{path}.{x}"].swapaxes(1, 2) for x in ("query", "key"))  # (B, H, T, d)
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    return ops.softmax(np.where(np.tri(q.shape[2], dtype=bool), scores, -np.inf))


def places(ids, pairs):
    """Where the key that is asked for stands among those that were told, [B, N]."""
    return 2 * (ids[:, : 2 * pairs : 2, None] == ids[:, None, 2 * pairs :]).argmax(1)


N = 8
ids, answers = draw(np.random.default_rng(3), rows=64, pairs=N)
own_key = places(ids, N)  # the value stands one further
weights = looks(models["LLLS"], 3, ids)[:, :, 2 * N :]  # (B, H, N, 3N), the questions' rows

fade = LinearSegmentedColormap.from_list("fade", [f"{ORANGE}00", ORANGE])  # from nothing to orange
fig, axes = plt.subplots(1, 4, figsize=(9, 2.6), sharey=True)
for head, ax in enumerate(axes):
    ax.imshow(weights[0, head], cmap=fade, vmin=0, vmax=1, aspect="auto")
    ax.scatter(own_key[0] + 1, np.arange(N), s=14, facecolors="none", edgecolors=BLUE)
    ax.set(title=f"head {head}", xlabel="position")
axes[0].set_ylabel("question")
plt.show()

# %% [markdown]
# The same over 64 sequences: the share of a question's attention that falls on its key, on its value, on all
# other pairs, and on the questions themselves.


# %%
def shares(weights, own_key):
    """[H, 4]: on the key, on its value, on other pairs, among the questions."""
    on = [np.take_along_axis(weights, (own_key + i)[:, None, :, None], -1).mean((0, 2, 3)) for i in (0, 1)]
    told = weights[..., : 2 * N].sum(-1).mean((0, 2))
    return np.stack([*on, told - sum(on), 1 - told], axis=1)


print("                     its key   its value   other pairs   questions")
for name, layers in (("LLLS", [3]), ("SSSS", [0, 1, 2, 3])):
    for layer in layers:
        share = shares(looks(models[name], layer, ids)[:, :, 2 * N :], own_key)
        head = share[:, 1].argmax()  # the one that looks at the value most
        print(f"{name} layer {layer} head {head}", *(f"{x:11.0%}" for x in share[head]))

# %% [markdown]
# A question holds a key, yet it looks past that key, at the value behind it. So the value's position must know
# which key came before it. All softmax layers can do this in two steps, and do: in some layer below, a value
# looks one position back. In the hybrid the lightning layers must have done it; they have no such picture to
# show.

# %%
print("values that look one position back, by layer and head:")
value = np.arange(1, 2 * N, 2)
for layer in range(4):
    weights = looks(models["SSSS"], layer, ids)  # (B, H, T, T)
    print(f"SSSS layer {layer} ", *(f"{x:5.0%}" for x in weights[:, :, value, value - 1].mean((0, 2))))

# %% [markdown]
# ## 6 · Who did it
#
# Looking is not yet doing. Inside `recording`, a part can be forced: let the attention of one layer return
# nothing, and ask again.


# %%
def without(model, layer, pairs=32, rows=16):
    """Accuracy while the attention of a layer returns zeros."""
    ids, answers = draw(np.random.default_rng(5), rows, pairs)
    kind = "self_attn.o_proj" if "full" in model.config.layer_types[layer] else "self_attn.out_proj"
    nothing = np.zeros((*ids.shape, model.config.hidden_size), np.float32)
    with recording(Trace(force={f"model.layers.{layer}.{kind}": nothing})):
        return (model(ids, logits_to_keep=pairs).logits.argmax(-1) == answers).mean()


print("32 pairs          " + "".join(f"  without {layer}" for layer in range(4)))
for name, model in models.items():
    print(f"{name}  whole {accuracy(model, 32, 512):4.0%}", *(f"{without(model, i):10.0%}" for i in range(4)))

# %% [markdown]
# ## 7 · How much fits into a state
#
# A lightning head keeps S, d × d numbers. Write N random keys of length 1 with one of 16 values each, forget
# nothing, read every key, and take the nearest value. No training here: this is the room itself.


# %%
def recovered(d, pairs, rng):
    """The share of values that one d × d state gives back; a value is one of 16 random vectors."""
    k, values = rng.standard_normal((64, pairs, d)), rng.standard_normal((16, d))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    chosen = rng.integers(0, 16, (64, pairs))
    state = k.swapaxes(1, 2) @ values[chosen]  # (64, d, d): the sum of outer products
    return ((k @ state @ values.T).argmax(-1) == chosen).mean()


rng, numbers = np.random.default_rng(0), np.array([2, 4, 8, 16, 32, 64, 128])
fig, ax = plt.subplots()
for d, alpha in ((8, 0.45), (16, 0.7), (32, 1.0)):
    share = [100 * recovered(d, n, rng) for n in numbers]
    ax.semilogx(numbers, share, color=ORANGE, alpha=alpha, base=2)
    ax.text(numbers[-1] * 1.1, share[-1], f"d = {d}", va="center")
ax.set(xlabel="pairs written", ylabel="values given back, %", ylim=(0, 104))
ax.set_xticks(numbers, numbers)
ax.set_title("A state is full long before it is d × d pairs old")
plt.show()

# %% [markdown]
# A layer has four heads, and a model several layers, so a trained model has more room than one state; but a state
# that is full stays full, while softmax attention adds a slot for every token.
#
# ## 8 · Train a pair yourself
#
# Set `TRAIN` to True to train two models of two layers for 260 steps, about a minute in all. With two layers
# the lightning one must join key to value, and the last one must look.

# %%
TRAIN = False
if TRAIN:
    from recall.train import train

    for pattern in ("LL", "LS"):
        model, losses = train(pattern, seed=0, schedule=((8, 200), (16, 60)))
        print(pattern, f"loss {losses[-1]:.2f}", f"16 pairs: {accuracy(model, 16):.0%}")

# %% [markdown]
# ## In three lines
#
# - Told 64 pairs, three lightning layers and a softmax layer answer 98 to 99 % rightly, lightning alone
#   15 to 41 %.
# - The softmax layer looks at the value, not at the key: lightning layers below have written the key beside it.
# - Few seeds, small models, one schedule: the gap says what was learned in 800 steps, not
#   what could be.
#
# ## Try it
#
# 1. How many KiB do the three models keep after 1,024 tokens? Work it out from [B, H, d, d] and
#    [B, G, T, d] in float32.
# 2. In section 6, let the *experts* of a layer return nothing (`model.layers.0.mlp`). Which layer matters
#    most?
# 3. In section 7, use keys that are at right angles: the rows of an identity matrix. How many values come back then?
#
# <details><summary>Answers</summary>
#
# 1. LLLL 4 · 4 = 16, LLLS 3 · 4 + 512 = 524, SSSS 4 · 512 = 2,048 KiB.
# 2. Layer 0, in all three: with 32 pairs 25 % (LLLL), 44 % (LLLS) and 24 % (SSSS) are still right.
# 3. All of them, up to d: d directions at right angles are all there are, and each value is read alone.
#
# </details>
#
# **Next:** [what one softmax layer buys](../../path/recall/), with what was measured and where it is weak.
