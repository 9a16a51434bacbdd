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
from copy import copy
from typing import Any

import numpy as np

from .. import ops
from ..checkpoint import Checkpoint, layer_of
from ..config import MiniMaxConfig, is_router
from ..forecast import Forecast, forecast
from ..model import MiniMaxForCausalLM
from ..streaming import Streamed
from ..trace import UNIT_ROUNDOFF, Trace, round_to
from .defects import DEFECTS
from .judge import FLOOR, LIKENESS, allowance, first_wrong, judge, resemblance, rms
from .partial import Layers
from .report import DIFFERENT, MISSING, SAME, Report, Row
from .targets import Call, NumpyTarget, RecordedTarget, Target, as_target

KEPT = 16
"""Last positions of a prefill whose logits a streamed cross-check compares: all of them would outweigh the layers."""


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
    stream: bool = False,
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
    stream : bool
        Read the weights from the checkpoint as they are used, on both sides: for one that is larger than memory.
        Each pass reads it again, so only a prefill and tokens after it are compared, part by part. Where some of
        its shards are absent, ``layers`` whose shards are there are run by themselves, and always streamed.

    Raises ValueError, FileNotFoundError or ModuleNotFoundError, one sentence long, on bad input.
    """
    check_arguments(dtype, length, decode)
    path = None if isinstance(truth, MiniMaxForCausalLM) else truth
    config = truth.config if isinstance(truth, MiniMaxForCausalLM) else MiniMaxConfig.from_pretrained(truth)
    check_layers(config, layers)
    layers = None if layers is None else sorted(set(layers))
    absent = Checkpoint(path).absent() if path is not None and layers else []
    if absent and other != "minimax_torch":
        raise ValueError(
            f"{path} lacks {absent[0]} and so is part of a checkpoint, which is compared with minimax_torch alone."
        )
    exact = Layers(path, layers, np.float64) if path and layers and absent else _as_float64(truth, stream)
    target = as_target(other, path, dtype, device, stream, layers if absent else None)
    dtype = dtype or getattr(target, "dtype", None) or ("float64" if isinstance(target, NumpyTarget) else "float32")

    length = default_length(config) if length is None else length
    if absent:
        calls = list(plan_hidden_calls(config, length, decode, seed))
    else:
        calls = list(plan_calls(config, target, length, decode, seed, is_streamed(exact)))
    runs = Runs(exact, target, dtype, calls)
    notes = [*_notes(target, is_streamed(exact)), *_parts(absent, layers)]
    report = Report(_title(exact, target, dtype, length, decode), notes=notes)
    for phase in dict.fromkeys(call.phase for call in calls):
        report.rows += judge_phase(runs, phase, layers)
    outcome = [row for row in report.rows if row.part in ("lm_head", "logits")]
    if outcome and all(row.verdict == MISSING for row in outcome):
        report.lacking = "lm_head"
    if report.first and is_streamed(exact):
        report.looks_like = "not looked for: each planted defect would read the checkpoint once more"
    elif report.first:
        report.looks_like, report.cure = nearest_defect(runs, report.rows)
    return report


def check_arguments(dtype: str | None, length: int | None, decode: int) -> None:
    """Refuse a type that there is not, and a number of tokens that cannot be run."""
    if dtype is not None and dtype not in UNIT_ROUNDOFF:
        raise ValueError(f"dtype is {dtype!r}; there are {', '.join(UNIT_ROUNDOFF)}.")
    if length is not None and length < 1 or decode < 0:
        raise ValueError(f"length is {length} and decode {decode}; a prefill has at least one token, decode 0 or more.")


def check_layers(config: MiniMaxConfig, layers: Collection[int] | None) -> None:
    """Refuse a layer that the model has not."""
    for i in layers or ():
        if not 0 <= i < config.num_hidden_layers:
            raise ValueError(f"There is no layer {i}; this model has layers 0 … {config.num_hidden_layers - 1}.")


def default_length(config: MiniMaxConfig) -> int:
    """Tokens of a prefill: more than two blocks of lightning attention."""
    return max(130, 2 * config.block_size + 2)


def foretell(
    path: str | os.PathLike,
    dtype: str | None,
    length: int | None,
    decode: int,
    layers: Collection[int] | None,
    against: str = "minimax_torch",
) -> Forecast:
    """What a streamed cross-check will read and hold, without what a model of somebody else's does."""
    config, checkpoint = MiniMaxConfig.from_pretrained(path), Checkpoint(path)
    check_arguments(dtype, length, decode)
    check_layers(config, layers)
    part = layers if layers and checkpoint.absent() else None
    length = default_length(config) if length is None else length
    twin = against == "minimax_torch"
    ours = 1 if dtype == "float64" or (twin and dtype is None) else 3  # the truth; what the type costs, and magnitudes
    kept = KEPT if twin else 0
    return forecast(checkpoint, config, length, decode, passes=ours + twin, traces=ours + 1, kept=kept, layers=part)


class Runs:
    """Traces of the same calls: the truth's, the other side's, and what its type costs plain NumPy."""

    def __init__(self, exact: MiniMaxForCausalLM | Layers, target: Target, dtype: str, calls: list[Call]):
        self.exact, self.dtype, self.calls, self.force = exact, dtype, calls, target.forcible
        self.true = self.run(NumpyTarget(exact))
        self.ran_alone = not (target.forcible and is_streamed(exact))  # each pass reads the checkpoint again
        self.free = self.run(target) if self.ran_alone else []
        self.found, self.fed = self.free, None
        if target.forcible:
            self.found = self.run(target, self.true)
            late = getattr(target, "shown_late", ())
            within = {
                part for part in self.found[0] if not part.endswith(late)
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
            tokens = call.shape
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


def plan_calls(config, target: Target, length: int, decode: int, seed: int, streamed: bool = False) -> Iterator[Call]:
    """The calls of a cross-check: as many of the phases as the target takes; two, of one row, where streamed."""
    rng = np.random.default_rng(seed)
    if isinstance(target, RecordedTarget) and target.input_ids is not None:
        yield Call("prefill", target.input_ids, start=True)
        return
    if streamed:
        kept = KEPT if target.thorough else 0  # a model of somebody else's gives all of them
        yield Call("prefill", rng.integers(0, config.vocab_size, (1, length)), start=True, logits_to_keep=kept)
        for _ in range(decode if target.decodes else 0):
            yield Call("decode", rng.integers(0, config.vocab_size, (1, 1)))
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


def plan_hidden_calls(config: MiniMaxConfig, length: int, decode: int, seed: int) -> Iterator[Call]:
    """A prefill and tokens after it, for layers without an embedding: random hidden states of unit RMS."""
    rng = np.random.default_rng(seed)
    for i, n in enumerate((length, *[1] * decode)):
        x = rng.standard_normal((1, n, config.hidden_size))
        x /= np.sqrt(np.mean(x * x, axis=-1, keepdims=True))
        yield Call("decode" if i else "prefill", start=i == 0, inputs_embeds=x)


def judge_phase(runs: Runs, phase: str, layers: Collection[int] | None) -> Iterator[Row]:
    """A row for each part, in the order in which the model computes them."""
    decided: dict[str, list[np.ndarray]] = {}
    for part, x in runs.true[runs.steps(phase)[0]].items():
        if layers is None or layer_of(part) in layers:
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
    if runs.force and runs.ran_alone:
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


def rounded(exact: MiniMaxForCausalLM | Layers, dtype: str) -> NumpyTarget:
    """The same model with its weights rounded to a type, computing in float32: what the type costs plain NumPy."""
    if isinstance(exact.weights, Streamed):
        return NumpyTarget(_over(exact, exact.weights.again(np.float32, dtype)))
    weights = {
        name: (x if is_router(name) else round_to(x, dtype)).astype(np.float32) for name, x in exact.weights.items()
    }
    return NumpyTarget(MiniMaxForCausalLM(exact.config, dtype=np.float32, weights=weights))


def on_magnitudes(exact: MiniMaxForCausalLM | Layers) -> NumpyTarget:
    """The same model with its sums taken over magnitudes: how much each part can lose by summing in another order."""

    def linear(x, weight, bias=None):
        return ops.projections.linear(np.abs(x), abs(weight), bias if bias is None else np.abs(bias))

    def lightning(q, k, v, slopes, state=None, **options):
        state = state if state is None else np.abs(state)
        return ops.lightning.lightning_attention_chunked(np.abs(q), np.abs(k), np.abs(v), slopes, state, **options)

    def attention(q, k, v, visible=None):
        return ops.attention.softmax_attention(q, k, np.abs(v), visible)

    def experts(x, weights, indices, gate_up, down, hidden_act="silu"):
        F, y = down.shape[2], np.zeros_like(x)
        for expert in np.unique(indices):
            *token, choice = np.nonzero(indices == expert)
            hidden = ops.projections.linear(x[*token], gate_up[expert])  # (tokens of the expert, 2F)
            hidden = ops.activate(hidden[..., :F], hidden_act) * hidden[..., F:]
            y[*token] += weights[*token, choice, None] * linear(hidden, down[expert])
        return y

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


def is_streamed(model: MiniMaxForCausalLM | Layers) -> bool:
    """Whether a model's weights are read anew by each pass."""
    return isinstance(model.weights, Streamed)


def _over(model, weights: Streamed):
    """The same model with other weights."""
    other = copy(model)
    other.weights = weights
    return other


def _as_float64(model: MiniMaxForCausalLM | str | os.PathLike, stream: bool) -> MiniMaxForCausalLM:
    if not isinstance(model, MiniMaxForCausalLM):
        return MiniMaxForCausalLM.from_pretrained(model, np.float64, stream=stream)
    if isinstance(model.weights, Streamed):
        return _over(model, model.weights.again(np.float64))
    weights = {name: np.asarray(x, np.float64) for name, x in model.weights.items()}
    return MiniMaxForCausalLM(model.config, dtype=np.float64, weights=weights)


def _title(exact, target: Target, dtype: str, length: int, decode: int) -> str:
    count = sum(x.size for x in exact.weights.values())
    size = f"{exact.config.num_hidden_layers} layers, {count:,} parameters"
    return f"{target.name} against the NumPy reference · {dtype} · {size} · {length} tokens" + (
        f", then {decode} one by one" if target.decodes and decode else ""
    )


def _parts(absent: list[str], layers: Collection[int] | None) -> Iterator[str]:
    if absent:
        told = ", ".join(map(str, sorted(layers or ())))
        yield f"shards that are absent: {len(absent)}; run by themselves, on random hidden states: layers {told}"


def _notes(target: Target, streamed: bool) -> Iterator[str]:
    yield from getattr(target, "notes", [])
    if streamed:
        yield "weights were streamed: a prefill and tokens after it, one row, each side run once"
        yield f"not tried: other phases, losses, a run of the other side alone, logits before the last {KEPT}"
        return
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
