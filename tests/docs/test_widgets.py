"""The widgets of the site compute what the reference computes.

Their functions run here in a JavaScript engine without a browser; drawing is looked at by people.
"""

import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from close import assert_same
from minimax_numpy import MiniMaxConfig, ops
from minimax_numpy.config import HYBRID, LIGHTNING, SOFTMAX
from minimax_numpy.counts import binary, count, quantized_bytes
from minimax_numpy.trace import round_to
from py_mini_racer import MiniRacer

FOLDER = Path(__file__).parents[2] / "docs" / "assets" / "widgets"
DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "concepts" / "playground.md"
PRESETS = runpy.run_path(str(DOCS / "reference" / "make_tables.py"))["presets"]()
LIVE = {"live-cell": {"https://cdn.jsdelivr.net/pyodide/v0.28.3/full/pyodide.mjs"}}  # fetched when a button is pressed


def call(widget):
    """A function that calls those of a widget: numbers and lists go in and come out."""
    source = (FOLDER / f"{widget}.js").read_text(encoding="utf-8")
    source = re.sub(r'^import .* from ".*";\n', "", source, flags=re.MULTILINE)  # drawing only
    source = source.replace("import.meta.url", '""')  # where a module lies, which only a page knows
    engine = MiniRacer()
    engine.eval(re.sub(r"^export ", "", source, flags=re.MULTILINE))

    def run(function, *arguments):
        told = ", ".join(json.dumps(x.tolist() if isinstance(x, np.ndarray) else x) for x in arguments)
        return json.loads(engine.eval(f"JSON.stringify({function}({told}))"))

    return run


def heads(x):
    """(T, d) → (1, 1, T, d)"""
    return np.asarray(x, float)[None, None]


def qkv(T, d, e, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((T, d)), rng.standard_normal((T, d)), rng.standard_normal((T, e))


def test_every_widget_is_on_a_page_and_leaves_something_where_scripts_are_off():
    """A figure or a table of its name, or a sentence."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("**/*.md")))
    shown = dict(re.findall(r'data-widget="([\w-]+)".*\n+(.+)\n', text))
    files = {file.stem for file in FOLDER.glob("*.js")} - {"kit", "load", "tensor-files", "tensor-ops"}
    assert shown.keys() == files
    for name, instead in shown.items():
        there = f'--8<-- "assets/figures/{name}.svg"', f"<!-- table: {name} -->"
        assert instead in there or instead.startswith("<p>"), name


def test_no_widget_loads_anything_from_elsewhere():
    for file in FOLDER.iterdir():
        text = file.read_text(encoding="utf-8")
        assert set(re.findall(r"https?:[^\"')\s]+", text)) <= {"http://www.w3.org/2000/svg"} | LIVE.get(
            file.stem, set()
        ), file.name
        own = {f"./{other.name}" for other in FOLDER.glob("*.js")}
        assert set(re.findall(r'^import .* from "(.*)"', text, re.MULTILINE)) <= own, file.name


def test_numbers_in_words_say_the_number():
    run = call("kit")
    assert run("number", -0.5) == "−0.5" and run("number", 14007.1, 5) == "14,007" and run("number", 5e-5) == "5.0·10⁻⁵"
    assert run("power", 7.1e-15) == "7.1·10⁻¹⁵" and run("power", 0) == "0" and run("power", 2e12) == "2.0·10¹²"
    for n in (1, 1023, 1024, 4 * 2**20, 293_601_280, 5 * 2**30, 3 * 2**42):
        assert run("bytes", n).replace(",", "") == binary(n)


def test_the_decay_dial_knows_every_head_of_every_layer():
    run = call("decay-dial")
    for layer in (0, 1, 40, 78, 79):
        slopes = [run("slope", head, layer) for head in range(1, 65)]
        np.testing.assert_allclose(slopes, ops.decay_slopes(64, layer, 80), rtol=1e-14)  # two libraries' powers
    assert run("halfLife", ops.decay_slopes(64, 78, 80)[63]) == pytest.approx(14_007, abs=0.5)
    assert run("left", 0.3, 7) == pytest.approx(math.exp(-2.1), rel=1e-14)


def test_the_decay_dial_knows_the_softmax_layers():
    run = call("decay-dial")
    kinds = MiniMaxConfig.text_01().layer_types
    assert [run("isSoftmax", layer) for layer in range(80)] == [kind == SOFTMAX for kind in kinds]


@pytest.mark.parametrize("s", [0.0, 0.25, math.log(2), 3.0])
def test_the_step_machine_is_the_recurrence(s):
    """Eleven tokens of three terms each; S and o after every token."""
    run = call("step-machine")
    q, k, v = qkv(11, 4, 4, seed=1)
    tokens = [{"q": a.tolist(), "k": b.tolist(), "v": c.tolist()} for a, b, c in zip(q, k, v)]
    now, state = run("start"), None
    for t in range(11):
        part = slice(t, t + 1)
        out, state = ops.lightning_attention_recurrent(
            heads(q[part]), heads(k[part]), heads(v[part]), np.array([s]), state
        )
        phases = []
        for _ in range(3):
            now = run("step", now, tokens, s)
            phases.append(now["phase"])
        assert phases == ["decay", "write", "read"] and now["token"] == t
        assert_same(now["out"], out[0, 0, 0])
        assert_same(now["S"], state[0, 0])


@pytest.mark.parametrize("cut", [1, 2, 5, 8])
@pytest.mark.parametrize("s", [0.0, 0.2, 1.0])
def test_the_chunk_cutter_is_the_direct_and_the_chunked_form(cut, s):
    """Both its ways, and the state that it carries over the cut."""
    run = call("chunk-cutter")
    q, k, v = qkv(9, 2, 3, seed=cut)
    slopes = np.array([s])
    whole, _ = ops.lightning_attention_direct(heads(q), heads(k), heads(v), slopes)
    first, state = ops.lightning_attention_chunked(heads(q[:cut]), heads(k[:cut]), heads(v[:cut]), slopes, chunk=cut)
    second, _ = ops.lightning_attention_chunked(heads(q[cut:]), heads(k[cut:]), heads(v[cut:]), slopes, state, chunk=9)
    halves = run("cutInTwo", q, k, v, s, cut)
    assert_same(run("direct", q, k, v, s), whole[0, 0])
    assert_same(halves["state"], state[0, 0])
    assert_same(halves["out"], np.concatenate([first, second], axis=2)[0, 0])


def test_the_chunk_cutter_finds_a_difference_where_there_is_one():
    run = call("chunk-cutter")
    assert run("largestDifference", [[1.0], [2.0]], [[1.0], [2.5]]) == 0.5


def test_the_chunk_cutters_own_tokens_agree_to_rounding_wherever_they_are_cut():
    run = call("chunk-cutter")
    for T in range(4, 13):
        own = run("tokens", T)
        q, k, v = own["q"], own["k"], own["v"]
        whole = run("direct", q, k, v, 0.2)
        differences = [run("largestDifference", whole, run("cutInTwo", q, k, v, 0.2, c)["out"]) for c in range(1, T)]
        assert max(differences) < 1e-13  # outputs are below 100


def awkward_numbers(dtype):
    """Ties, subnormals, the largest numbers and what lies beyond them, and a thousand others."""
    rng = np.random.default_rng(0)
    lively = rng.standard_normal(1000) * 2.0 ** rng.integers(-28, 17, 1000)
    ties = 1 + np.arange(64) / 2**12
    edges = [0, 2**-24, 2**-25, 1.5 * 2**-24, 2**-14, 65504, 65519, 1 + 2**-24, 1 + 2**-8, 1 + 3 * 2**-8]
    x = np.concatenate([lively, ties, edges])
    x = np.concatenate([x, -x])
    return x[np.abs(x) < 65520] if dtype == "float16" else x  # JSON has no infinity


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_the_rounding_lens_rounds_to_the_same_numbers(dtype):
    """Bit for bit: rounding has one right answer."""
    run = call("rounding-lens")
    x = awkward_numbers(dtype)
    rounded = run(f"((xs) => xs.map((x) => roundTo(x, '{dtype}')))", x)
    np.testing.assert_array_equal(rounded, round_to(x, dtype))


def test_the_rounding_lens_overflows_where_float16_does():
    run = call("rounding-lens")
    assert run("((x) => roundTo(x, 'float16') === Infinity)", 65520.0)
    assert not run("((x) => roundTo(x, 'float16') === Infinity)", 65519.99)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("s, n", [(0.0, 40), (math.log(2) / 64, 300), (math.log(2) / 1024, 3000)])
def test_the_rounding_lens_adds_up_to_the_same_sum(dtype, s, n):
    """Every product and sum rounded; the only room is one exponential, where libraries may differ in the last bit."""
    run = call("rounding-lens")
    written = round_to(np.arange(1, n + 1) * 0.6180339887498949 % 1, dtype)
    keep, S = round_to(np.exp([-s]), dtype), np.zeros(1)
    for x in written:
        S = round_to(round_to(keep * S, dtype) + x, dtype)
    assert run("accumulate", s, n, dtype) == pytest.approx(S[0], rel=1e-11 if dtype == "float64" else 0)


def test_the_rounding_lens_shows_the_bits_that_numpy_has():
    run = call("rounding-lens")
    assert run("bitsOf", 1.25, "float16") == "1" + format(int(np.float16(1.25).view(np.uint16)) & 0x3FF, "010b")
    for x in (math.pi, 44.872063, 0.001):
        wide = int(np.float64(x).view(np.uint64)) & (2**52 - 1)
        assert run("bitsOf", x, "float64") == "1" + format(wide, "052b")


def test_the_rounding_lens_counts_right_bits():
    """An error of 2^-k leaves k bits; none at all leaves all that the type has."""
    run = call("rounding-lens")
    assert run("rightBits", 1 + 2**-5, 1.0, "bfloat16") == 5
    assert run("rightBits", 1.0, 1.0, "bfloat16") == 8
    assert run("rightBits", 1 + 2**-30, 1.0, "float16") == 11
    assert run("rightBits", 9.0, 1.0, "float32") == 0


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_router_routes_and_weighs_like_the_reference(k):
    run = call("router")
    logits = np.random.default_rng(k).standard_normal((12, 4)) * 3
    logits[:2] = [[1.0, 2.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]]  # among equals the lower index
    weights, indices = ops.route(logits, top_k=k)
    routed = [run("route", row, k) for row in logits]
    np.testing.assert_array_equal([r["indices"] for r in routed], indices)
    assert_same([r["weights"] for r in routed], weights)
    assert_same(run("balanceLoss", logits, k), ops.load_balancing_loss([logits[None]], k))
    assert_same(run("load", logits, k), np.bincount(indices.ravel(), minlength=4) / 12)


def test_the_routers_logits_are_a_linear_map():
    run = call("router")
    experts = np.array([[1, 0.4], [-0.4, 1], [-1, -0.4], [0.4, -1]])
    token = np.array([0.3, -0.7])
    assert_same(run("logitsOf", token, 2.5), 2.5 * ops.linear(token[None], experts)[0])


@pytest.mark.parametrize("pattern, length", [("7:1", 1), ("7:1", 2**20), ("half", 1000), ("all", 1000), ("none", 7)])
def test_the_layer_pattern_counts_like_the_reference(pattern, length):
    """To the byte and to the operation."""
    run = call("layer-pattern")
    kinds = {"7:1": HYBRID * 10, "half": (LIGHTNING, SOFTMAX) * 40, "all": (LIGHTNING,) * 80, "none": (SOFTMAX,) * 80}
    config = MiniMaxConfig(layer_types=kinds[pattern])
    counts, many = count(config, length), config.layer_types.count(SOFTMAX)
    assert run("stateBytes", 80 - many) == counts.state_bytes
    assert run("kvBytes", many, length) == counts.kv_bytes_per_token * length
    assert run("flops", 80 - many, many, length) == counts.flops_per_token


LENGTHS = [(1, 1), (1000, 3), (2**20, 16)]


@pytest.mark.parametrize("length, batch", LENGTHS)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_calculator_counts_like_the_reference(preset, length, batch):
    """To the byte and to the operation, in every type."""
    run, config = call("calculator"), PRESETS[preset]
    sizes, counts = run("(() => PRESETS)")[preset], count(config, length)
    found = run("parameters", sizes)
    assert (found["total"], found["activated"]) == (counts.total, counts.activated)
    assert run("weightBytes", sizes, "bfloat16") == counts.bytes_bf16
    assert run("weightBytes", sizes, "float32") == 4 * counts.total
    for kind in ("int8", "nf4", "nf4-double"):
        assert run("weightBytes", sizes, kind) == quantized_bytes(config, kind)[0]
    kept = run("remembered", sizes, length, batch)
    assert kept == {
        "states": batch * counts.state_bytes,
        "slots": batch * counts.kv_bytes_per_token * length,
    }
    assert run("flops", sizes, length) == counts.flops_per_token


FIELDS = {
    "D": "hidden_size",
    "H": "num_attention_heads",
    "G": "num_key_value_heads",
    "d": "head_dim",
    "E": "num_local_experts",
    "K": "num_experts_per_tok",
    "F": "intermediate_size",
    "V": "vocab_size",
}


def refused(sizes):
    """Whether there is no configuration of these sizes; the calculator does not ask how many channels rotate."""
    try:
        MiniMaxConfig(**{FIELDS[name]: x for name, x in sizes.items() if name in FIELDS}, rotary_dim=0)
    except ValueError:
        return True
    return False


def test_the_calculator_refuses_what_the_configuration_refuses():
    """Each size by itself, and every pair of heads, key heads, experts and experts a token up to six."""
    run = call("calculator")
    text_01 = run("(() => PRESETS)")["MiniMax-Text-01"]
    assert run("impossible", text_01) is None
    for name in FIELDS:
        for x in (-1, 0, 1, 2.5, None):
            sizes = text_01 | {"G": 1, "K": 1} | {name: x}
            wrong = run("impossible", sizes)
            assert (wrong is not None) == refused(sizes), (name, x)
            assert wrong is None or wrong["fields"] == [name]
    for a in range(1, 7):
        for b in range(1, 7):
            for pair, told in (("HG", f"{a} heads cannot share {b} key heads"), ("EK", f"cannot go to {b} of {a} ")):
                sizes = text_01 | dict(zip(pair, (a, b), strict=True))
                wrong = run("impossible", sizes)
                assert (wrong is not None) == refused(sizes), sizes
                assert wrong is None or (wrong["fields"] == list(pair) and told in wrong["why"])


@pytest.mark.parametrize("name, least", [("L", 1), ("every", 0), ("n", 1), ("B", 1)])
def test_the_calculator_refuses_what_is_no_number(name, least):
    run = call("calculator")
    sizes = run("(() => PRESETS)")["MiniMax-Text-01"] | {"n": 1, "B": 1}
    for x in (least - 1, least + 0.5, None, 1e9):
        wrong = run("impossible", sizes | {name: x})
        assert wrong["fields"] == [name] and f"at least {least}" in wrong["why"]
    assert run("impossible", sizes | {name: least}) is None


@pytest.mark.parametrize("preset", PRESETS)
def test_the_calculators_prompt_is_its_tokens(preset):
    """With chunks of one position a prompt costs what its tokens cost, but for the scores of each with itself."""
    run, config = call("calculator"), PRESETS[preset]
    sizes, n = run("(() => PRESETS)")[preset], 50
    one_by_one = sum(run("flops", sizes, position) for position in range(1, n + 1))
    heads_of_all_but_one = 2 * config.vocab_size * config.hidden_size * (n - 1)
    own = 4 * config.num_attention_heads * config.head_dim * config.layer_types.count(LIGHTNING) * n
    assert run("prefill", sizes, n, 1) == one_by_one - heads_of_all_but_one + own


def test_the_recall_beside_a_pattern_is_the_measured_one():
    measured = json.loads((DOCS.parent / "notebooks" / "recall" / "measured.json").read_text(encoding="utf-8"))
    run = call("layer-pattern")
    told = run("(() => RECALL)")
    assert list(told) == ["LLLL", "LLLS", "SSSS"]
    for pattern, seeds in measured["accuracy"].items():
        last = [seed[measured["pairs"].index(64)] for seed in seeds]
        want = {"share": pattern.count("S") / 4, "mean": np.mean(last), "worst": min(last), "best": max(last)}
        assert told[pattern] == pytest.approx(want, abs=6e-5)
    assert [run("nearest", softmax) for softmax in (0, 9, 11, 20, 51, 80)] == [
        *[["LLLL"]] * 2, *[["LLLS"]] * 2, *[["SSSS"]] * 2
    ]  # fmt: skip
    assert run("nearest", 10) == ["LLLL", "LLLS"], "the released pattern stands halfway between"


def test_the_live_cell_runs_the_references_ops_and_no_more(tmp_path):
    """What it fetches, prepares and runs, here by a Python that has NumPy and neither jaxtyping nor the package."""
    run, live = call("live-cell"), DOCS / "assets" / "live"
    files = run("(() => FILES)")
    assert sorted(files) == sorted(
        path.relative_to(live).as_posix() for path in (*live.glob("*.py"), *live.glob("ops/*.py"))
    )
    (tmp_path / "minimax_numpy" / "ops").mkdir(parents=True)
    (tmp_path / "minimax_numpy" / "__init__.py").touch()
    for file in files:
        (tmp_path / "minimax_numpy" / file).write_bytes((live / file).read_bytes())
    program = run("(() => PREPARE)") + run("(() => CODE)") + "assert 'safetensors' not in sys.modules\n"
    program += "assert sys.modules['minimax_numpy'].__file__.startswith(os.getcwd())\n"
    told = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == "[8. 8. 6.]" and told.stdout in PAGE.read_text(encoding="utf-8")


def test_the_live_cell_fetches_nothing_before_it_is_asked():
    """The runtime is imported in one place, which only the button reaches."""
    text = (FOLDER / "live-cell.js").read_text(encoding="utf-8")
    assert text.count("import(") == 1 and text.count("runtime(") == 2
    assert text.index('button("Run"') < text.index("await runtime(say)") < text.index("place.replaceChildren(code")
