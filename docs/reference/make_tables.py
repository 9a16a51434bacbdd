"""Write the tables that pages take from the code: `python docs/reference/make_tables.py`.

A page marks the place, `<!-- table: name -->` … `<!-- /table -->`; what stands between is made here, and a test
makes it again and compares. The hover text of the site is the first sentence of each entry of the glossary.
"""

import ast
import dataclasses
import re
from pathlib import Path

import numpy as np
from minimax_numpy import MiniMaxConfig, MiniMaxForCausalLM, ops, shapes
from minimax_numpy.check import DEFECTS
from minimax_numpy.check.judge import allowance, rms
from minimax_numpy.check.single import MAGNITUDES, Case, answers
from minimax_numpy.checkpoint import pieces
from minimax_numpy.config import SOFTMAX
from minimax_numpy.counts import binary, count, quantized_bytes
from minimax_numpy.trace import Trace, recording, round_to

DOCS = Path(__file__).parents[1]
PLACE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def table(head: str, rows) -> str:
    """Markdown of a table."""
    head = f"| {head} |"
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)])


# --- Notation ------------------------------------------------------------------------------------------------------


def axes() -> dict[str, str]:
    """Letter → what it counts, from the docstring of shapes."""
    return dict(re.findall(r"^\| ``(\w)`` \| (.*?) \|", shapes.__doc__, re.MULTILINE))


def axis_letters():
    """The axis letters and their size in the released model."""
    rows = re.findall(r"^\| ``(\w)`` \| (.*?) \| (.*?) \|", shapes.__doc__, re.MULTILINE)
    return table("letter | counts | MiniMax-Text-01", [(f"`{letter}`", *rest) for letter, *rest in rows])


def named_arrays():
    """The named arrays of shapes, in the order of the file."""
    body = ast.parse(Path(shapes.__file__).read_text(encoding="utf-8")).body
    rows = []
    for node, after in zip(body, body[1:], strict=False):
        if isinstance(node, ast.Assign):
            kind, axes = node.value.value.id, node.value.slice.elts[1].value
            link = f"[{node.targets[0].id}][minimax_numpy.shapes.{node.targets[0].id}]"
            axes = axes.replace("*tokens", "…")
            numbers = {"Bool": "yes or no", "Int": "integers", "Float": "real"}[kind]
            rows.append((link, f"`{axes}`<br>{numbers}", after.value.value.replace("\n", " ")))
    return table("name | axes | what it is", rows)


# --- Weights -------------------------------------------------------------------------------------------------------


def weight_rows(config: MiniMaxConfig, head: str, names):
    """A row for each parameter: its name and shape in memory, and its parts on disk."""
    sizes = config.parameter_shapes(head)
    for name in names:
        shape = sizes[name]
        parts = pieces(name, shape)
        on_disk = dict.fromkeys(inside(disk) for disk, _ in parts)  # one for all experts
        told = "the same" if list(on_disk) == [inside(name)] else "<br>".join(f"`{disk}`" for disk in on_disk)
        if len(parts) > 1:
            told += f"<br>each {size(np.broadcast_to(np.float32(0), shape)[parts[0][1]].shape)}"
        yield f"`{inside(name)}`", size(shape), told


def inside(name: str) -> str:
    """A name without its layer, an expert without its number."""
    return re.sub(r"experts\.\d+", "experts.M", re.sub(r"^model\.layers\.\d+\.", "", name))


def size(shape) -> str:
    """A shape in figures."""
    return " × ".join(f"{n:,}" for n in shape) or "1"


def weights_of(prefix: str, config=None, head: str = "MiniMaxForCausalLM") -> str:
    """The table of the parameters whose names begin so."""
    config = config or MiniMaxConfig.text_01()
    names = [name for name in config.parameter_shapes(head) if re.match(prefix, name)]
    return table("in memory | shape | on disk", weight_rows(config, head, names))


def weights_around():
    return weights_of(r"model\.embed|model\.norm|lm_head")


def weights_every_layer():
    return weights_of(r"model\.layers\.0\.(?!self_attn)")


def weights_lightning():
    return weights_of(r"model\.layers\.0\.self_attn")


def weights_softmax():
    return weights_of(r"model\.layers\.7\.self_attn")


def weights_heads():
    """The task heads, for two labels; what they share with the causal model is not listed."""
    rows = []
    for head in ("SequenceClassification", "TokenClassification", "QuestionAnswering"):
        for name, shape in MiniMaxConfig.text_01().parameter_shapes(f"MiniMaxFor{head}").items():
            if not name.startswith("model."):
                rows.append((f"`MiniMaxFor{head}`", f"`{name}`", size(shape)))
    return table("model | name, in memory and on disk | shape, two labels", rows)


# --- Shapes --------------------------------------------------------------------------------------------------------

PARTS = {
    "model.embed_tokens": ("B T D", "the stream starts"),
    "model.layers.N.input_layernorm": ("B T D", "n₁, what attention reads and the shortcut carries"),
    "self_attn.qkv_proj": ("B T 3·H·d", "lightning: q, k, v of head 0, then of head 1, …"),
    "self_attn.state": ("B H d d", "lightning: the memory after the last token"),
    "self_attn.norm.input": ("B T H·d", "lightning: what the heads read, side by side"),
    "self_attn.norm": ("B T H·d", "lightning: normed as one vector"),
    "self_attn.output_gate": ("B T H·d", "lightning: the gate before its sigmoid"),
    "self_attn.out_proj.input": ("B T H·d", "lightning: gated"),
    "self_attn.out_proj": ("B T D", "lightning: the update"),
    "self_attn.q_proj": ("B T H·d", "softmax: queries, before rotary"),
    "self_attn.k_proj": ("B T G·d", "softmax: keys, before rotary"),
    "self_attn.v_proj": ("B T G·d", "softmax: values"),
    "self_attn.query": ("B T H d", "softmax: queries, after rotary"),
    "self_attn.key": ("B T G d", "softmax: keys, after rotary, as they are cached"),
    "self_attn.o_proj.input": ("B T H·d", "softmax: what the heads read"),
    "self_attn.o_proj": ("B T D", "softmax: the update"),
    "post_attention_layernorm.input": ("B T D", "α n₁ + β · update"),
    "post_attention_layernorm": ("B T D", "n₂, what router and experts read"),
    "mlp.gate": ("B T E", "router scores"),
    "mlp.gate.weights": ("B T K", "shares of the chosen; they sum to 1"),
    "mlp.gate.indices": ("B T K", "the chosen, best first; integers"),
    "mlp": ("B T D", "the experts’ update"),
    "model.layers.N": ("B T D", "α n₂ + β · update: the layer’s output"),
    "model.norm": ("B T D", "the last norm"),
    "lm_head": ("B T V", "logits"),
}


def letters(config: MiniMaxConfig, B: int, T: int) -> dict[str, int]:
    """The size of each axis."""
    c = config
    return {
        "B": B,
        "T": T,
        "V": c.vocab_size,
        "D": c.hidden_size,
        "H": c.num_attention_heads,
        "3": 3,
        "G": c.num_key_value_heads,
        "d": c.head_dim,
        "E": c.num_local_experts,
        "K": c.num_experts_per_tok,
    }


def sized(axes: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """`B T 3·H·d` in figures."""
    return tuple(int(np.prod([sizes[letter] for letter in axis.split("·")])) for axis in axes.split())


def traced(config: MiniMaxConfig, B: int, T: int) -> dict[str, tuple[int, ...]]:
    """The shape of each part of a run of one lightning layer and one softmax layer."""
    with recording(trace := Trace()):
        MiniMaxForCausalLM(config)(np.zeros((B, T), int))
    found = {}
    for name, x in trace.items():
        short = re.sub(r"layers\.\d+", "layers.N", name)
        if short not in ("model.layers.N", "model.layers.N.input_layernorm"):
            short = short.removeprefix("model.layers.N.")
        assert found.setdefault(short, x.shape) == x.shape, name
    return found


def shapes_of_everything():
    """Each part of a layer: letters that were checked against a run, and sizes of two models."""
    tiny = MiniMaxConfig.tiny()
    small, large = letters(tiny, 2, 5), letters(MiniMaxConfig.text_01(), 1, 100)
    rows = []
    for name, (axes, what) in PARTS.items():
        figures = "<br>".join("×".join(map(str, sized(axes, sizes))) for sizes in (small, large))
        rows.append((f"`{name}`<br>{what}", f"`{axes}`", figures))
    return table("part | axes | tiny, released", rows)


# --- Tolerances ----------------------------------------------------------------------------------------------------

RULES = {
    "absolute, 0.1": lambda got, want: np.abs(got - want).max() < 0.1,
    "absolute, 0.02": lambda got, want: np.abs(got - want).max() < 2e-2,
    "absolute, 0.01": lambda got, want: np.abs(got - want).max() < 1e-2,
    "rtol 6e-4, atol 2e-3": lambda got, want: np.allclose(got, want, rtol=6e-4, atol=2e-3),
    "RMS ratio, 5e-3": lambda got, want: rms(got - want) < 5e-3 * rms(want),
    "float64, 1e-11": lambda got, want: rms(got - want) < 1e-11 * rms(want),
}
MISTAKES = {
    "reads before writing": "reads_before_writing",
    "decays its own token": "decays_own_token",
    "l/L for l/(L − 1)": "divides_by_L",
    "1e-5 left out": "leaves_out_the_epsilon",
    "one head 2 % too large": lambda out: out * np.where(np.arange(out.shape[1]) == 3, 1.02, 1.0)[:, None, None],
    "last position lost": lambda out: out * (np.arange(out.shape[2]) < out.shape[2] - 1)[:, None],
    "returns zeros": np.zeros_like,
}
H, T, WIDTH, LAYER, LAYERS = 8, 512, 32, 3, 80


def inputs(scale: float) -> Case:
    """q, k and v of normal numbers times a scale, and the slopes of a layer."""
    q, k, v = scale * ops.silu(np.random.default_rng(0).standard_normal((3, 1, H, T, WIDTH)))
    return Case("", {"q": q, "k": k, "v": v, "slopes": ops.decay_slopes(H, LAYER, LAYERS), "chunk": 64})


def mistaken(mistake, case: Case, dtype: str = "float64") -> np.ndarray:
    """The answer of a kernel that makes this mistake, in a type."""
    right = ops.lightning_attention_chunked
    if callable(mistake):
        return round_to(mistake(answers(right, case, right, dtype, "numpy")[0]), dtype)
    planted = DEFECTS[mistake].plant(ops)
    if "decay_slopes" in planted:
        case = Case("", {**case.arguments, "slopes": planted["decay_slopes"](H, LAYER, LAYERS)})
    kernel = planted.get("lightning_attention_chunked", right)
    return round_to(answers(kernel, case, right, dtype, "numpy")[0], dtype)


def what_tolerances_let_through():
    """Which mistakes pass which rule, by the scale of the inputs."""
    passing = {rule: [] for rule in RULES}
    for scale in (1.0, 0.1, 0.01):
        case = inputs(scale)
        want = answers(ops.lightning_attention_chunked, case)[0]
        got = {name: mistaken(mistake, case) for name, mistake in MISTAKES.items()}
        for rule, passes in RULES.items():
            let = [name for name in MISTAKES if passes(got[name], want)]
            passing[rule].append("**all seven**" if len(let) == len(MISTAKES) else " · ".join(let) or "none")
    return table("rule | inputs × 1 | inputs × 0.1 | inputs × 0.01", [(rule, *let) for rule, let in passing.items()])


def how_far_over():
    """The error of each mistake, in units of what this project's rule allows, by type."""
    case, rows = inputs(1.0), []
    right = ops.lightning_attention_chunked
    exact, magnitude = answers(right, case)[0], answers(MAGNITUDES["lightning_attention_chunked"], case)[0]
    types = ("float64", "float32", "bfloat16")
    plain = {dtype: round_to(answers(right, case, right, dtype, "numpy")[0], dtype) for dtype in types}
    for name, mistake in {"no mistake": lambda out: out, **MISTAKES}.items():
        cells = []
        for dtype in types:
            ratio = rms(mistaken(mistake, case, dtype) - exact) / allowance(dtype, exact, plain[dtype], magnitude)
            cells.append(rounded(ratio) if ratio <= 1 else f"**{rounded(ratio)}**")
        rows.append((name, *cells))
    return table(f"mistake | {' | '.join(types)}", rows)


def rounded(x: float) -> str:
    """One digit: no more is the same on every machine.

    >>> rounded(0), rounded(0.07), rounded(0.47), rounded(7.4), rounded(123456)
    ('0', '< 0.1', '0.5', '7', '1e5')
    """
    if x < 0.1:
        return "< 0.1" if x else "0"
    return f"{x:.1f}" if x < 1 else f"{x:.0f}" if x < 10 else f"{x:.0e}".replace("e+0", "e").replace("e+", "e")


# --- Hover text ----------------------------------------------------------------------------------------------------


# Plain words, such as token or state, would turn a page into dots.
HOVER = """GQA RoPE ALiBi RMSNorm DeepNorm SiLU SwiGLU MoE NF4 safetensors half-life prefill logits
unit roundoff|planted defect|planted defects|golden vectors|local pass|free pass|residual stream|balance loss
sliding window|speculative decoding|prefix caching|output gate|activated parameters|cross-check"""


def hovering() -> dict[str, str]:
    """Spelling on a page → term of the glossary."""
    spelled = [
        word.strip() for line in HOVER.splitlines() for word in (line.split("|") if "|" in line else line.split())
    ]
    terms = {term.lower(): term for term in glossary()}
    found = {}
    for word in spelled:
        term = terms.get(word.lower()) or terms[word.lower().removesuffix("s")]
        for spelling in {word, word[0].upper() + word[1:]}:
            found[spelling] = term
    return found


def glossary() -> dict[str, str]:
    """Term → definition, from the glossary's page."""
    text = (DOCS / "reference" / "glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^(\S.*)\n:   (.*(?:\n    .*)*)", text, re.MULTILINE)
    return {term: re.sub(r"\s+", " ", told) for term, told in entries}


def hover(told: str) -> str:
    """The first sentence, without markup."""
    sentence = re.split(r"(?<=[.!?]) (?=[A-Z])", told)[0]
    sentence = re.sub(r"\[([^]]+)\](\[[^]]*\]|\([^)]*\))", r"\1", sentence)
    return re.sub(r"[`*$]", "", sentence)


def abbreviations() -> str:
    """What is appended to every page."""
    told = glossary()
    return "".join(f"*[{spelling}]: {hover(told[term])}\n" for spelling, term in sorted(hovering().items()))


# --- Costs ---------------------------------------------------------------------------------------------------------


def presets() -> dict[str, MiniMaxConfig]:
    """The models that the calculator begins with."""
    text_01 = MiniMaxConfig.text_01()
    small = MiniMaxConfig.tiny(
        hidden_size=512, num_attention_heads=8, num_key_value_heads=2, head_dim=64, num_local_experts=8,
        intermediate_size=1024, vocab_size=32_000,
    )  # fmt: skip
    softmax = dataclasses.replace(text_01, layer_types=(SOFTMAX,) * 80)
    return {"MiniMax-Text-01": text_01, "all softmax": softmax, "a laptop’s": small}


def calculator():
    """What the presets weigh, remember and cost at 131,072 tokens."""
    n, rows = 131_072, []
    for name, config in presets().items():
        c = count(config, n)
        few = binary(quantized_bytes(config, "nf4")[0])
        kept = binary(c.state_bytes), binary(c.kv_bytes_per_token * n)
        cells = f"{c.total / 1e9:.4g} billion", f"{c.activated / 1e9:.4g}", binary(c.bytes_bf16), few, *kept
        rows.append((name, *cells, f"{c.flops_per_token / 1e9:.4g} billion"))
    return table("model | parameters | at work | bfloat16 | nf4 | states | keys and values | FLOPs a token", rows)


TENSORS = {
    "lightning_attention_chunked": ("`q` `k` `v` `slopes`", "`state` `mask` `chunk`", "`out` `new_state`"),
    "softmax_attention": ("`q` `k` `v`", "`visible`", "`out`"),
    "apply_rotary": ("`x` `positions` `rotary_dim`", "`base`", "`out`"),
    "rms_norm": ("`x` `weight`", "`eps`", "`out`"),
    "route": ("`logits`", "`top_k`", "`weights` `indices`"),
    "swiglu": ("`x` `gate_up` `down`", "", "`out`"),
    "output_gate": ("`y` `x` `project`", "", "`out`"),
    "silu": ("`x`", "", "`out`"),
}


def bring_tensor():
    """What a file that is brought to the page may hold."""
    rows = []
    for name, cells in TENSORS.items():
        module = getattr(ops, name).__module__.rpartition(".")[2]
        rows.append((f"[{name}][minimax_numpy.ops.{module}.{name}]", *cells))
    return table("op | inputs | may have | answers", rows)


def tables() -> dict[str, str]:
    """Name → Markdown."""
    makers = (
        axis_letters,
        named_arrays,
        weights_around,
        weights_every_layer,
        weights_lightning,
        weights_softmax,
        weights_heads,
        shapes_of_everything,
        what_tolerances_let_through,
        how_far_over,
        calculator,
        bring_tensor,
    )
    return {maker.__name__.replace("_", "-"): maker() for maker in makers}


def places() -> dict[Path, list[str]]:
    """Page → the tables that it holds."""
    texts = {page: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("**/*.md"))}
    return {page: names for page, text in texts.items() if (names := [m[2] for m in PLACE.finditer(text)])}


def filled(text: str, made: dict[str, str]) -> str:
    """A page with its tables made."""
    return PLACE.sub(lambda m: f"{m[1]}{made[m[2]]}\n{m[3]}", text)


if __name__ == "__main__":
    made = tables()
    for page in places():
        page.write_text(filled(page.read_text(encoding="utf-8"), made), encoding="utf-8", newline="\n")
    (DOCS / "includes" / "glossary.md").write_text(abbreviations(), encoding="utf-8", newline="\n")
