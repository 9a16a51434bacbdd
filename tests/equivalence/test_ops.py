"""Every op, in both packages, in two stages: the same numbers, then honest rounding.

*Same numbers*: float64 against float64, where only the order of a sum may differ.

*Honest rounding*: both get the same rounded inputs. A result may be off from float64 by

    2 · what the same function in NumPy is off, computed in float32 and rounded once at the end
    + 4u · the RMS of the function on |inputs|

u is the unit roundoff of the result's type. The first term is what the algorithm costs; the second is what
another order of a sum may cost, and a sum of mixed signs loses as much as its terms are large, not as the result is.
"""

from itertools import product

import numpy as np
import pytest
from close import NUMPY, TORCH, array, assert_same, rms
from minimax_numpy import ops
from minimax_numpy.trace import UNIT_ROUNDOFF, round_to

# Sums of products, for which the second term is taken on |inputs|; the others have nothing to cancel.
CONTRACT = {"linear", "swiglu", "mix_experts", "output_gate", "softmax_attention"}
CONTRACT |= {f"lightning_attention_{form}" for form in ("direct", "recurrent", "chunked")}
# Inputs that the model keeps in at least float32, whatever the activations are: they are not rounded further.
WIDE = {"slopes", "state", "weights", "router_logits"}


def cases() -> dict[str, tuple[str, dict]]:
    """What each op is tried on: a name, the op, and its arguments by name."""
    rng = np.random.default_rng(0)
    x = lambda *shape: rng.standard_normal(shape)  # noqa: E731
    found = {}

    def add(op: str, title: str, **arguments):
        found[f"{op}: {title}"] = op, arguments

    for B, H, T, d, e in [(1, 1, 1, 1, 1), (2, 3, 17, 5, 7), (1, 4, 64, 8, 8), (2, 1, 33, 16, 4), (1, 2, 130, 16, 16)]:
        for state, padded in product((False, True), repeat=2):
            mask = rng.random((B, T)) < 0.7
            inputs = {"q": x(B, H, T, d), "k": x(B, H, T, d), "v": x(B, H, T, e), "slopes": ops.decay_slopes(H, 1, 4)}
            inputs |= {"state": x(B, H, d, e)} if state else {}
            inputs |= {"mask": mask} if padded else {}
            title = f"T={T}{', state' * state}{', padding' * padded}"
            add("lightning_attention_direct", title, **inputs)
            add("lightning_attention_recurrent", title, **inputs)
            for chunk in (1, 16, 64, T, 256):
                add("lightning_attention_chunked", f"{title}, chunk={chunk}", **inputs, chunk=chunk)

    shapes = [(1, 1, 1, 1, 1, 2, 2), (2, 6, 2, 5, 9, 8, 8), (1, 4, 4, 33, 33, 16, 4), (2, 3, 1, 1, 7, 5, 5)]
    for B, H, G, T, J, d, e in shapes:
        visible = rng.random((B, T, J)) < 0.6
        visible[0, 0] = False
        for title, seen in (("causal", None), ("some keys, and none", visible)):
            inputs = {"q": x(B, H, T, d), "k": x(B, G, J, d), "v": x(B, G, J, e), "visible": seen}
            add("softmax_attention", f"T={T}, J={J}, {title}", **inputs)
    lengths, keys = (
        np.array([[0, 1, 2, 3], [6, 7, 7, 8]]),
        np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8], [7, 8, -1, 3, 4, 5, 6, 0, 1]]),
    )
    for window in (None, 1, 3):
        add("visible_keys", f"window {window}", positions=lengths, key_positions=keys, sliding_window=window)
    for rotary_dim in (0, 2, 6, 8):
        inputs = {"x": x(2, 3, 4, 8), "positions": lengths * 1000, "rotary_dim": rotary_dim, "base": 1e4}
        add("apply_rotary", f"{rotary_dim} of 8", **inputs)
        add("rotary_frequencies", str(rotary_dim), rotary_dim=rotary_dim, base=1e7)
    for H, layer, L, rule in product((1, 3, 8, 12), (0, 3), (4, 80), ("original", "transformers")):
        add("decay_slopes", f"{H}, {layer}, {L}, {rule}", num_heads=H, layer_idx=layer, num_layers=L, rule=rule)

    for E, K, D, F in [(1, 1, 3, 2), (5, 2, 7, 4), (8, 3, 16, 24)]:
        for shape in [(1,), (2, 9)]:
            weights, indices = ops.route(x(*shape, E), K)
            experts = {"gate_up": x(E, 2 * F, D), "down": x(E, D, F)}
            for act in ("silu", "gelu"):
                mixed = {"x": x(*shape, D), "weights": weights, "indices": indices, **experts, "hidden_act": act}
                add("mix_experts", f"{K} of {E}, {shape}, {act}", **mixed)
            one = {"gate_up": experts["gate_up"][0], "down": experts["down"][0]}
            add("swiglu", f"F={F}, {shape}", x=x(*shape, D), **one)
            add("route", f"{K} of {E}, {shape}", logits=4 * x(*shape, E), top_k=K)
    add("route", "ties", logits=np.array([[1.0, 2, 2, 1, 2], [0, 0, 0, 0, 0]]), top_k=4)

    heads, row, logits = x(2, 3, 4, 6), x(2, 5, 12), x(2, 5, 7) * 3
    labels, mask = rng.integers(0, 7, (2, 5)), np.array([[0, 1, 1, 1, 1], [1, 1, 0, 1, 1]], bool)
    for act in ("sigmoid", "silu", "gelu"):
        add(act, "far and near", x=np.concatenate([x(50), np.linspace(-30, 30, 51)]))
    add("activate", "silu", x=heads)
    add("activate", "gelu", x=heads, hidden_act="gelu")
    for postnorm in (True, False):
        inputs = {"x": row, "normed": x(2, 5, 12), "update": x(2, 5, 12)}
        add("add_residual", f"postnorm {postnorm}", **inputs, alpha=1.7, beta=0.6, postnorm=postnorm)
    add("rms_norm", "epsilon large", x=row, weight=x(12), eps=0.1)
    add("rms_norm", "of small numbers", x=row * 1e-3, weight=x(12))
    add("inner_norm", "of small numbers", x=row * 1e-3, weight=x(12))
    add("linear", "no bias", x=row, weight=x(5, 12))
    add("linear", "bias", x=heads, weight=x(5, 6), bias=x(5))
    add("split_heads", "", x=row, num_heads=3)
    add("merge_heads", "", x=heads)
    add("split_qkv", "silu", qkv=row, num_heads=2)
    add("split_qkv", "gelu", qkv=row, num_heads=2, hidden_act="gelu")
    add("softmax", "nothing to see", scores=np.where(rng.random((4, 6)) < 0.5, x(4, 6), -np.inf))
    add("softmax", "not a single one", scores=np.full((2, 3), -np.inf))
    add("log_softmax", "", logits=logits)
    add("cross_entropy", "", logits=logits, labels=np.where(mask, labels, -100))
    add("cross_entropy", "no label", logits=logits, labels=np.full((2, 5), -100))
    add("causal_loss", "", logits=logits, labels=labels)
    add("causal_loss", "padded", logits=logits, labels=labels, mask=mask)
    add("load_balancing_loss", "", router_logits=[x(2, 5, 6) for _ in range(3)], top_k=2)
    add("load_balancing_loss", "padded", router_logits=[x(2, 5, 6) for _ in range(3)], top_k=2, mask=mask)
    add("classification_loss", "classes", logits=logits[0], labels=labels[0])
    add("classification_loss", "shares", logits=logits[0], labels=rng.random((5, 7)))
    add("classification_loss", "numbers", logits=logits[0, :, :1], labels=x(5))
    add("document_rows", "", cu_seqlens=np.array([0, 3, 4, 9]))
    add("unpack", "", x=x(1, 2, 9, 3), rows=ops.document_rows(np.array([0, 3, 4, 9]))[0])
    add("pack", "", x=x(3, 2, 5, 4), mask=ops.document_rows(np.array([0, 3, 4, 9]))[1])
    return found


CASES = cases()
WEIGHT = np.random.default_rng(9).standard_normal((12, 8))


def test_every_op_is_tried():
    assert {op for op, _ in CASES.values()} | {"output_gate", "using"} == set(ops.__all__)


def run(side, op: str, arguments: dict, dtype: str | None = None, **more) -> list:
    """Call a package's op; numbers are given in ``dtype``, less those that stay wide."""

    def give(name, x):
        if isinstance(x, list):
            return [give(name, part) for part in x]
        if not isinstance(x, np.ndarray):
            return x
        floating = dtype is not None and x.dtype.kind == "f" and name != "slopes"
        if not floating:
            return side.wrap(x)
        return side.wrap(x, "float32" if name in WIDE and dtype != "float64" else dtype)

    result = getattr(side.package.ops, op)(**{name: give(name, x) for name, x in arguments.items()}, **more)
    return list(result) if isinstance(result, tuple) else [result]


def rounded(arguments: dict, dtype: str) -> dict:
    """The same arguments, rounded to a type, in float64."""

    def narrow(name, x):
        if isinstance(x, list):
            return [narrow(name, part) for part in x]
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or name == "slopes":
            return x
        return round_to(x, "float32" if name in WIDE else dtype)

    return {name: narrow(name, x) for name, x in arguments.items()}


def magnitude(op: str, arguments: dict, exact: list) -> list[float]:
    """How large the terms of a result's sums are."""
    if op not in CONTRACT:
        return [rms(x) for x in exact]
    numbers = {name for name, x in arguments.items() if isinstance(x, np.ndarray) and x.dtype.kind == "f"} - {"slopes"}
    plus = {name: np.abs(x) if name in numbers else x for name, x in arguments.items()}
    return [rms(x) for x in run(NUMPY, op, plus)]


def assert_honest(side, op: str, arguments: dict, dtype: str, **more) -> None:
    arguments = rounded(arguments, dtype)
    exact, plain = run(NUMPY, op, arguments), run(NUMPY, op, arguments, "float32")
    for got, want, simple, size in zip(
        run(side, op, arguments, dtype, **more), exact, plain, magnitude(op, arguments, exact), strict=True
    ):
        kind = str(got.dtype).removeprefix("torch.")
        if want.dtype.kind != "f":
            np.testing.assert_array_equal(array(got), want)
            continue
        allowed = 2 * rms(round_to(simple, kind) - want) + 4 * UNIT_ROUNDOFF[kind] * size
        found = rms(array(got).astype(np.float64) - want)
        assert found <= allowed, f"off by {found:.1e}, allowed {allowed:.1e} in {kind}"


@pytest.mark.parametrize("title", CASES)
def test_same_numbers_in_float64(title):
    """Whatever the shape: one position, odd lengths, one head, shared heads, several chunks, a state, padding."""
    op, arguments = CASES[title]
    for got, want in zip(run(TORCH, op, arguments), run(NUMPY, op, arguments), strict=True):
        assert str(got.dtype).removeprefix("torch.") == str(want.dtype)
        if want.dtype.kind == "f" and not np.isnan(want).any():
            assert_same(got, want)
        else:
            np.testing.assert_array_equal(array(got), want)


NUMBERLESS = {"decay_slopes", "rotary_frequencies", "visible_keys", "document_rows"}  # nothing in, so nothing to round
ROUNDED = [title for title, (op, _) in CASES.items() if op not in NUMBERLESS and title != "cross_entropy: no label"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("title", ROUNDED)
def test_the_twin_rounds_honestly(title, dtype):
    assert_honest(TORCH, *CASES[title], dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("title", ROUNDED)
def test_the_reference_rounds_honestly(title, dtype):
    """NumPy's own float16 as well, which a float16 model computes in."""
    assert_honest(NUMPY, *CASES[title], dtype)


@pytest.mark.parametrize("title", [title for title in CASES if title.startswith("softmax_attention")])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_eager_is_sdpa(title, dtype):
    """The equation written out and the fused kernel: the same numbers, and both honest."""
    op, arguments = CASES[title]
    if dtype == "float64":
        eager, sdpa = (run(TORCH, op, arguments, implementation=name)[0] for name in ("eager", "sdpa"))
        assert_same(eager, sdpa)
    else:
        assert_honest(TORCH, op, arguments, dtype, implementation="eager")


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_output_gate(dtype):
    """The one op that takes a function: the layer's own projection."""
    rng = np.random.default_rng(0)
    inputs = {"y": rng.standard_normal((2, 3, 12)), "x": rng.standard_normal((2, 3, 8)), "w": WEIGHT}

    def gate(side, inputs, dtype=None):
        y, x, w = (side.wrap(inputs[name], dtype) for name in "yxw")
        return array(side.package.ops.output_gate(y, x, lambda x: x @ w.T)).astype(np.float64)

    if dtype == "float64":
        return assert_same(gate(TORCH, inputs), gate(NUMPY, inputs))
    inputs = rounded(inputs, dtype)
    exact, plain = gate(NUMPY, inputs), round_to(gate(NUMPY, inputs, "float32"), dtype)
    size = rms(gate(NUMPY, {name: np.abs(x) for name, x in inputs.items()}))
    allowed = 2 * rms(plain - exact) + 4 * UNIT_ROUNDOFF[dtype] * size
    assert rms(gate(TORCH, inputs, dtype) - exact) <= allowed
