"""7 · Cache, padding, windows."""

from typing import Any

import numpy as np

from ... import ops
from ...config import LIGHTNING, SOFTMAX
from ..single import Case
from .chapter2 import lightning_cases
from .functions import implement
from .registry import Edit, Exercise, Mistake, Verdict, planted, register
from .values import number

number(
    "7.1",
    "The lightning state",
    "estimate",
    "70 lightning layers, 64 heads, d = 128, float32. How many bytes of state does one text need after 1,048,576 "
    "tokens?",
    minutes=4,
    difficulty=1,
    solution="70 * 64 * 128 * 128 * 4",
    reason="The length does not enter: one [128, 128] matrix a head, 280 MiB in all.",
    hints=("Does the length matter?", "A head keeps one [d, d] matrix; a float32 has four bytes."),
    mistakes=(
        Mistake("bits are counted", "A float32 has 4 bytes, 32 bits.", "70 * 64 * 128 * 128 * 32"),
        Mistake("a bfloat16 state is counted", "The state is float32: 4 bytes.", "70 * 64 * 128 * 128 * 2"),
        Mistake("all 80 layers are counted", "Ten of them are softmax layers.", "80 * 64 * 128 * 128 * 4"),
        Mistake("numbers are counted", "Each has 4 bytes.", "70 * 64 * 128 * 128"),
        Mistake("the state is taken for a vector", "It is a [d, d] matrix a head.", "70 * 64 * 128 * 4"),
        Mistake("mebibytes are given", "The question asks for bytes.", "280"),
    ),
)

number(
    "7.2",
    "When keys outweigh states",
    "estimate",
    "The ten softmax layers keep keys and values of G = 8 heads of 128 channels in bfloat16; the states of exercise "
    "7.1 are 293,601,280 bytes. After how many tokens do the keys and values take as much?",
    minutes=6,
    difficulty=2,
    solution="293601280 / (10 * 2 * 8 * 128 * 2)",
    reason="40,960 bytes a token: after 7,168 tokens the ten layers outweigh the seventy.",
    hints=("How many bytes does one token add?", "Ten layers · keys and values · 8 heads · 128 channels · 2 bytes."),
    mistakes=(
        Mistake("values are forgotten", "A token keeps a key and a value.", "293601280 / (10 * 8 * 128 * 2)"),
        Mistake("keys of all 64 query heads, of all 80 layers, or bits are counted",
                "Eight key heads, ten layers, two bytes.", "293601280 / (10 * 2 * 64 * 128 * 2)"),
        Mistake("keys in float32 are counted", "A bfloat16 has two bytes.", "293601280 / (10 * 2 * 8 * 128 * 4)"),
        Mistake("the bytes of one layer are counted", "Ten layers keep keys.", "293601280 / (2 * 8 * 128 * 2)"),
        Mistake("the bytes of a token are given", "Divide the states' bytes by them.", "10 * 2 * 8 * 128 * 2"),
    ),
)  # fmt: skip


def visible_cases(rng):
    """No window, a window, cached keys, slots that hold nothing, a buffer that goes round."""
    first = np.arange(5)[None]
    yield Case("no window", {"positions": first, "key_positions": first, "window": None})
    yield Case("a window", {"positions": first, "key_positions": first, "window": int(rng.integers(2, 4))})
    late = np.array([[3, 4], [6, 7]])
    yield Case("cached keys", {"positions": late, "key_positions": np.arange(8)[None], "window": None})
    yield Case("cached keys and a window", {"positions": late, "key_positions": np.arange(8)[None], "window": 3})
    holes = np.array([[0, 1, 2, 3, 4, -1], [6, 7, -1, 3, 4, 5]])
    yield Case("empty slots", {"positions": late, "key_positions": holes, "window": None})
    yield Case("empty slots and a window", {"positions": late, "key_positions": holes, "window": 9})


@implement(
    "7.3",
    "Who may be seen",
    minutes=8,
    difficulty=2,
    hints=("Bring both to [B, T, J]: positions[:, :, None] and key_positions[:, None].",
           "Three conditions, joined by &: 0 ≤ j, j ≤ t, and with a window j > t − w."),
    reason="Position, not slot, decides, so padding, caches and ring buffers are one case. A window of w sees w keys.",
    cases=visible_cases,
    truth=ops.visible_keys,
    outputs={"visible": "B T J"},
    mistakes=(
        planted("widens_the_window", "j > t - window", "j >= t - window"),
        Edit("the window is one key too narrow", "t − w < j ≤ t: w keys, the query's own included.",
             "j > t - window", "j > t - window + 1"),
        Edit("queries see the future", "j ≤ t.", " & (j <= t)", " & (j <= j + 0 * t)"),
        Edit("a query does not see its own key", "j ≤ t: a token sees itself.", "j <= t", "j < t"),
        Edit("empty slots are seen", "A negative position is no key: j ≥ 0.", "(j >= 0) & ", ""),
        Edit("the window is ignored", "With a window, j > t − w, too.", "return visible if window is None else",
             "return visible if True else"),
    ),
)  # fmt: skip
def visible_keys(positions, key_positions, window):
    """Say which keys each query may look at, [B, T, J]: t − w < j ≤ t, or j ≤ t where the window is None.

    positions [B, T] are the queries' t; key_positions [B, J] or [1, J] are the slots' j, negative in an empty slot.
    """
    t, j = positions[:, :, None], key_positions[:, None]
    visible = (j >= 0) & (j <= t)
    return visible if window is None else visible & (j > t - window)


def masked_cases(rng):
    """No padding; padding left, in a hole, right; padding that holds NaN."""
    plain = [case for case in lightning_cases(rng) if case.label in ("shapes", "a state handed in")]
    for case in plain[:1] + plain[2:3]:
        B, _, T, _ = case.arguments["q"].shape
        yield Case("no padding", {**case.arguments, "mask": np.ones((B, T), bool)})
    for label in ("padding on the left", "padding in a hole", "padding on the right", "padding that holds NaN"):
        q, k, v = (rng.standard_normal((2, 2, 9, 3)) for _ in range(3))
        state, mask = rng.standard_normal((2, 2, 3, 3)), np.ones((2, 9), bool)
        places = {"left": slice(0, 3), "hole": slice(3, 6), "right": slice(5, 9)}
        mask[1, places.get(label.split()[-1], slice(3, 6))] = False
        if "NaN" in label:
            k[1, :, ~mask[1]] = v[1, :, ~mask[1]] = np.nan
        slopes = 0.2 + rng.random(2)
        yield Case(label, {"q": q, "k": k, "v": v, "slopes": slopes, "state": state, "mask": mask})


@implement(
    "7.4",
    "Padding does not exist",
    minutes=15,
    difficulty=3,
    hints=(
        "Begin with 2.3. At a padded position the state must come out as it went in.",
        "Compute the new state and choose: np.where(mask[:, t, None, None, None], new, S). Never multiply by the mask.",
    ),
    reason="Time is counted in real tokens: a padded position neither writes nor decays. 0 · NaN is NaN, so select.",
    cases=masked_cases,
    truth=lambda q, k, v, slopes, state, mask: ops.lightning_attention_recurrent(q, k, v, slopes, state, mask=mask),
    outputs={"out": "B H T e", "state": "B H d e"},
    mistakes=(
        planted("padding_decays", "np.where(mask[:, t, None, None, None], keep * S + write, S)",
                "keep * S + np.where(mask[:, t, None, None, None], write, 0)"),
        planted("padding_writes", "np.where(mask[:, t, None, None, None], keep * S + write, S)", "keep * S + write"),
        Edit("padding is written, though it does not decay", "A padded position neither writes nor decays.",
             "np.where(mask[:, t, None, None, None], keep * S + write, S)",
             "np.where(mask[:, t, None, None, None], keep * S, S) + np.nan_to_num(write)"),
        Edit("what is padded is multiplied by 0, and 0 · NaN is NaN", "Choose with np.where.",
             "np.where(mask[:, t, None, None, None], keep * S + write, S)",
             "np.where(mask[:, t, None, None, None], keep, 1) * S + write * mask[:, t, None, None, None]"),
        Edit("the state is emptied at padding", "It must come out as it went in.", "keep * S + write, S)",
             "keep * S + write, 0)"),
        Edit("the mask is upside down", "True is a real token.", "np.where(mask[", "np.where(~mask["),
    ),
)  # fmt: skip
def masked(q, k, v, slopes, state, mask):
    """Lightning attention of a padded batch: as in 2.3, but a padded position neither writes nor decays.

    mask [B, T] is False at padding, anywhere in a row. Keys and values there may hold NaN. What is returned there
    is nobody's business, if it is finite.
    """
    keep = np.exp(-slopes)[:, None, None]
    S = state
    out = np.empty(v.shape)
    for t in range(q.shape[2]):
        write = k[:, :, t, :, None] * v[:, :, t, None, :]
        S = np.where(mask[:, t, None, None, None], keep * S + write, S)
        out[:, :, t] = np.einsum("bhd,bhde->bhe", q[:, :, t], S)
    return out, S


# What a token, or a text, costs in a layer of MiniMax-Text-01: bfloat16 keys and values, a float32 state.
TOKENS, A_TOKEN, A_STATE, BUDGET = 1_048_576, 2 * 8 * 128 * 2, 64 * 128 * 128 * 4, 20 * 2**30


def judge_pattern(exercise: Exercise, answer: Any) -> Verdict:
    """Within the memory, all layers there, exact look-up never far away."""
    if answer is ...:
        return exercise.failed("There is no answer yet. A way to begin:", exercise.hints[0])
    if not isinstance(answer, list | tuple) or set(answer) - {LIGHTNING, SOFTMAX} or len(answer) != 80:
        return exercise.failed(f"The answer is a list of 80 names, {LIGHTNING!r} or {SOFTMAX!r}.")
    softmax = [i for i, kind in enumerate(answer) if kind == SOFTMAX]
    need = len(softmax) * TOKENS * A_TOKEN + (80 - len(softmax)) * A_STATE
    told = f"{len(softmax)} softmax layers keep {need / 2**30:.2f} GiB at {TOKENS:,} tokens."
    if need > BUDGET:
        too_many = exercise.mistakes[0] if len(softmax) > 4 else None
        return exercise.failed(f"{told} That is more than 20 GiB.", mistake=too_many)
    if not softmax:
        return exercise.failed(told, mistake=exercise.mistakes[1])
    gap = max(b - a for a, b in zip([-1, *softmax], [*softmax, 80]))
    if gap > 21:
        return exercise.failed(f"{told} {gap - 1} lightning layers follow one another.", mistake=exercise.mistakes[2])
    return exercise.passed(told)


register(
    Exercise(
        "7.5",
        "A pattern for 20 GiB",
        "design",
        10,
        3,
        "Lay out the 80 layers of a model like MiniMax-Text-01 (G = 8, d = 128, H = 64; keys and values in bfloat16, "
        "states in float32) so that its cache takes at most 20 GiB at 1,048,576 tokens, and at most 20 lightning "
        f"layers follow one another. Answer with a list of 80 names, {LIGHTNING!r} or {SOFTMAX!r}.",
        (
            "What does one softmax layer keep at that length? 4,096 bytes a token.",
            "A softmax layer takes 4 GiB, so four of them fit beside the states; five do not, because of the states.",
        ),
        "answer = ...  # a list of 80 names\n",
        '(["linear_attention"] * 16 + ["full_attention"]) * 4 + ["linear_attention"] * 12',
        "Four softmax layers take 16 GiB, seventy-six states 0.3 GiB. A fifth would fill the 20 GiB by itself.",
        judge_pattern,
        (
            Mistake("the states are forgotten, or a softmax layer's keys are underrated",
                    "A softmax layer takes 4 GiB at this length, and the states are not free: at most four fit.",
                    '(["linear_attention"] * 15 + ["full_attention"]) * 5'),
            Mistake("no layer looks anything up exactly", "Lightning layers forget: keep some softmax.",
                    '["linear_attention"] * 80'),
            Mistake("the softmax layers are crowded together", "Spread them: at most 20 lightning layers in a row.",
                    '["linear_attention"] * 76 + ["full_attention"] * 4'),
        ),
    )
)  # fmt: skip


number(
    "7.6",
    "A million tokens remembered",
    "estimate",
    "Everything that MiniMax-Text-01 keeps of one text of 1,048,576 tokens: the keys and values of ten softmax layers "
    "(8 heads of 128 channels, bfloat16) and the states of seventy lightning layers (64 heads, float32). How many "
    "bytes?",
    minutes=5,
    difficulty=1,
    solution="10 * 2 * 8 * 128 * 2 * 1048576 + 70 * 64 * 128 * 128 * 4",
    reason="40 GiB of keys and values and 280 MiB of states: 99 % of the memory is that of one layer in eight. With "
           "softmax in all 80 layers it would be 320 GiB.",
    hints=("Keys and values grow with the text, states do not.", "40,960 bytes a token, and once 293,601,280."),
    mistakes=(
        Mistake("the states are left out", "Add 70 · 64 · 128² · 4 bytes.", "10 * 2 * 8 * 128 * 2 * 1048576"),
        Mistake("all 80 layers are taken to keep keys, or keys of all 64 query heads are counted",
                "Seventy layers keep a state instead, and in the ten eight query heads share a key head.",
                "80 * 2 * 8 * 128 * 2 * 1048576"),
        Mistake("values are forgotten", "A token keeps a key and a value.",
                "10 * 8 * 128 * 2 * 1048576 + 70 * 64 * 128 * 128 * 4"),
        Mistake("keys in float32 are counted", "A bfloat16 has two bytes.",
                "10 * 2 * 8 * 128 * 4 * 1048576 + 70 * 64 * 128 * 128 * 4"),
        Mistake("a state is taken to grow with the text", "It is one [128, 128] matrix a head, once.",
                "10 * 2 * 8 * 128 * 2 * 1048576 + 70 * 64 * 128 * 128 * 4 * 1048576"),
    ),
)  # fmt: skip

A_KEY, WHOLE, NARROWEST, REACH = 2 * 8 * 128 * 2, 2**30, 8_192, 195_000  # bytes, bytes, tokens, tokens


def judge_window(exercise: Exercise, answer: Any) -> Verdict:
    """Within the memory, wide enough for one layer, and far enough for all."""
    if answer is ... or answer is None:
        return exercise.failed("There is no answer yet. A way to begin:", exercise.hints[0])
    if not isinstance(answer, list | tuple) or [type(x) for x in answer] != [int] * 2 or min(answer) < 1:
        return exercise.failed("The answer is two whole numbers, (n, w).")
    n, w = answer
    if n > 80:
        return exercise.failed("There are 80 layers.")
    keys, states, reach = n * w * A_KEY, (80 - n) * A_STATE, n * (w - 1)
    told = f"Keys and values take {keys / 2**20:,.1f} MiB, states {states / 2**20:,.0f} MiB, and {n} layers reach back "
    told += f"{reach:,} tokens."
    no_states, too_narrow, as_released = exercise.mistakes
    if keys + states > WHOLE:
        return exercise.failed(f"{told} That is more than 1 GiB.", mistake=no_states if keys <= WHOLE else None)
    if w < NARROWEST:
        return exercise.failed(f"{told} One layer sees {w:,}.", mistake=too_narrow)
    if reach < REACH:
        return exercise.failed(f"{told} That is not far enough.", mistake=as_released if n <= 10 else None)
    return exercise.passed(told)


register(
    Exercise(
        "7.7",
        "A window for 1 GiB",
        "design",
        12,
        3,
        "Eighty layers as in MiniMax-Text-01, n of them softmax with a sliding window of w keys, the others lightning "
        "(exercise 7.1: 4 MiB of state each; a key with its value takes 4,096 bytes in a layer). Choose n and w so "
        "that the cache never takes more than 1 GiB, one softmax layer sees at least 8,192 tokens, and n of them in a "
        "row hand something on from at least 195,000 tokens back, w − 1 each. Answer with (n, w).",
        (
            "n · w · 4,096 bytes of keys and values, (80 − n) · 4 MiB of states: 1 GiB for both.",
            "Ten layers do not reach far enough. Each softmax layer more frees a state: 4 MiB, 1,024 keys.",
        ),
        "answer = ...  # (n, w)\n",
        "(20, 10_000)",
        "n from 15 to 25 can do it: fewer do not reach far enough, more leave each window too narrow. What lies beyond "
        "a window is handed on, not looked up: only within w tokens does one layer find a thing exactly.",
        judge_window,
        (
            Mistake("the states are forgotten", "80 − n lightning layers keep 4 MiB each.", "(20, 12_000)"),
            Mistake("the windows are too narrow for one look", "w ≥ 8,192: fewer layers, wider windows.",
                    "(40, 5_000)"),
            Mistake("it is left at ten softmax layers, as released",
                    "Each softmax layer more frees the 4 MiB of a state.", "(10, 19_000)"),
        ),
    )
)  # fmt: skip
