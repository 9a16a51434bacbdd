# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1 · A tour of a tiny MiniMax
#
# 10 min · after [the whole model on one page](../../model/) · any laptop, no GPU; the last section needs
# PyTorch
#
# **Question.** What happens to a sentence inside MiniMax-Text-01, and what does the model still know of it
# afterwards?
#
# **You will** run a model with every feature of the real one and less than a millionth of its parameters, look
# at its parts by name, see what its heads forget, and break it on purpose.

# %%
import math

import matplotlib.pyplot as plt
import minimax_torch
import numpy as np
from minimax_numpy import Cache, MiniMaxConfig, MiniMaxForCausalLM, ops
from minimax_numpy.check import crosscheck
from minimax_numpy.trace import Trace, recording

# %config InlineBackend.figure_formats = ["svg"]
ORANGE, GREY = "#d2622a", "#808a98"  # legible by day and by night
lines = [f"{part}.color" for part in ("text", "xtick", "ytick")]
lines += ["axes.edgecolor", "axes.labelcolor"]
plt.rcParams.update(dict.fromkeys(lines, GREY))
plt.rcParams.update(dict.fromkeys(["figure.facecolor", "axes.facecolor"], "none"))
plt.rcParams.update(dict.fromkeys(["axes.spines.top", "axes.spines.right"], False))
plt.rcParams["figure.figsize"] = 7, 3.4

# %% [markdown]
# ## 1 · The same model, smaller
#
# A configuration is a handful of numbers. The tiny one keeps the pattern, seven lightning layers to one softmax
# layer, and shrinks the rest.

# %%
real, tiny = MiniMaxConfig.text_01(), MiniMaxConfig.tiny()


def parameters(config):
    shapes = config.parameter_shapes().values()
    return sum(int(np.prod(shape)) for shape in shapes)


print(f"{'':20} {'MiniMax-Text-01':>16} {'tiny':>10}")
for name in "hidden_size", "num_attention_heads", "num_local_experts", "vocab_size":
    print(f"{name:20} {getattr(real, name):16,} {getattr(tiny, name):10,}")
print(f"{'parameters':20} {parameters(real):16,} {parameters(tiny):10,}")
print("\ntiny's layers:", *(kind.split("_")[0] for kind in tiny.layer_types))

# %% [markdown]
# ## 2 · One forward pass
#
# Its vocabulary has 256 entries, so the bytes of a sentence will do for tokens. The weights are random: what
# the model *says* is noise, but how it *computes* is the real thing.

# %%
sentence = b"Lightning remembers the sum, softmax the parts."
ids = np.frombuffer(sentence, np.uint8).astype(int)[None]  # (B, T)
model = MiniMaxForCausalLM(tiny, seed=0, dtype=np.float64)
logits = model(ids).logits
print("ids", ids.shape, "→ logits", logits.shape)

# %% [markdown]
# ## 3 · Every part by name
#
# Inside `recording`, each part shows itself under the name that it has in a checkpoint. Here are the parts of a
# lightning layer and of the softmax layer.

# %%
parts = Trace()
with recording(parts):
    model(ids)

for layer, kind in ((0, "lightning"), (7, "softmax")):
    print(f"\nlayer {layer}, {kind}")
    for name, x in parts.items():
        module, path = name.partition(f"layers.{layer}.")[1:]
        if module:
            print(f"  {path:34} {x.shape}")

# %% [markdown]
# Look at `self_attn.state`: [B, H, d, d], without a T. That is all a lightning layer will know of this
# sentence. `self_attn.key` has a T, and keeps it.
#
# ## 4 · What a head forgets
#
# Every lightning head multiplies its memory by $e^{-s}$ at each token. The rate s is not learned: it follows
# from the head and the layer. After $\ln 2 / s$ tokens half is gone. These are the half-lives of the real
# model.

# %%
layers = np.flatnonzero(np.array(real.layer_types) == "linear_attention")
slopes = np.stack([ops.decay_slopes(64, l, 80) for l in layers])  # (layers, heads)
half_life = np.log(2) / slopes

fig, ax = plt.subplots()
for head in (0, 15, 31, 47, 63):
    ax.semilogy(layers, half_life[:, head], color=ORANGE, alpha=0.5 + head / 126)
    ax.text(79, half_life[-1, head], f"head {head}", va="center")
ax.set(xlabel="layer", ylabel="half-life in tokens")
ax.set_title("Late heads and late layers remember longest")
plt.show()
print(f"from {half_life.min():.3f} tokens to {half_life.max():,.0f}")

# %% [markdown]
# **Notice** the scale: more than four powers of ten. The first head of the first layer lives in the last word,
# the last head of layer 78 in the last book chapter; no one head has to do both.
#
# ## 5 · What is kept
#
# A cache holds a state for each lightning layer and a slot a token for each softmax layer. Feed the tiny model
# one token at a time, and weigh both.

# %%
cache = Cache(tiny, batch_size=1)
kept = []
for token in np.resize(ids, 320):
    model(np.array([[token]]), cache=cache, logits_to_keep=1)
    *lightning, softmax = cache.layers
    states = sum(layer.state.nbytes for layer in lightning)
    kept.append((states, softmax.keys.nbytes + softmax.values.nbytes))
states, slots = np.array(kept).T / 1024

fig, ax = plt.subplots()
ax.plot(states, color=ORANGE)
ax.text(322, states[-1], "seven lightning layers", color=ORANGE, va="center")
ax.plot(slots, color=GREY)
ax.text(322, slots[-1], "one softmax layer", va="center")
ax.set(xlabel="tokens seen", ylabel="KiB kept")
ax.set_title("Seven memories that never grow, one that always does")
plt.show()

# %% [markdown]
# ## 6 · Who works on a token
#
# In every layer a router picks two experts for each token and weighs their answers.

# %%
gate = "model.layers.0.mlp.gate"
weights, indices = (parts[f"{gate}.{x}"][0] for x in ("weights", "indices"))  # (T, K)
for letter, (wa, wb), (a, b) in zip("Lightning", weights, indices):
    print(f"{letter}: {wa:.2f} of expert {a} + {wb:.2f} of expert {b}")
print("\ntokens of the sentence at each expert:", np.bincount(indices.ravel()))

# %% [markdown]
# ## 7 · Go on, token by token
#
# `generate` reads the prompt once, then shows the model one new token at a time. The cache makes that exact:
# reading all at once gives the same numbers as reading in two goes.

# %%
print("continues with", model.generate(ids, max_new_tokens=8)[0, -8:])

cache = Cache(tiny, batch_size=1)
first = model(ids[:, :20], cache=cache).logits
rest = model(ids[:, 20:], cache=cache).logits
in_two = np.concatenate([first, rest], axis=1)
print(f"one go or two: {np.abs(in_two - logits).max():.0e} apart")

# %% [markdown]
# ## 8 · Swap a part
#
# Layers reach every op through one door, so any function of yours can take a part's place inside the whole
# model. First an honest swap: one position at a time in place of chunks.


# %%
def one_by_one(q, k, v, slopes, state=None, *, chunk=256, mask=None):
    return ops.lightning_attention_recurrent(q, k, v, slopes, state, mask=mask)


with ops.using(lightning_attention_chunked=one_by_one):
    recurrent = model(ids).logits
print(f"recurrent or chunked: {np.abs(recurrent - logits).max():.0e} apart")

# %% [markdown]
# Now a real mistake, one that ports do make: reading the memory *before* it is decayed and written to. Which
# part differs first?


# %%
def reads_before_writing(right):
    def wrong(q, k, v, slopes, state=None, **options):
        out, state = right(q, k, v, slopes, state, **options)
        own = (q * k).sum(-1)[..., None] * v
        return (out - own) * (math.e**slopes)[:, None, None], state

    return wrong


wrong, broken = reads_before_writing(ops.lightning_attention_chunked), Trace()
with recording(broken), ops.using(lightning_attention_chunked=wrong):
    model(ids)
differ = [name for name in parts if not np.allclose(parts[name], broken[name])]
print("first difference:", differ[0])

# %% [markdown]
# `norm.input` is what the heads read, in layer 0: the mistake shows where it was made, not 80 layers later in a
# wrong word.
#
# ## 9 · The twin, and the judge
#
# That idea, done thoroughly, is the cross-check. It feeds two models the same tokens, all at once, one by one
# and padded, and compares every part. First the PyTorch twin with the same weights; here are the parts of layer
# 0.

# %%
twin = minimax_torch.MiniMaxForCausalLM.from_reference(model)
print(crosscheck(model, twin, length=48, layers=[0]))

# %% [markdown]
# Then the same twin with the mistake from above. The judge commits some forty well-known mistakes itself, and
# says which one this looks like.

# %%
wrong = reads_before_writing(minimax_torch.ops.lightning_attention_chunked)
with minimax_torch.ops.using(lightning_attention_chunked=wrong):
    report = crosscheck(model, twin, length=48)
print("first difference:", report.first)
print("looks like:", report.looks_like)
print("cure:", report.cure)

# %% [markdown]
# ## In three lines
#
# - Seven layers in eight keep one matrix a head, whatever the length; the eighth keeps everything.
# - A head forgets at a rate that its place decides, from one word to a chapter.
# - Every part has a name, can be watched, and can be replaced by yours.
#
# ## Try it
#
# 1. After how many tokens does the softmax layer of the tiny model keep more than its seven lightning layers together?
#    Work it out from [B, H, d, d] and [B, G, T, d] before you read it off the figure.
# 2. Give `decay_slopes` twelve heads, with `rule="original"` and `rule="transformers"`. Which head differs most?
# 3. Break something else: return `state * 0.99` from your op. Which part tells first?
#
# <details><summary>Answers</summary>
#
# 1. A state has 4 · 16 · 16 numbers and there are seven; a token adds 2 · 2 · 16 numbers. 7168 / 64 = 112 tokens.
# 2. Head 9 of 12: 0.70711 against 0.015625.
# 3. `model.layers.0.self_attn.state`. The seven states are all that differs in this call; only the next one reads them.
#
# </details>
#
# **Next:** [the reference of every function](../../reference/numpy/), and [what is covered so
# far](../../coverage/).
