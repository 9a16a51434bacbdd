"""Cross-check a whole model, part by part, against the truth.

Two passes. **Local** gives the verdict: every part is fed the truth's input, rounded to the type, so that a
fault is flagged where it is and not in all that follows. **Free** is reported beside it, and judged in float64:
the model runs alone. In low precision a free run proves little, since a rounding may send a token to another
expert; there it is judged only where no local pass can be had, and the report says so.

Five phases, as many as the other side takes: a prefill, some tokens one by one on the cache, many at once onto it, a
padded batch that is continued, and packed documents.
"""

import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .. import ops
from ..model import MiniMaxForCausalLM
from ..trace import UNIT_ROUNDOFF, Trace, round_to
from .defects import DEFECTS
from .judge import FLOOR, LIKENESS, allowance, first_wrong, judge, resemblance, rms
from .report import DIFFERENT, MISSING, SAME, Report, Row
from .targets import Call, NumpyTarget, RecordedTarget, Target, as_target


def crosscheck(
    truth: MiniMaxForCausalLM | str | os.PathLike,
    other: Any = "minimax_torch",
    *,
    dtype: str | None = None,
    length: int | None = None,
    decode: int = 4,
    layers: Collection[int] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Report:
    r"""Compare a model with the float64 NumPy reference, part by part.

    Parameters
    ----------
    truth : path or NumPy MiniMaxForCausalLM
        Whose weights both sides have.
    other : str, path, torch module, NumPy model or callable
        ``"minimax_torch"``, ``"transformers"``, ``"package.module:factory"`` (called with the checkpoint's
        path), a recorded trace's ``.safetensors``, a torch module whose modules carry the names of
        transformers 5, or a callable ids → {part: array}.
    dtype : {"float64", "float32", "bfloat16", "float16"}, optional
        What the other side computes in, and is judged by. ``None``: float64 for a twin, what the weights of a
        torch module are in, float32 for the others.
    length, decode : int
        Tokens of the prefill, by default 130 or two blocks and two more, and then one by one.
    layers : collection of int, optional
        Compare the parts of these layers only.
    seed : int
        For the token ids.
    device : str
        Where a named torch target runs.

    Raises ValueError, FileNotFoundError or ModuleNotFoundError, one sentence long, on bad input.
    """
    if dtype is not None and dtype not in UNIT_ROUNDOFF:
        raise ValueError(f"dtype is {dtype!r}; there are {', '.join(UNIT_ROUNDOFF)}.")
    if length is not None and length < 1 or decode < 0:
        raise ValueError(f"length is {length} and decode {decode}; a prefill has at least one token, decode 0 or more.")
    path = None if isinstance(truth, MiniMaxForCausalLM) else truth
    exact = _as_float64(truth)
    for i in layers or ():
        if not 0 <= i < exact.config.num_hidden_layers:
            raise ValueError(f"There is no layer {i}; this model has layers 0 … {exact.config.num_hidden_layers - 1}.")
    target = as_target(other, path, dtype, device)
    dtype = dtype or getattr(target, "dtype", None) or ("float64" if isinstance(target, NumpyTarget) else "float32")

    length = max(130, 2 * exact.config.block_size + 2) if length is None else length
    calls = list(plan_calls(exact.config, target, length, decode, seed))
    runs = Runs(exact, target, dtype, calls)
    report = Report(_title(exact, target, dtype, length, decode), notes=list(_notes(target)))
    for phase in dict.fromkeys(call.phase for call in calls):
        report.rows += judge_phase(runs, phase, layers)
    outcome = [row for row in report.rows if row.part in ("lm_head", "logits")]
    if outcome and all(row.verdict == MISSING for row in outcome):
        report.lacking = "lm_head"
    if report.first:
        report.looks_like, report.cure = nearest_defect(runs, report.rows)
    return report


class Runs:
    """Traces of the same calls: the truth's, the other side's, and what its type costs plain NumPy."""

    def __init__(self, exact: MiniMaxForCausalLM, target: Target, dtype: str, calls: list[Call]):
        self.exact, self.dtype, self.calls, self.force = exact, dtype, calls, target.forcible
        self.true = self.run(NumpyTarget(exact))
        self.free = self.run(target)
        self.found, self.fed = self.free, None
        if target.forcible:
            self.found = self.run(target, self.true)
            late = getattr(target, "shown_late", ())
            within = {
                part for part in self.free[0] if not part.endswith(late)
            }  # it computes on with its own of the rest
            self.fed = [{part: x for part, x in trace.items() if part in within} for trace in self.true]
        self.plain = self.sizes = self.true  # float64 is not rounded
        if dtype != "float64":
            self.plain = self.run(rounded(exact, dtype), self.fed, dtype)
            self.sizes = self.run(on_magnitudes(exact), self.true)

    def run(self, target: Target, fed: Sequence[Mapping] | None = None, round_to: str | None = None) -> list[Trace]:
        """Make the calls; parts that are ``fed`` go on with those values."""
        traces = []
        for i, call in enumerate(self.calls):
            trace = Trace(round_to, None if fed is None else fed[i])
            target.run(call, trace, self.true[i].keys() if hasattr(self, "true") else ())
            traces.append(trace)
        return traces

    def steps(self, phase: str) -> list[int]:
        """The calls of a phase."""
        return [i for i, call in enumerate(self.calls) if call.phase == phase]

    def arrays(self, traces: list[Trace], phase: str, part: str) -> list[np.ndarray]:
        """A part in each call of a phase; a token-major one, [B·T, …], gets its batch and time back."""
        found = [traces[i][part] for i in self.steps(phase)]
        exact = [self.true[i][part] for i in self.steps(phase)]
        return [
            x.reshape(t.shape) if x.ndim != t.ndim and x.size == t.size else x
            for x, t in zip(found, exact, strict=True)
        ]

    def counted(self, phase: str, part: str, keep: list[np.ndarray] | None = None) -> list[np.ndarray]:
        """Which entries of each call's array count: not padding, not tokens that ``keep`` leaves out."""
        masks = []
        for n, i in enumerate(self.steps(phase)):
            call, shape = self.calls[i], self.true[i][part].shape
            tokens = call.input_ids.shape
            mask = np.ones(tokens, bool) if call.attention_mask is None else call.attention_mask
            mask = mask if keep is None else mask & keep[n]
            per_token = shape[:2] == tokens and not part.endswith(".state")
            masks.append(mask if per_token else np.ones(shape, bool))
        return masks

    def values(self, traces: list[Trace], phase: str, part: str, keep: list[np.ndarray] | None = None) -> np.ndarray:
        """All numbers of a part in a phase that count, in one row."""
        masks = self.counted(phase, part, keep)
        arrays = self.arrays(traces, phase, part)
        return np.concatenate([x[m].astype(np.float64).ravel() for x, m in zip(arrays, masks, strict=True)])


def plan_calls(config, target: Target, length: int, decode: int, seed: int) -> Iterator[Call]:
    """The calls of a cross-check: as many of the phases as the target takes."""
    rng = np.random.default_rng(seed)
    if isinstance(target, RecordedTarget) and target.input_ids is not None:
        yield Call("prefill", target.input_ids, start=True)
        return
    ids = rng.integers(0, config.vocab_size, (2, length))
    yield Call("prefill", ids, start=True, labels=ids if length > 1 else None)
    if target.decodes:
        for _ in range(decode):
            yield Call("decode", rng.integers(0, config.vocab_size, (2, 1)))
    if target.thorough:
        yield Call("continued", rng.integers(0, config.vocab_size, (2, 7)))  # many tokens onto the cache
    if target.padding:
        T = max(length // 2, 8)
        mask = np.ones((3, T), bool)
        mask[1, : T // 3] = False  # on the left
        if target.padding == "any":
            mask[1, T // 2] = False  # a hole
            mask[2, -(T // 4) :] = False  # on the right
        yield Call("padded", rng.integers(0, config.vocab_size, (3, T)), mask, start=True)
        if target.thorough:  # more of it onto the cache, then a token onto rows of unequal length
            ragged = np.array([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [1, 1, 0, 0, 0]], bool)
            yield Call("padded", rng.integers(0, config.vocab_size, (3, 5)), ragged)
            yield Call("padded", rng.integers(0, config.vocab_size, (3, 1)))
    if target.thorough:
        T = max(length // 2, 3)
        yield Call(
            "packed", rng.integers(0, config.vocab_size, (1, T)), start=True, cu_seqlens=np.array([0, 1, T // 2 + 1, T])
        )


def judge_phase(runs: Runs, phase: str, layers: Collection[int] | None) -> Iterator[Row]:
    """A row for each part, in the order in which the model computes them."""
    decided: dict[str, list[np.ndarray]] = {}
    for part, x in runs.true[runs.steps(phase)[0]].items():
        if layers is None or _layer_of(part) in layers:
            yield judge_part(runs, Row(part, phase, x.shape), decided)


def judge_part(runs: Runs, row: Row, decided: dict[str, list[np.ndarray]]) -> Row:
    """Fill in a row: what there is, what is allowed of it, the verdict, and how it fares when the model runs alone."""
    phase, part = row.phase, row.part
    if any(part not in runs.found[i] for i in runs.steps(phase)):
        row.verdict = MISSING
        return row
    arrays, truths = (runs.arrays(traces, phase, part) for traces in (runs.found, runs.true))
    for x, exact in zip(arrays, truths, strict=True):
        if x.shape != exact.shape:
            return judge(row, x, exact, 0.0)

    gate = re.sub(r"\.(weights|indices)$", "", part)
    keep = decided.get(gate) if gate != part else None  # a router's choice is judged where it is not a toss-up
    exact, found = runs.values(runs.true, phase, part, keep), runs.values(runs.found, phase, part, keep)
    if np.issubdtype(truths[0].dtype, np.integer):  # choices and lengths are right or wrong
        row.error, row.allowed = float((found != exact).mean()) if exact.size else 0.0, 0.0
        row.verdict = DIFFERENT if row.error else SAME
    else:
        plain, sizes = (runs.values(t, phase, part, keep) for t in (runs.plain, runs.sizes))
        allowed = allowance(runs.dtype, exact, plain, sizes)
        if not math.isfinite(allowed):
            row.verdict, row.note = MISSING, f"not judged: plain NumPy overflows in {runs.dtype}"
            return row
        judge(row, found, exact, allowed)
        if part.endswith("mlp.gate"):
            decided[part] = decisions(runs, phase, part, allowed)
        if row.wrong:
            row.where = _first_wrong(runs, phase, part, allowed)
    if keep is not None and not all(k.all() for k in keep):
        row.note = f"{sum(int((~k).sum()) for k in keep)} undecided tokens left out"
    if runs.force:
        alone = runs.values(runs.free, phase, part, keep)
        row.free = rms(alone - exact) / max(rms(exact), FLOOR) if alone.shape == exact.shape else None
        settled = all(k.all() for masks in decided.values() for k in masks)  # no routing was a toss-up
        free = row.free or 0.0
        if runs.dtype == "float64" and settled and row.verdict == SAME and not free <= row.allowed:
            row.verdict, row.error, row.note = DIFFERENT, free, "when the model runs alone"
    return row


def _first_wrong(runs: Runs, phase: str, part: str, allowed: float) -> str | None:
    """The first wrong position of a part, in whichever call of the phase it is."""
    found, true = (runs.arrays(traces, phase, part) for traces in (runs.found, runs.true))
    for n, (x, exact, mask) in enumerate(zip(found, true, runs.counted(phase, part), strict=True)):
        if exact.ndim == 0:
            return None
        letters = "B H d e" if part.endswith(".state") else "B T H d" if exact.ndim == 4 else "B T n"
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.abs(x - exact)
        difference[~mask] = 0
        where = first_wrong(difference, allowed, letters)
        if where:
            return where if phase != "decode" else f"{where} of token {n + 1}"
    return None


def decisions(runs: Runs, phase: str, gate: str, allowed: float) -> list[np.ndarray]:
    """Tokens whose choice of experts rounding cannot have changed: no two of the top K + 1 scores are that close."""
    K = runs.exact.config.num_experts_per_tok
    decided = []
    for i in runs.steps(phase):
        ranked = -np.sort(-runs.true[i][gate], axis=-1)[..., : K + 1]  # (B, T, K + 1)
        gaps = ranked[..., :-1] - ranked[..., 1:]
        decided.append((gaps > 2 * allowed).all(axis=-1))  # both scores may move by it
    return decided


def rounded(exact: MiniMaxForCausalLM, dtype: str) -> NumpyTarget:
    """The same model with its weights rounded to a type, computing in float32: what the type costs plain NumPy."""
    weights = {
        name: (x if name.endswith("mlp.gate.weight") else round_to(x, dtype)).astype(np.float32)
        for name, x in exact.weights.items()
    }
    return NumpyTarget(MiniMaxForCausalLM(exact.config, dtype=np.float32, weights=weights))


def on_magnitudes(exact: MiniMaxForCausalLM) -> NumpyTarget:
    """The same model with its sums taken over magnitudes: how much each part can lose by summing in another order."""

    def linear(x, weight, bias=None):
        return ops.projections.linear(np.abs(x), np.abs(weight), bias if bias is None else np.abs(bias))

    def lightning(q, k, v, slopes, state=None, **options):
        state = state if state is None else np.abs(state)
        return ops.lightning.lightning_attention_chunked(np.abs(q), np.abs(k), np.abs(v), slopes, state, **options)

    def attention(q, k, v, visible=None):
        return ops.attention.softmax_attention(q, k, np.abs(v), visible)

    def experts(x, weights, indices, gate_up, down, hidden_act="silu"):
        F = down.shape[2]
        hidden = ops.projections.linear(x[..., None, :], gate_up.reshape(-1, x.shape[-1]))
        hidden = hidden.reshape(*x.shape[:-1], len(gate_up), 2 * F)  # (B, T, E, 2F)
        hidden = np.abs(ops.activate(hidden[..., :F], hidden_act) * hidden[..., F:])
        said = np.einsum("btef,edf->bted", hidden, np.abs(down))
        return (np.take_along_axis(said, indices[..., None], axis=2) * weights[..., None]).sum(axis=2)

    functions: dict[str, Callable] = {"linear": linear, "lightning_attention_chunked": lightning}
    return NumpyTarget(exact, {**functions, "softmax_attention": attention, "mix_experts": experts})


def nearest_defect(runs: Runs, rows: list[Row]) -> tuple[str | None, str | None]:
    """Commit every planted mistake in turn, and name the one whose numbers are those that were found.

    The mistake must explain the first part that differs, up to rounding; of several, the one that explains all
    parts best is named.
    """
    counted = ("indices", "lengths")  # whole numbers resemble nothing
    judged = [row for row in rows if row.verdict in (SAME, DIFFERENT) and not row.part.endswith(counted)]
    first = next((row for row in judged if row.wrong), None)
    if first is None:
        return None, None
    best, named = math.inf, None
    for defect in DEFECTS.values():
        try:
            mistaken = runs.run(NumpyTarget(runs.exact, defect.plant(ops)), runs.fed)
        except Exception:  # a mistake may be impossible in this model: its one head has no other order
            continue

        def distance(row: Row, mistaken=mistaken) -> float | None:
            found, exact, wrong = (runs.values(t, row.phase, row.part) for t in (runs.found, runs.true, mistaken))
            touched = rms(wrong - exact) > row.allowed * rms(exact)
            noise = row.allowed * rms(exact) if runs.dtype != "float64" else 0.0
            return resemblance(found, exact, wrong, noise) if touched or row.wrong else None

        at_first = distance(first)
        if at_first is None or at_first > LIKENESS:
            continue
        distances = [distance(row) for row in (judged if runs.force else [first])]
        score = float(np.mean([x for x in distances if x is not None]))
        if score < best:
            best, named = score, defect
    return (None, None) if named is None else (named.says, named.cure)


def _as_float64(model: MiniMaxForCausalLM | str | os.PathLike) -> MiniMaxForCausalLM:
    if not isinstance(model, MiniMaxForCausalLM):
        return MiniMaxForCausalLM.from_pretrained(model, np.float64)
    weights = {name: np.asarray(x, np.float64) for name, x in model.weights.items()}
    return MiniMaxForCausalLM(model.config, dtype=np.float64, weights=weights)


def _layer_of(part: str) -> int | None:
    found = re.match(r"model\.layers\.(\d+)", part)
    return int(found[1]) if found else None


def _title(exact, target: Target, dtype: str, length: int, decode: int) -> str:
    count = sum(x.size for x in exact.weights.values())
    size = f"{exact.config.num_hidden_layers} layers, {count:,} parameters"
    return f"{target.name} against the NumPy reference · {dtype} · {size} · {length} tokens" + (
        f", then {decode} one by one" if target.decodes and decode else ""
    )


def _notes(target: Target) -> Iterator[str]:
    yield from getattr(target, "notes", [])
    if not target.forcible:
        yield "no local pass: it cannot be fed the truth's inputs, so a part is judged with all that came before it"
    if target.decodes and not target.thorough:
        yield "not tried: many tokens at once onto a cache, and packed documents"
    if not target.decodes:
        yield "no decode: it does not continue on a cache"
    if target.padding is None:
        yield "no padding: it takes no attention mask"
    elif target.padding == "left":
        yield "padding on the left of an empty cache only"
