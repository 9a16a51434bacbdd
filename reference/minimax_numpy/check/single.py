"""Check one op: any function, NumPy or torch, against the reference over a sweep of shapes.

The function takes the arrays that the op takes, in its order. The sweep has odd lengths, length 1, one head,
a state handed in, several chunks, and padding where the op knows it. `check_op` says which case and which
position first went wrong, and what mistake that looks like.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args, get_type_hints

import numpy as np

from .. import ops
from ..trace import UNIT_ROUNDOFF, round_to
from .defects import DEFECTS, FORMS
from .judge import LIKENESS, allowance, first_wrong, judge, resemblance, rms
from .report import DIFFERENT, MISSING, Report, Row


class Case(NamedTuple):
    """Arguments of one call, in the op's order and by name, and what sets the case apart."""

    label: str
    arguments: dict[str, Any]


class Projection(NamedTuple):
    """An argument that is a function: multiply by a matrix."""

    weight: np.ndarray


def check_op(name: str, function: Callable, *, dtype: str = "float64", seed: int = 0) -> Report:
    """Compare a function with the op of that name.

    Parameters
    ----------
    name : str
        An op of ``minimax_numpy.ops``.
    function : callable
        Takes the op's arrays in its order; keyword arguments it lacks (``chunk``, ``mask``) are left out, and the
        cases that need them listed as missing. Whether it wants NumPy arrays or torch tensors is found out.
    dtype : {"float64", "float32", "bfloat16", "float16"}
        Of the arrays handed in, and what the answer is judged by. A NumPy function gets bfloat16 numbers in float32.
    seed : int
        For the numbers.

    Raises ValueError where there is no such op, dtype or function.
    """
    if name not in CASES:
        raise ValueError(f"There is no op {name!r} to check; there are {', '.join(sorted(CASES))}.")
    if dtype not in UNIT_ROUNDOFF:
        raise ValueError(f"dtype is {dtype!r}; there are {', '.join(UNIT_ROUNDOFF)}.")
    if not callable(function):
        raise ValueError(f"{function!r} is not a function; give one that takes the op's arrays.")
    right = getattr(ops, name)
    cases = list(CASES[name](np.random.default_rng(seed)))
    library = find_library(function, cases[0], right)
    report = Report(
        f"{getattr(function, '__qualname__', function)} against {name} · {dtype} · {library} · {len(cases)} cases",
        each="case",
    )
    outcomes = []
    for case in cases:
        expected = answers(right, case)
        rows = [Row(output, case.label, x.shape) for output, x in zip(outputs(name), expected, strict=True)]
        report.rows += rows
        if not accepts(function, case, right):
            for row in rows:
                row.verdict = MISSING
            continue
        try:
            found = answers(function, case, right, dtype, library)
        except (Exception, SystemExit) as error:  # it passed the first case, so it is this one that it cannot do
            told = str(error).partition("\n")[0]
            for row in rows:
                row.verdict, row.note = DIFFERENT, f"it fails with {type(error).__name__}: {told}"
            continue
        if len(found) != len(expected):
            raise ValueError(f"The function returns {len(found)} arrays; {name} returns {', '.join(outputs(name))}.")
        plain = sizes = expected  # float64 is not rounded
        if dtype != "float64":
            plain = [round_to(x, dtype) for x in answers(right, case, right, dtype, "numpy")]
            sizes = answers(MAGNITUDES[name], case) if name in MAGNITUDES else plain
        for i, row in enumerate(rows):
            allowed = allowance(dtype, expected[i], plain[i], sizes[i])
            judge_answer(row, name, case, found[i], expected[i], allowed)
        outcomes.append((case, rows, found, expected))
    if report.first:
        report.looks_like, report.cure = nearest_mistake(name, outcomes)
    return report


def answers(
    function: Callable, case: Case, right: Callable | None = None, dtype: str = "float64", library: str = "numpy"
) -> list[np.ndarray]:
    """Call a function on a case in a dtype and an array library; its answers as float64 NumPy arrays."""
    taken = inspect.signature(right or function).parameters
    positional, named = [], {}
    for key in (key for key in taken if key in case.arguments):  # in the op's own order
        x = convert(case.arguments[key], key, dtype, library)
        if taken[key].kind is not inspect.Parameter.KEYWORD_ONLY:
            positional.append(x)
        elif _takes(function, key):
            named[key] = x
    result = function(*positional, **named)
    results = result if isinstance(result, tuple | list) else (result,)
    return [to_numpy(x) for x in results]


def accepts(function: Callable, case: Case, right: Callable) -> bool:
    """Whether the function takes the mask that the case hands in; a chunk it lacks may be left out."""
    return _takes(function, "mask") or "mask" not in case.arguments or right is function


def _takes(function: Callable, key: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return key in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def convert(x: Any, key: str, dtype: str, library: str) -> Any:
    """An argument as the function wants it; slopes stay wide, for decay tables are built from them."""
    if isinstance(x, Projection):
        weight = convert(x.weight, "weight", dtype, library)
        return lambda y: y @ weight.T
    if isinstance(x, list):
        return [convert(item, key, dtype, library) for item in x]
    if not isinstance(x, np.ndarray):
        return x
    if np.issubdtype(x.dtype, np.floating):
        kind = dtype if key != "slopes" or dtype in ("float64", "float32") else "float32"
        x = round_to(x, kind).astype({"bfloat16": "float32"}.get(kind, kind))  # a copy, as below
        if library == "torch":
            torch = importlib.import_module("torch")
            return torch.from_numpy(x).to(getattr(torch, kind))
        return x
    return importlib.import_module("torch").from_numpy(x.copy()) if library == "torch" else x.copy()


def to_numpy(x: Any) -> np.ndarray:
    """An answer in NumPy and float64, indices and truths too."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = (x if x.is_complex() else x.double()).numpy()
    x = np.asarray(x)
    if np.iscomplexobj(x):
        raise ValueError("the answer is complex")
    return x.astype(np.float64)


def find_library(function: Callable, case: Case, right: Callable) -> str:
    """Try NumPy arrays; where they fail, or a tensor comes back, it is torch."""
    told = []
    for library in ("numpy", "torch"):
        try:
            answers(function, case, right, "float64", library)
            return library
        except ModuleNotFoundError as error:
            told.append(f"{error.name} is not installed")
        except Exception as error:
            told.append(
                f"with {library} arrays: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
    raise ValueError(f"The function fails on the first case ({case.label}) {'; '.join(told)}.")


def counted(case: Case, x: np.ndarray, exact: np.ndarray, output: str) -> np.ndarray:
    """The answer with padded positions set to zero: they are nobody's business."""
    mask = case.arguments.get("mask")
    if mask is None or "slopes" not in case.arguments or output == "state" or x.shape != exact.shape:
        return x
    return np.where(mask[:, None, :, None], x, 0.0)


def judge_answer(row: Row, name: str, case: Case, found: np.ndarray, exact: np.ndarray, allowed: float) -> None:
    """Fill in the row of one answer: at padding it need only be finite, elsewhere it is judged."""
    if not padding_is_finite(case, found, row.part):
        row.verdict, row.note = DIFFERENT, "it holds NaN or infinity at padded positions"
        return
    found, exact = counted(case, found, exact, row.part), counted(case, exact, exact, row.part)
    judge(row, found, exact, allowed)
    if row.wrong and found.shape == exact.shape:
        row.where = first_wrong(np.abs(found - exact), allowed, letters(name, outputs(name).index(row.part)))


def padding_is_finite(case: Case, x: np.ndarray, output: str) -> bool:
    """What is at padding is unspecified, but it is a number."""
    mask = case.arguments.get("mask")
    return mask is None or "slopes" not in case.arguments or output == "state" or bool(np.isfinite(x).all())


def outputs(name: str) -> list[str]:
    """What the op's answers are called."""
    return OUTPUTS.get(name, ["out"])


def letters(name: str, i: int) -> str:
    """The axes of an answer, from the op's own signature."""
    hint = get_type_hints(getattr(ops, name)).get("return")
    hint = (get_args(hint) or (hint,))[i] if get_args(hint) else hint
    return getattr(hint, "dim_str", "").replace("*", "")


def nearest_mistake(name: str, outcomes: list) -> tuple[str | None, str | None]:
    """The planted defect of this op whose answers are nearest to those that were found."""
    best, named = LIKENESS, None
    for defect in DEFECTS.values():
        planted = defect.plant(ops)
        if name not in planted or "rms_norm" in planted and len(planted) > 1:  # needs the whole model around it
            continue
        score = unlikeness(outcomes, planted[name], getattr(ops, name))
        if score < best:
            best, named = score, defect
    return (None, None) if named is None else (named.says, named.cure)


def unlikeness(outcomes: list, mistake: Callable, right: Callable) -> float:
    """Mean distance from a mistaken op over the answers that either of the two gets wrong."""
    distances = []
    for case, rows, found, expected in outcomes:
        try:
            mistaken = answers(mistake, case, right)
        except Exception:  # the mistake is impossible in this case
            mistaken = expected
        for row, f, e, m in zip(rows, found, expected, mistaken, strict=True):
            f, m = counted(case, f, e, row.part), counted(case, m, e, row.part)
            if not np.isfinite(m).all():  # a mistake that NaN at padding drowns
                continue
            e = counted(case, e, e, row.part)
            if row.wrong or (m.shape == e.shape and rms(m - e) > row.allowed * rms(e)):
                noise = row.allowed * rms(e) if row.allowed > 1e-10 else 0.0
                distances.append(resemblance(f, e, m, noise))
    return float(np.mean(distances)) if distances else 1.0


# --- The sweep -----------------------------------------------------------------------------------------------------


def lightning_cases(rng: np.random.Generator, chunk: bool = False) -> Iterator[Case]:
    """Whole and short chunks, one token, one head, unequal d and e, a state handed in, padding."""
    sweep = [
        ("several chunks, the last one short", 2, 3, 70, 8, 8, False),
        ("whole chunks", 1, 4, 64, 8, 8, True),
        ("one token onto a state", 2, 2, 1, 8, 8, True),
        ("one token", 1, 1, 1, 4, 4, False),
        ("one head, odd length", 1, 1, 33, 16, 16, True),
        ("one long chunk and one token", 1, 2, 33, 5, 5, False),
        ("eight wide heads", 1, 8, 35, 128, 128, True),
        ("a long sequence, heads that forget fast", 1, 2, 1000, 4, 4, False),
        ("padding on the left, in a hole and on the right", 3, 2, 41, 8, 8, True),
        ("padding that holds NaN", 3, 2, 19, 4, 4, True),
    ]
    for label, B, H, T, d, e, continued in sweep:
        q, k, v = (rng.standard_normal((B, H, T, n)) for n in (d, d, e))
        slopes = ops.lightning.decay_slopes(H, 2, 9) if T < 1000 else ops.lightning.decay_slopes(64, 0, 80)[:H]
        arguments: dict[str, Any] = {"q": q, "k": k, "v": v, "slopes": slopes}
        arguments["state"] = rng.standard_normal((B, H, d, e)) if continued else None
        if chunk:
            arguments["chunk"] = 32
        if B == 3:
            mask = np.ones((B, T), bool)
            mask[0, :9] = mask[1, 12:15] = mask[2, -7:] = False
            arguments["mask"] = mask
            if "NaN" in label:
                k[~np.broadcast_to(mask[:, None], k.shape[:3])] = np.nan
                v[~np.broadcast_to(mask[:, None], v.shape[:3])] = np.nan
        yield Case(label, arguments)


def attention_cases(rng: np.random.Generator) -> Iterator[Case]:
    """Grouped heads, cached keys, a window, a query that sees nothing."""
    for label, B, H, G, T, J, window in [
        ("causal, grouped heads", 2, 4, 2, 33, 33, None),
        ("one token onto cached keys", 2, 6, 2, 1, 20, None),
        ("several tokens onto cached keys", 1, 4, 4, 7, 19, None),
        ("one head, one token", 1, 1, 1, 1, 1, None),
        ("sliding window", 2, 4, 1, 21, 21, 5),
    ]:
        arrays: dict[str, Any] = {"q": rng.standard_normal((B, H, T, 8)), "k": rng.standard_normal((B, G, J, 8))}
        arrays["v"] = rng.standard_normal((B, G, J, 8))
        t = np.broadcast_to(np.arange(J - T, J), (B, T))
        arrays["visible"] = ops.attention.visible_keys(t, np.arange(J)[None], window) if window else None
        yield Case(label, arrays)
    arrays = {name: rng.standard_normal((1, 2, 6, 4)) for name in ("q", "k", "v")}
    unseen = np.tri(6, dtype=bool)[None].copy()
    unseen[0, 2] = False
    yield Case("a query that sees nothing", {**arrays, "visible": unseen})


def rotary_cases(rng: np.random.Generator) -> Iterator[Case]:
    """Half the head, the whole head, none of it; late positions, uneven rows."""
    for label, T, d, R, start in [
        ("half the head", 9, 16, 8, 0),
        ("none of it", 3, 8, 0, 0),
        ("the whole head", 5, 8, 8, 3),
        ("late", 4, 16, 8, 100_000),
    ]:
        positions = np.arange(T) + np.array([[start], [start + 2]])
        yield Case(
            label, {"x": rng.standard_normal((2, 3, T, d)), "positions": positions, "rotary_dim": R, "base": 1e7}
        )


def expert_cases(rng: np.random.Generator) -> Iterator[Case]:
    """Few and many tokens, every expert and one expert."""
    for label, T, K in (
        ("seven tokens, two of four", 7, 2),
        ("one token", 1, 2),
        ("one of four", 5, 1),
        ("all four", 5, 4),
    ):
        weights, indices = ops.experts.route(rng.standard_normal((2, T, 4)), K)
        gate_up, down = rng.standard_normal((4, 12, 8)) / 3, rng.standard_normal((4, 8, 6)) / 3
        arguments = {"x": rng.standard_normal((2, T, 8)), "weights": weights, "indices": indices}
        yield Case(label, {**arguments, "gate_up": gate_up, "down": down})


def balance_cases(rng: np.random.Generator) -> Iterator[Case]:
    """Several layers, and padding."""
    for label, mask in (("three layers", None), ("padding", rng.random((2, 9)) < 0.7)):
        logits = [rng.standard_normal((2, 9, 4)) * (i + 1) for i in range(3)]
        yield Case(label, {"router_logits": logits, "top_k": 2} | ({} if mask is None else {"mask": mask}))


def simple(**shapes: Any) -> Callable[[np.random.Generator], Iterator[Case]]:
    """One case from a shape, or a value, for each argument."""

    def cases(rng: np.random.Generator) -> Iterator[Case]:
        drawn = {key: rng.standard_normal(s) if isinstance(s, tuple) else s for key, s in shapes.items()}
        yield Case("random numbers", drawn)

    return cases


def several(*variants: tuple[str, dict]) -> Callable[[np.random.Generator], Iterator[Case]]:
    """A case for each (label, shapes)."""

    def cases(rng: np.random.Generator) -> Iterator[Case]:
        for label, shapes in variants:
            yield from (Case(label, case.arguments) for case in simple(**shapes)(rng))

    return cases


def gate_cases(rng: np.random.Generator) -> Iterator[Case]:
    """Two batches of gated outputs."""
    for T in (7, 1):
        y, x = rng.standard_normal((2, T, 12)), rng.standard_normal((2, T, 8))
        yield Case(f"{T} tokens", {"y": y, "x": x, "project": Projection(rng.standard_normal((12, 8)))})


def loss_cases(rng: np.random.Generator) -> Iterator[Case]:
    """Labels, some of them ignored."""
    labels = rng.integers(0, 6, (2, 9))
    yield Case("all labels", {"logits": rng.standard_normal((2, 9, 6)) * 3, "labels": labels})
    some = np.where(rng.random(labels.shape) < 0.3, ops.losses.IGNORED, labels)
    yield Case("some ignored", {"logits": rng.standard_normal((2, 9, 6)) * 3, "labels": some})


def causal_loss_cases(rng: np.random.Generator) -> Iterator[Case]:
    """Labels, some ignored, and padding."""
    yield from loss_cases(rng)
    mask = np.ones((2, 9), bool)
    mask[0, :4] = mask[1, 5] = False
    arguments = {"logits": rng.standard_normal((2, 9, 6)) * 3, "labels": rng.integers(0, 6, (2, 9))}
    yield Case("padding", {**arguments, "mask": mask})


def slope_cases(rng: np.random.Generator) -> Iterator[Case]:
    """Powers of two and other head counts, first and last layers, both rules."""
    for H, layer, L, rule in (
        (64, 0, 80, "original"),
        (64, 78, 80, "original"),
        (12, 3, 8, "original"),
        (12, 3, 8, "transformers"),
        (1, 0, 2, "original"),
        (3, 6, 8, "transformers"),
    ):
        arguments = {"num_heads": H, "layer_idx": layer, "num_layers": L, "rule": rule}
        yield Case(f"H = {H}, layer {layer} of {L}, {rule}", arguments)


QUERIES = np.array([[0, 1, 2], [3, 4, 5]])  # positions
FAR_OUT = np.array([[-800.0, -20.0, 0.0, 30.0, 800.0]])  # where a careless exponential overflows

OUTPUTS = {
    **dict.fromkeys(FORMS, ["out", "state"]),
    "split_qkv": ["q", "k", "v"],
    "route": ["weights", "indices"],
    "document_rows": ["rows", "mask"],
}

CASES: dict[str, Callable[[np.random.Generator], Iterator[Case]]] = {
    "rms_norm": several(
        ("a batch", {"x": (2, 5, 12), "weight": (12,), "eps": 1e-5}),
        ("one token", {"x": (1, 1, 12), "weight": (12,), "eps": 1e-2}),
    ),
    "inner_norm": several(
        ("a batch", {"x": (2, 5, 48), "weight": (48,)}), ("one token", {"x": (1, 1, 16), "weight": (16,)})
    ),
    "linear": several(
        ("no bias", {"x": (2, 5, 7), "weight": (9, 7)}), ("a bias", {"x": (3, 7), "weight": (4, 7), "bias": (4,)})
    ),
    "split_qkv": several(
        ("two heads", {"qkv": (2, 5, 24), "num_heads": 2}), ("one head", {"qkv": (1, 1, 12), "num_heads": 1})
    ),
    "split_heads": simple(x=(2, 5, 12), num_heads=3),
    "merge_heads": simple(x=(2, 3, 5, 4)),
    "sigmoid": several(("random numbers", {"x": (2, 5, 4)}), ("far out", {"x": FAR_OUT})),
    "silu": several(("random numbers", {"x": (2, 5, 4)}), ("far out", {"x": FAR_OUT})),
    "gelu": simple(x=(2, 5, 4)),
    "activate": several(
        ("silu", {"x": (2, 5, 4), "hidden_act": "silu"}), ("gelu", {"x": (2, 5), "hidden_act": "gelu"})
    ),
    "softmax": several(
        ("random numbers", {"scores": (2, 5, 4)}),
        ("far out", {"scores": FAR_OUT}),
        ("nothing is seen", {"scores": np.array([[-np.inf, -np.inf], [0.0, -np.inf]])}),
    ),
    "output_gate": gate_cases,
    "add_residual": several(
        ("postnorm", dict(x=(2, 5, 8), normed=(2, 5, 8), update=(2, 5, 8), alpha=3.5, beta=0.5, postnorm=True)),
        ("prenorm", dict(x=(2, 5, 8), normed=(2, 5, 8), update=(2, 5, 8), alpha=1.0, beta=1.0, postnorm=False)),
    ),
    "rotary_frequencies": several(("R = 8", dict(rotary_dim=8, base=1e7)), ("R = 2", dict(rotary_dim=2, base=1e4))),
    "apply_rotary": rotary_cases,
    "visible_keys": several(
        ("no window", dict(positions=QUERIES, key_positions=np.arange(6)[None], sliding_window=None)),
        ("a window", dict(positions=QUERIES, key_positions=np.arange(6)[None], sliding_window=2)),
        (
            "a buffer that goes round",
            dict(positions=QUERIES, key_positions=np.array([[3, 1, 2], [3, -1, 5]]), sliding_window=3),
        ),
    ),
    "softmax_attention": attention_cases,
    "decay_slopes": slope_cases,
    "lightning_attention_direct": lightning_cases,
    "lightning_attention_recurrent": lightning_cases,
    "lightning_attention_chunked": lambda rng: lightning_cases(rng, chunk=True),
    "route": several(
        ("ties go to the lower index", dict(logits=np.array([[0.0, 1.0, 1.0, 1.0, 0.0]]), top_k=2)),
        ("two of six", dict(logits=(2, 9, 6), top_k=2)),
        ("one of three", dict(logits=(1, 1, 3), top_k=1)),
    ),
    "swiglu": simple(x=(2, 5, 8), gate_up=(12, 8), down=(8, 6)),
    "mix_experts": expert_cases,
    "log_softmax": several(("random numbers", {"logits": (2, 5, 6)}), ("far out", {"logits": FAR_OUT})),
    "classification_loss": several(
        ("classes", {"logits": (4, 3), "labels": np.array([0, 2, -100, 1])}),
        ("how much of each class", {"logits": (4, 3), "labels": np.eye(4, 3)}),
        ("numbers", {"logits": (4, 1), "labels": np.arange(4.0)}),
    ),
    "document_rows": simple(cu_seqlens=np.array([0, 3, 4, 9])),
    "unpack": simple(x=(1, 2, 5, 3), rows=np.array([[0, 1, 2], [3, 4, 0]])),
    "pack": simple(x=(2, 2, 3, 4), mask=np.array([[True, True, True], [True, True, False]])),
    "cross_entropy": loss_cases,
    "causal_loss": causal_loss_cases,
    "load_balancing_loss": balance_cases,
}

MAGNITUDES: dict[str, Callable] = {
    "linear": lambda x, weight, bias=None: np.abs(x) @ np.abs(weight).T + (0 if bias is None else np.abs(bias)),
    "output_gate": lambda y, x, project: np.abs(y) * (1 + np.abs(project(x))),
    "add_residual": lambda x, normed, update, alpha, beta, postnorm=True: ops.pointwise.add_residual(
        np.abs(x), np.abs(normed), np.abs(update), alpha, beta, postnorm
    ),
    "softmax_attention": lambda q, k, v, visible=None: ops.attention.softmax_attention(q, k, np.abs(v), visible),
    "swiglu": lambda x, gate_up, down: ops.experts.swiglu(*map(np.abs, (x, gate_up, down))),
    "mix_experts": lambda x, weights, indices, gate_up, down: ops.experts.mix_experts(
        np.abs(x), weights, indices, np.abs(gate_up), np.abs(down)
    ),
}


def _lightning_magnitude(form: str) -> Callable:
    right = getattr(ops.lightning, form)

    @functools.wraps(right)  # and so with its signature
    def magnitude(q, k, v, slopes, state=None, **options):
        state = state if state is None else np.abs(state)
        return right(*map(np.abs, (q, k, v)), slopes, state, **options)

    return magnitude


MAGNITUDES |= {form: _lightning_magnitude(form) for form in FORMS}
