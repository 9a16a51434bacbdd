"""How each widget is driven by keyboard, and what it must then say: the numbers are the reference's.

A driver takes the tab and the selector of its widget, presses keys, reads, and raises where something is not so.
"""

import json
import math
import re
import tempfile
from pathlib import Path

import numpy as np
from minimax_numpy import MiniMaxConfig, ops
from minimax_numpy.check import DEFECTS
from minimax_numpy.check.golden import write_op
from minimax_numpy.check.single import CASES
from minimax_numpy.config import LIGHTNING, SOFTMAX
from minimax_numpy.counts import binary, count, quantized_bytes
from minimax_numpy.trace import round_to

RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


def numbers(text):
    """Every number of a text, with half a unit of its last digit: what is written may differ from the truth by that."""
    found = []
    for digits, _, raised in re.findall(r"([−-]?\d[\d,]*(?:\.\d+)?)(·10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?", text):
        plain = digits.replace("−", "-").replace(",", "")
        power = int(raised.translate(RAISED)) if raised else 0
        found.append((float(plain) * 10.0**power, 0.5 * 10.0 ** (power - len(plain.partition(".")[2]))))
    return found


def says(text, *values):
    """The numbers of a text are these, to the digits that it prints."""
    found = numbers(text)
    assert len(found) == len(values), f"{text!r} has {len(found)} numbers, not {len(values)}"
    for (x, half), value in zip(found, values, strict=True):
        assert abs(x - value) <= half * 1.001 + 1e-12, f"{text!r} says {x:g} where the reference has {value:.8g}"


def heads(x):
    """(T, d) → (1, 1, T, d)"""
    return np.asarray(x, float)[None, None]


def each(tab, selector, what):
    """An expression of every element e that a selector names."""
    return tab.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => {what})")


def slider(widget, label):
    """A selector of the slider with that label; sliders stand in the order of `label`."""
    return f"{widget} label:nth-of-type({label}) input"


def decay_dial(tab, widget):
    tab.into(widget)
    for head, layer, keys in ((64, 0, ["End"]), (64, 78, None), (1, 0, ["Home"])):
        tab.into(widget)
        tab.tab_to(slider(widget, 1))
        for key in keys or []:
            tab.press(key)
        tab.tab_to(slider(widget, 2))
        tab.press("Home")
        tab.press("ArrowRight", times=layer)
        s = ops.decay_slopes(64, layer, 80)[head - 1]
        keeps, half, slope = numbers(tab.text(f"{widget} .result"))
        for (x, digit), value in ((keeps, 100 * np.exp(-s)), (half, math.log(2) / s), (slope, s)):
            assert abs(x - value) <= digit, f"head {head} of layer {layer}: it says {x:g}, the reference has {value:g}"
        bars = tab.texts(f"{widget} .bars td:last-child")
        for lag, share in zip((1, 10, 100, 1000, 10_000, 100_000), bars, strict=True):
            left = 100 * math.exp(-s * lag)
            says(share, 0.01 if left < 0.01 else left)
    tab.press("Home")
    tab.press("ArrowRight", times=7)
    assert "Layer 7 is softmax" in tab.text(f"{widget} .result"), "layer 7 is softmax attention"


def step_machine(tab, widget):
    tab.into(widget)
    tab.tab_to(f"{widget} .v td:nth-child(2) input")
    tab.write("3.5")
    state = None
    for token in range(3):
        tab.into(widget)
        tab.tab_to(f"{widget} button")
        for key in ("Enter", " ", "Enter"):
            tab.press(key)
        shown = {
            n: tab.run(f"[...document.querySelectorAll('{widget} .{n} input')].map((i) => +i.value)") for n in "qkv"
        }
        if token == 0:
            assert shown["v"][0] == 3.5, "a number that was typed is not taken"
        arrays = [heads([shown[n]]) for n in "qkv"]
        out, state = ops.lightning_attention_recurrent(*arrays, np.array([math.log(2)]), state)
        for text, value in zip(tab.texts(f"{widget} tfoot td.out"), out.ravel(), strict=True):
            says(text, value)
        for text, value in zip(tab.texts(f"{widget} tbody .cell"), state.ravel(), strict=True):
            says(text, value)


def chunk_cutter(tab, widget):
    own = tab.run("import('/assets/widgets/chunk-cutter.js').then((m) => m.tokens(8))")
    q, k, v = (heads(own[name]) for name in "qkv")
    slopes = np.array([0.2])
    whole, _ = ops.lightning_attention_direct(q, k, v, slopes)
    tab.into(widget)
    tab.tab_to(f"{widget} .cut")
    for key, cut in (("ArrowUp", 4), ("Home", 1), ("End", 7)):
        tab.press(key)
        first, state = ops.lightning_attention_chunked(q[:, :, :cut], k[:, :, :cut], v[:, :, :cut], slopes, chunk=cut)
        for t, row in enumerate(
            tab.run(f"[...document.querySelectorAll('{widget} .figures tbody tr')].map((r) => r.innerText)")
        ):
            one, two = numbers(row)[1:3]
            assert max(abs(x - whole[0, 0, t, 0]) - half for x, half in (one, two)) <= 0, f"o of token {t + 1}: {row}"
        told = tab.text(f"{widget} .result")
        a, b = numbers(re.search(r"\((.*?)\)", told)[1])
        assert abs(a[0] - state[0, 0, 0, 0]) <= a[1] and abs(b[0] - state[0, 0, 1, 0]) <= b[1], told
        assert numbers(told)[-1][0] < 1e-13, told


def rounding_lens(tab, widget):
    tab.into(widget)
    tab.tab_to(slider(widget, 1))
    tab.press("End")
    tab.tab_to(slider(widget, 2))
    tab.press("ArrowRight", times=3)  # 300 → 1000
    told = {}
    for dtype in ("float64", "float32", "float16", "bfloat16"):
        written = round_to(np.arange(1, 1001) * 0.6180339887498949 % 1, dtype)
        keep, S = round_to(np.exp([-math.log(2) / 2**14]), dtype), np.zeros(1)
        for x in written:
            S = round_to(round_to(keep * S, dtype) + x, dtype)
        told[dtype] = S[0]
    assert "1,000 steps" in tab.text(f"{widget} .result"), tab.text(f"{widget} .result")
    for row in each(tab, f"{widget} .type", "[...e.children].slice(0, 3).map((c) => c.textContent)"):
        says(row[1], told[row[0]])
        if row[0] != "float64":
            says(row[2], abs(told[row[0]] - told["float64"]) / told["float64"])
    assert "forgets nothing" in tab.text(f"{widget} .result")


def router(tab, widget):
    experts = np.array([[1, 0.4], [-0.4, 1], [-1, -0.4], [0.4, -1]])
    tab.into(widget)
    tab.tab_to(f"{widget} svg .token")
    tab.press("ArrowUp", times=4)
    tab.press("ArrowLeft", times=3)
    labels = each(tab, f"{widget} .token", "e.getAttribute('aria-label')")
    places = np.array([[x for x, _ in numbers(re.search(r"\((.*?)\)", label)[1])] for label in labels])
    assert np.allclose(places[0], [0.45, 0.3]), f"token 1 is at {places[0]} after seven arrow keys"
    logits = 4 * places @ experts.T
    weights, indices = ops.route(logits, top_k=2)
    for label, ws, es in zip(labels, weights, indices, strict=True):
        names = re.findall(r"([A-D]) ([\d.]+)", label)
        assert [n for n, _ in names] == ["ABCD"[e] for e in es], label
        says(" ".join(w for _, w in names), *ws)
    says(tab.text(f"{widget} .result").split(";")[0], ops.load_balancing_loss([logits[None]], 2).item())
    served = np.bincount(indices.ravel(), minlength=4)
    for text, n in zip(tab.texts(f"{widget} .bars td:last-child"), served, strict=True):
        says(text, n, 8)


def layer_pattern(tab, widget):
    tab.into(widget)
    tab.tab_to(slider(widget, 1))
    tab.press("End")
    tab.tab_to(f"{widget} .layers button")
    tab.press("ArrowRight", times=2)
    tab.press(" ")  # layer 2 becomes softmax
    tab.press("ArrowDown", times=1)
    tab.press("Enter")  # and layer 10
    kinds = list(MiniMaxConfig.text_01().layer_types)
    kinds[2] = kinds[10] = SOFTMAX
    length = 2**20
    counts = count(MiniMaxConfig(layer_types=tuple(kinds)), length)
    pressed = each(tab, f"{widget} .layers button", "e.ariaPressed === 'true'")
    assert pressed == [kind == SOFTMAX for kind in kinds], "the layers are not those that were pressed"
    state, kv, flops = tab.texts(f"{widget} .figures td")[:3]
    assert state.replace(",", "") == binary(counts.state_bytes), state
    assert kv.replace(",", "") == binary(counts.kv_bytes_per_token * length), kv
    says(flops, counts.flops_per_token / 1e9)
    assert kinds.count(LIGHTNING) == 68 and "68 lightning, 12 softmax" in tab.text(f"{widget} .result")
    near = f"{widget} tr.near th"
    assert tab.texts(near) == ["LLLS"], "12 of 80 layers are nearest to one in four"
    for button, names in ((1, ["LLLL", "LLLS"]), (2, ["LLLL"]), (3, ["SSSS"])):
        tab.into(widget)
        tab.tab_to(f"{widget} .controls button:nth-of-type({button})")
        tab.press("Enter")
        assert tab.texts(near) == names, "a pattern is shown beside another one's recall"
    measured = json.loads((Path(__file__).parents[2] / "notebooks" / "recall" / "measured.json").read_text())
    place = measured["pairs"].index(64)
    shown = tab.texts(f"{widget} .figures tbody td")[-3:]
    for text, name in zip(shown, ("LLLL", "LLLS", "SSSS"), strict=True):
        right = [100 * seed[place] for seed in measured["accuracy"][name]]
        says(text, np.mean(right), min(right), max(right))


def calculator(tab, widget):
    """Another pattern, number of experts, type, length and batch; then sizes that cannot be; then a preset."""

    def into(label):
        tab.into(widget)
        tab.run(
            f"document.querySelectorAll('{widget} .field').forEach((f) => {{ f.dataset.of = f.innerText.trim(); }})"
        )
        tab.tab_to(f"{widget} .field[data-of^='{label}'] :is(input, select)")

    for label, words in (("one softmax layer in", "4"), ("tokens n", "100000"), ("sequences B", "3")):
        into(label)
        tab.write(words)
    into("experts E")
    tab.press("ArrowDown")  # 31
    into("type of weights")
    tab.press("End")  # nf4-double
    B, n, kinds = 3, 100_000, ((LIGHTNING,) * 3 + (SOFTMAX,)) * 20
    config = MiniMaxConfig(layer_types=kinds, num_local_experts=31)
    everywhere = count(MiniMaxConfig(layer_types=(SOFTMAX,) * 80), n)
    counts, shown = count(config, n), tab.texts(f"{widget} .figures tbody td")
    says(shown[0], counts.total / 1e9)
    says(shown[1], counts.activated / 1e9)
    nbytes = (quantized_bytes(config, "nf4-double")[0], B * counts.state_bytes, B * counts.kv_bytes_per_token * n)
    for text, value in zip(shown[2:6], (*nbytes, B * everywhere.kv_bytes_per_token * n), strict=True):
        assert text.replace(",", "") == binary(value), f"{text} is not {binary(value)}"
    says(shown[6], counts.flops_per_token / 1e9)
    assert binary(sum(nbytes)) in tab.text(f"{widget} .result").replace(",", ""), tab.text(f"{widget} .result")
    for label, words, right, said in (
        ("key heads G", "7", "8", "64 heads cannot share 7 key heads: H must be a multiple of G."),
        ("experts a token K", "32", "2", "A token cannot go to 32 of 31 experts: K must be at most E."),
        ("sequences B", "", "3", "“sequences B” must be a whole number, at least 1 and less than a billion."),
    ):
        into(label)
        tab.write(words)
        assert tab.text(f"{widget} .result") == said, tab.text(f"{widget} .result")
        assert set(tab.texts(f"{widget} .figures tbody td")) == {"–"}, "figures of a model that cannot be"
        assert tab.run("document.activeElement.ariaInvalid") == "true", f"{label} is not marked"
        tab.write(right)
        assert tab.texts(f"{widget} .figures tbody td") == shown, f"{label} is right again, the figures are not"
        assert tab.run("document.activeElement.ariaInvalid") == "false", f"{label} stays marked"
    tab.into(widget)
    tab.tab_to(f"{widget} .controls button:nth-of-type(1)")
    tab.press("Enter")
    says(tab.texts(f"{widget} .figures tbody td")[1], count(MiniMaxConfig.text_01()).activated / 1e9)


def bring_tensor(tab, widget):
    """Both samples by their buttons, then files of our own through the chooser: packed, golden, broken."""
    said = f"{widget} .result"
    for button, first, looks in (
        (1, "Same: 2 of 2 answers", None),
        (2, "Different: out, first at T = 0", "read before it is written"),
    ):
        tab.into(widget)
        tab.tab_to(f"{widget} .controls button:nth-of-type({button})")
        tab.press("Enter")
        tab.until(f"document.querySelector('{said}').textContent.startsWith('{first}')")
        assert (looks or "") in tab.text(f"{widget} .mistake"), tab.text(f"{widget} .mistake")
    case = list(CASES["softmax_attention"](np.random.default_rng(0)))[0]
    q, k, v = (case.arguments[name] for name in "qkv")
    wrong = DEFECTS["tiles_grouped_heads"].plant(ops)["softmax_attention"](q, k, v)
    with tempfile.TemporaryDirectory() as folder:
        np.savez_compressed(f"{folder}/mine.npz", q=q, k=k, v=v, out=wrong.astype("f4"))
        Path(f"{folder}/cut.npz").write_bytes(Path(f"{folder}/mine.npz").read_bytes()[:900])
        write_op(f"{folder}/golden", "rms_norm")
        named = [f"{folder}/golden/{name}" for name in ("inputs.safetensors", "expected.safetensors", "golden.json")]
        for files, first in (
            ([f"{folder}/mine.npz"], "Different: out, first at T = 0, B = 0, H = 1"),
            ([f"{folder}/cut.npz"], "cut.npz is cut off"),
            (named, "Same: 2 of 2 answers"),
        ):
            tab.into(widget)
            tab.tab_to(f"{widget} input[type=file]")
            tab.choose(files)
            tab.until(f"document.querySelector('{said}').textContent.startsWith('{first}')")
            if files[0].endswith("mine.npz"):
                row = tab.texts(f"{widget} .report tbody td")
                error = np.sqrt(np.mean((wrong.astype("f4") - ops.softmax_attention(q, k, v)) ** 2))
                says(row[1], error / np.sqrt(np.mean(ops.softmax_attention(q, k, v) ** 2)))
                assert "grouped heads are tiled" in tab.text(f"{widget} .mistake")
    assert tab.texts(f"{widget} .report tbody td:nth-child(2)") == ["same", "same"]
    tab.tab_to(f"{widget} select")
    tab.press("End")  # silu: the files have other inputs as well, and no silu for an answer
    tab.until(f"document.querySelector('{said}').textContent.startsWith('Different')")


def live_cell(tab, widget):
    """Nothing is fetched before Run; without a network the cell says so and goes."""
    tab.into(widget)
    tab.tab_to(f"{widget} textarea")
    tab.write("1 + 1")
    assert tab.run(f"document.querySelector('{widget} textarea').value") == "1 + 1"
    assert not tab.complaints(), "something was fetched before anybody asked"
    tab.call("Network.setBlockedURLs", urls=["*cdn.jsdelivr.net*"])
    tab.tab_to(f"{widget} button")
    tab.press("Enter")
    tab.until(f"document.querySelector('{widget}').textContent.includes('could not be had')")
    asked = [what for kind, what in tab.complaints() if kind == "request" and "leaves" in what]
    tab.call("Network.setBlockedURLs", urls=[])
    assert len(asked) == 1 and "cdn.jsdelivr.net/pyodide" in asked[0], asked


DRIVERS = {
    "decay-dial": decay_dial,
    "step-machine": step_machine,
    "chunk-cutter": chunk_cutter,
    "rounding-lens": rounding_lens,
    "router": router,
    "layer-pattern": layer_pattern,
    "bring-tensor": bring_tensor,
    "calculator": calculator,
    "live-cell": live_cell,
}
