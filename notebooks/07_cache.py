# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7 · Generate, and watch the cache
#
# 12 min, 43 more for the exercises · after [a whole layer](../06_layer/) · any laptop; NumPy, matplotlib, and
# the extra `text` for the tokenizer: `pip install 'minimax-twin[text]'`
#
# **Question.** A model that writes is shown one new token at a time. What must it keep of all the tokens before, so
# that it goes on as if it had them all before its eyes? And how much is that?
#
# **You will** watch two kinds of memory fill; work out when one outweighs the other; write the two functions that
# make padding vanish, and let them write text inside the whole model; branch a text, take tokens back, and see why
# one of the two memories cannot.

# %%
import dataclasses

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from minimax_numpy import Cache, MiniMaxConfig, MiniMaxForCausalLM, ops
from minimax_numpy.check import DEFECTS, exercise
from minimax_numpy.counts import count
from minimax_numpy.shipped import TINY
from minimax_numpy.text import Tokenizer

# %config InlineBackend.figure_formats = ["svg"]
ORANGE, BLUE, GREY = "#d2622a", "#3f8bd0", "#808a98"  # legible by day and by night
lines = [f"{part}.color" for part in ("text", "xtick", "ytick")]
lines += ["axes.edgecolor", "axes.labelcolor"]
plt.rcParams.update(dict.fromkeys(lines, GREY))
plt.rcParams.update(dict.fromkeys(["figure.facecolor", "axes.facecolor"], "none"))
plt.rcParams.update(dict.fromkeys(["axes.spines.top", "axes.spines.right"], False))
plt.rcParams["figure.figsize"] = 7, 3.4

# %% [markdown]
# ## 1 · Two memories, by hand
#
# One channel. Every key is 1, the values are 8, 4, 2, 6, and the lightning memory halves at each token. Write down
# what either memory holds after each token before you run the cell.

# %%
state, keys, values = 0.0, [], []
for k, v in zip([1, 1, 1, 1], [8, 4, 2, 6]):
    state = state / 2 + k * v  # decay, write
    keys, values = [*keys, k], [*values, v]
    print(f"lightning keeps {state:g}    softmax keeps keys {keys} and values {values}")

# %% [markdown]
# On the left one number, whatever comes; and the 8 cannot be read off it any more. On the right everything, for
# ever. MiniMax-Text-01 has seventy layers of the first kind and ten of the second.
#
# ## 2 · Read, then write
#
# The model that ships with the library has every part of the real one, a tokenizer, and random weights. What it says
# is noise. How it comes to say it is the real thing.

# %%
model = MiniMaxForCausalLM.from_pretrained(TINY, np.float64)
tokenizer, config = Tokenizer(TINY), model.config
ids, mask = tokenizer.encode("There are two ways to remember. One way is to")
print(len(ids[0]), "tokens:", "|".join(tokenizer.decode([i]) for i in ids[0]))

# %% [markdown]
# *Prefill*: the whole prompt at once. *Decode*: choose a token, show it to the model, choose the next. The cache is
# what the second step knows of the first.

# %%
cache = Cache(config, batch_size=1)
logits = model(ids, cache=cache).logits  # prefill
written = [int(logits[0, -1].argmax())]
for _ in range(11):  # decode
    logits = model(np.array([[written[-1]]]), cache=cache).logits
    written.append(int(logits[0, -1].argmax()))
print("written:", repr(tokenizer.decode(written)))
theirs = model.generate(ids, max_new_tokens=12)[0, -12:]
print("the library's generate says the same:", written == theirs.tolist())

# %% [markdown]
# What did the cache save? Without one, each new token means reading everything again. The answer is the same, to
# the last digits; the work is not.

# %%
text, positions = ids, 0
for _ in range(12):
    positions += text.shape[1]
    again = model(text).logits
    text = np.append(text, again[:, -1:].argmax(-1), axis=1)
print("the same tokens:", text[0, -12:].tolist() == written)
print(f"positions computed without a cache: {positions}, with one: {cache.lengths[0]}")

# %% [markdown]
# ## 3 · Draw it
#
# The same two memories in this model, after 4, 16 and 64 tokens: above the state of one head of layer 0, below the
# keys of one head of layer 7, the softmax layer. A column is a token, a row a channel.

# %%
corpus = (TINY / "corpus.txt").read_text(encoding="utf-8")
long = tokenizer.encode(corpus[:400])[0][:, :64]
watched = Cache(config, batch_size=1)
signed = LinearSegmentedColormap.from_list("", [BLUE, f"{GREY}00", ORANGE])  # clear at 0
fig, axes = plt.subplots(2, 3, figsize=(7, 3.2), layout="constrained")
for (above, below), (start, stop) in zip(axes.T, [(0, 4), (4, 16), (16, 64)]):
    model(long[:, start:stop], cache=watched)
    state, keys = watched.layers[0].state[0, 3], watched.layers[7].keys[0, 0]
    for ax, x in ((above, state), (below, keys.T)):
        top = abs(x).max()
        ax.imshow(x, cmap=signed, vmin=-top, vmax=top, aspect="auto")
        ax.set(xticks=[], yticks=[])
    above.set_title(f"{stop} tokens")
    below.set_xlim(-0.5, 63.5)
    print(f"after {stop:2} tokens: state {state.shape}, keys {keys.shape};", end=" ")
    print(f"largest of the state {abs(state).max():.1f}")
axes[0, 0].set_ylabel("state")
axes[1, 0].set_ylabel("keys")
plt.show()

# %% [markdown]
# **Notice** that the upper frame never changes its size, only what is in it; the lower one is filled from the left
# and nothing in it changes any more.
#
# ## 4 · How much is that?
#
# Now the real sizes. First by hand.

# %% [markdown]
# {{ exercise 7.1 }}

# %% [markdown]
# {{ exercise 7.2 }}

# %% [markdown]
# The same, counted from the configuration, and drawn to a million tokens. The blue line is a model whose eighty
# layers are all softmax layers.

# %%
real = MiniMaxConfig.text_01()


def kept(config, tokens):
    """Bytes of states, and of keys and values, after that many tokens."""
    counts = count(config)
    return counts.state_bytes, counts.kv_bytes_per_token * tokens


def all_softmax(config):
    """The same model without lightning layers."""
    return dataclasses.replace(config, layer_types=("full_attention",) * 80)


tokens = np.logspace(2, 6.1)
states, slots = kept(real, tokens)
fig, ax = plt.subplots()
for name, y, colour in (
    ("80 softmax layers", kept(all_softmax(real), tokens)[1], BLUE),
    ("10 softmax layers", slots, GREY),
    ("70 lightning layers", np.full_like(tokens, states), ORANGE),
):
    ax.loglog(tokens, y / 2**30, color=colour)
    ax.text(1.5e6, y[-1] / 2**30, name, color=colour, va="center")
meeting = states / count(real).kv_bytes_per_token
ax.plot(meeting, states / 2**30, "o", color=GREY)
ax.text(meeting, states / 2**31, f"{meeting:,.0f} tokens", va="top")
ax.set(xlabel="tokens", ylabel="GiB kept", xlim=(100, 1.3e6))
ax.set_title("What MiniMax-Text-01 keeps of a text")
plt.show()

# %% [markdown]
# ## 5 · Rows of unequal length
#
# Two prompts in one batch are rarely of one length, so the shorter one is padded. A padded position is no token: it
# must write nothing, fade nothing, and be nobody’s key. Two functions see to that, one for each kind of layer.

# %% [markdown]
# {{ exercise 7.3 }}

# %% [markdown]
# {{ exercise 7.4 }}

# %% [markdown]
# ## 6 · Your functions write
#
# The layers reach every op through one door, `ops`. So your two functions can take their places inside the whole
# model, for prefill and decode alike. `visible_keys` fits as it is. `masked` wants a state and a mask where the model
# may have neither, and that is all the adapter does.

# %%
calls = 0


def adapted(q, k, v, slopes, state=None, *, chunk=256, mask=None):
    global calls
    calls += 1
    if state is None:
        state = np.zeros((*q.shape[:2], q.shape[3], v.shape[3]))  # (B, H, d, e)
    if mask is None:
        mask = np.ones((q.shape[0], q.shape[2]), bool)  # (B, T)
    return masked(q, k, v, slopes, state, mask)


mine = {}
if exercise("7.3", visible_keys).ok:
    mine["visible_keys"] = visible_keys
if exercise("7.4", masked).ok:
    mine["lightning_attention_chunked"] = adapted

beginnings = ["Once there was a king who kept everything.", "A tolerance without"]
prompts, mask = tokenizer.encode(beginnings)
new = dict(max_new_tokens=16, do_sample=True, temperature=0.8, seed=3)
with ops.using(**mine):
    said = model.generate(prompts, mask, **new)

for row in said:
    print(repr(tokenizer.decode(row)))
if mine:
    alone = model.generate(prompts, mask, **new)
    print("\nwritten with your", " and ".join(mine), f"({calls} calls of your recurrence)")
    print("the library alone says the same:", np.array_equal(said, alone))
else:
    print("\nwritten by the library; nothing of yours is in it yet")

# %% [markdown]
# Once your recurrence is in, it is called 7 · (1 + 15) = 112 times: by seven lightning layers, for the prompt and for
# each token after it but the last, which nobody needs to be shown.
#
# ## 7 · Break it: padding that fades
#
# A common mistake with padding: keys and values are zeroed, but the memory fades all the same. Here it is planted
# in the model, and five tokens are read with three pads, in three places. Before you run the cell: which will tell?

# %%
five = ids[:, :5]
pads = np.zeros((1, 3), ids.dtype)
ways = {
    "left, on an empty cache": (np.hstack([pads, five]), [0, 0, 0, 1, 1, 1, 1, 1]),
    "a hole": (np.hstack([five[:, :2], pads, five[:, 2:]]), [1, 1, 0, 0, 0, 1, 1, 1]),
    "right": (np.hstack([five, pads]), [1, 1, 1, 1, 1, 0, 0, 0]),
}
after = ids[:, 5:8]  # three tokens more, to see what the cache is worth


def goes_on(row, real):
    """Logits of the next three tokens."""
    cache = Cache(config, batch_size=1)
    model(row, np.array([real]), cache=cache)
    return model(after, cache=cache).logits


print("pads                        right model    one that fades")
want = goes_on(five, [1] * 5)
for name, way in ways.items():
    right = np.abs(goes_on(*way) - want).max()
    with ops.using(**DEFECTS["padding_decays"].plant(ops)):
        wrong = np.abs(goes_on(*way) - want).max()
    print(f"{name:26} {right:8.0e} apart {wrong:8.0e} apart")

# %% [markdown]
# **Notice** the first line. On the left of an empty cache there is nothing yet to fade, so the usual test of
# padding, a left-padded prompt, cannot see this mistake. transformers 5.23 passes the one and makes the
# other: [rows 10 and 11](../../proof/defects-of-transformers/).
#
# ## 8 · Branch, go back
#
# A cache can be forked: two futures of one past. The prompt is read once; keys are shared until somebody writes over
# them.

# %%
prompt = Cache(config, batch_size=1)
model(ids[:, :-1], cache=prompt)  # all but the last token, which generate will show
for seed in range(3):
    branch = prompt.fork()
    draw = dict(max_new_tokens=8, do_sample=True, top_k=20, seed=seed)
    ending = model.generate(ids[:, -1:], cache=branch, **draw)
    print(f"ending {seed}:", repr(tokenizer.decode(ending[0, 1:])))
print("the prompt's own cache still holds", prompt.lengths[0], "tokens")

# %% [markdown]
# And it can go back to a moment that was kept. That is what *speculative decoding* needs: somebody guesses four tokens
# ahead, cheaply; the model looks at all four in **one** call; what it would not have said itself is taken back.

# %%
guess = written[:4]
guess[2] = 7  # the third guess is wrong
cache = prompt.fork()
last = ids[:, -1:]
moment = cache.snapshot()
shown = np.append(last, [guess], axis=1)  # end of the prompt, and four guesses
says = model(shown, cache=cache).logits[0].argmax(-1)  # after each of them
right = next((i for i in range(4) if guess[i] != says[i]), 4)
print(f"of the guesses {guess} the first {right} are right,")
print(f"and the model goes on with {says[right]}")
cache.restore(moment)
model(shown[:, : 1 + right], cache=cache)
print(f"the cache holds {cache.lengths[0]} tokens: {ids.shape[1]} + {right}")
print("as without guesses:", [*guess[:right], int(says[right])] == written[: right + 1])

# %% [markdown]
# Without a moment that was kept, there is no way back:

# %%
try:
    cache.crop(5)
except ValueError as error:
    print(error)

# %% [markdown]
# Keys could be cut off. Why not a state? One might undo a token by the recurrence, backwards:
# $S_{t-1} = e^{+s}\,(S_t - k_t v_t^\top)$. On paper this is exact. Here is the fastest head of the real model, in
# float64.

# %%
rng = np.random.default_rng(0)
s = ops.decay_slopes(64, 0, 80)[0]
k, v = rng.standard_normal((2, 60, 128))
past = [np.zeros((128, 128))]
for t in range(60):
    past.append(np.exp(-s) * past[-1] + np.outer(k[t], v[t]))
S = past[-1]
for t in reversed(range(60)):
    S = np.exp(s) * (S - np.outer(k[t], v[t]))
    undone = 60 - t
    if undone in (1, 10, 20, 30, 40, 50):
        error = np.linalg.norm(S - past[t]) / np.linalg.norm(past[t])
        print(f"{undone:2} tokens undone: relative error {error:.0e}")

# %% [markdown]
# Each step multiplies the rounding by $e^s = 2.5$. After forty the state holds nothing but rounding. What has been
# forgotten is gone; a moment must be kept *before*.
#
# ## 9 · Three ways to choose
#
# Greedy takes the likeliest token; a draw takes any, by its probability, and the same for the same seed; beams follow
# several texts and keep the likeliest *text*. All three use one cache; beams reorder its rows.

# %%
for name, options in {
    "greedy": {},
    "a draw, seed 1": dict(do_sample=True, temperature=0.8, seed=1),
    "a draw, seed 2": dict(do_sample=True, temperature=0.8, seed=2),
    "four beams": dict(num_beams=4),
}.items():
    options |= dict(max_new_tokens=6, output_logprobs=True)
    row, logprobs = model.generate(ids, **options)
    ending = tokenizer.decode(row[0, ids.shape[1] :])
    print(f"{name:15} log p = {logprobs.sum():6.1f}  {ending!r}")

# %% [markdown]
# Greedy is the best at each step and not the best in all: the beams have found a text that is likelier as a whole.
#
# ## 10 · Lay out your own
#
# You know what a layer costs. Now you choose the pattern.

# %% [markdown]
# {{ exercise 7.5 }}

# %%
pattern = answer if exercise("7.5", answer).ok else real.layer_types
chosen = dataclasses.replace(real, layer_types=tuple(pattern))
layouts = {"released": real, "all softmax": all_softmax(real), "yours": chosen}
print("GiB at 1,048,576 tokens   softmax layers   states   keys and values")
for name, layout in layouts.items():
    states, slots = (size / 2**30 for size in kept(layout, 2**20))
    softmax = layout.layer_types.count("full_attention")
    print(f"{name:24} {softmax:10} {states:16.2f} {slots:12.1f}")
if pattern is real.layer_types:
    print("(yours is the released one until 7.5 is right)")

# %% [markdown]
# What fewer softmax layers cost in *recall* is another question, and [notebook 10](../10_recall/) measures it.
#
# ## 11 · The real one
#
# [Cache](../../reference/numpy/#minimax_numpy.cache.Cache) is what you have used; its source is two memories and a
# list of them. [What a cache can do](../../use/cache/) shows what else there is: a sliding window whose keys go
# round, rows that are reordered, a file that either package reads.
#
# ## In three lines
#
# - A lightning layer keeps one matrix a head, a softmax layer a key and a value for every token; from 7,168 tokens on
#   the ten weigh more than the seventy.
# - Padding writes nothing, fades nothing and is nobody’s key. Left padding on an empty cache does not prove it.
# - A sum has no way back. Keep the moment, or start again.
#
# ## Try it
#
# 1. Write `visible_keys` with `j < t`, put it in with `ops.using` in section 6, and read what `generate` says. Why is
#    it the same text when the two prompts have the same length?
# 2. Change the third guess in section 8 back to the right one. How many tokens does the one call now give?
# 3. In section 3, watch head 0 in place of head 3, and go on to 128 tokens. What is different, and why?
#
# <details><summary>Answers</summary>
#
# 1. Without padding, window and rows of unequal length the model needs no such table: `softmax_attention` is plainly
#    causal by itself, and your function is not asked.
# 2. Five: four guesses that were right, and the token that the model says after them.
# 3. Its numbers go up and down with the text and do not grow. Head 0 halves every 2.8 tokens and knows the last few;
#    head 3 takes 177 tokens to halve, and is still filling.
#
# </details>
#
# **Next:** [the twin](../08_twin/).
