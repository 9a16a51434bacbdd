"""9 · Debug: eight broken models, each with one mistake in it.

`broken` hands them out. The names of their mistakes stand further down in this file: do not look.
"""

import functools
from typing import Any

import numpy as np

from ... import ops
from ...config import LIGHTNING, SOFTMAX, MiniMaxConfig
from ...model import MiniMaxForCausalLM
from ...trace import Trace, recording
from ..crosscheck import Runs, judge_phase, plan_calls
from ..defects import DEFECTS
from ..report import Report
from ..targets import NumpyTarget
from .registry import Exercise, Verdict, register


@functools.cache
def intact() -> MiniMaxForCausalLM:
    """The model as it should be: lightning, lightning, softmax, lightning; float64, gains that are not all one."""
    kinds = (LIGHTNING, LIGHTNING, SOFTMAX, LIGHTNING)
    model = MiniMaxForCausalLM(MiniMaxConfig.tiny(layer_types=kinds), dtype=np.float64)
    rng = np.random.default_rng(5)
    model.weights = {
        name: x * (1 + 0.2 * rng.standard_normal(x.shape)) if x.ndim == 1 else x for name, x in model.weights.items()
    }
    return model


class Broken:
    """A model with one mistake in it: look at its parts, compare it with `intact`, and name the mistake."""

    def __init__(self, number: int):
        if number not in range(1, len(KEYS) + 1):
            raise ValueError(f"There is no broken model {number}; there are 1 to {len(KEYS)}.")
        self.number = number
        self._functions = DEFECTS[KEYS[number - 1]].plant(ops)

    def __call__(self, input_ids: np.ndarray, **options: Any):
        """Run it as `intact()` is run."""
        with ops.using(**self._functions):
            return intact()(input_ids, **options)

    def parts(self, input_ids: np.ndarray) -> Trace:
        """Every part of a run by name."""
        parts = Trace()
        with recording(parts):
            self(input_ids)
        return parts

    def __repr__(self) -> str:
        """The cross-check's report; its guess is left out."""
        return str(examine(KEYS[self.number - 1])).partition("\nlooks like:")[0]


def broken(number: int) -> Broken:
    """One of eight broken models, 1 to 8; printed, it is the cross-check's report without its guess.

    Raises ValueError for another number.
    """
    return Broken(number)


@functools.cache
def examine(key: str) -> Report:
    """The cross-check of the model with a mistake, without the judge's guess."""
    target = NumpyTarget(intact(), DEFECTS[key].plant(ops), "a broken model")
    calls = list(plan_calls(intact().config, target, length=33, decode=1, seed=0))
    runs, report = Runs(intact(), target, "float64", calls), Report("a broken model against the intact one · float64")
    for phase in dict.fromkeys(call.phase for call in calls):
        report.rows += judge_phase(runs, phase, None)
    return report


def symptom(report: Report) -> str:
    """Where a report's first difference lies."""
    row = next((row for row in report.rows if row.wrong), None)
    return "nothing differs" if row is None else f"{row.part} differs first, in {row.phase}"


def judge_diagnosis(exercise: Exercise, answer: Any) -> Verdict:
    """Right name or not; a wrong one is committed, and its symptom laid beside the true one."""
    key = KEYS[int(exercise.number.partition(".")[2]) - 1]
    told = f"The report: {symptom(examine(key))}."
    if answer is ... or answer is None:
        return exercise.failed("There is no answer yet. A way to begin:", exercise.hints[0])
    guess = next((d for d in DEFECTS.values() if answer in (d.key, d.says)), None)
    if guess is None:
        near = ", ".join(k for k in DEFECTS if str(answer)[:6] == k[:6])
        names = f"Names that begin so: {near}." if near else "The names are the keys of minimax_numpy.check.DEFECTS."
        return exercise.failed(f"No mistake is called {answer!r}. {names}", told)
    if guess.key == key:
        return exercise.passed(f"It is so: {guess.says}. {guess.cure}")
    other, here = symptom(examine(guess.key)), symptom(examine(key))
    beside = f"Had it been “{guess.says}”: {other}."
    if other == here:
        beside += " The place is the same, so look at when, where in time and by how much it differs."
    return exercise.failed(told, beside)


KEYS = (
    "padding_decays",
    "tiles_grouped_heads",
    "gates_by_silu",
    "forgets_the_state",
    "leaves_weights_unnormalised",
    "has_no_layer_factor",
    "decays_the_short_chunk_as_a_full_one",
    "interleaves_the_pairs",
)
DEBUG = (
    (
        "Right, until rows are padded", 8, 2,
        "In which phase does the first difference appear, and in which parts? What is different in that phase?",
        "Only padded calls are wrong, and the state first. What may padding not do to a state?",
        "Without padding all is right; with it the state differs, as if time went on while nothing was there.",
    ),
    (
        "The softmax layer alone", 8, 1,
        "Lightning layers are right. What do query, key and o_proj.input say in layer 2?",
        "Queries and keys are right, what is read with them is not. Which key head did each query head read?",
        "Query and key are right and only what is read differs: the heads were matched wrongly.",
    ),
    (
        "After the norm", 6, 1,
        "norm is right, out_proj.input is wrong. What happens between them?",
        "Between them stands one product: the gate. It may let through more than all, and less than nothing.",
        "Between norm and out_proj there is only the gate.",
    ),
    (
        "Right in one go", 6, 1,
        "The first call is right. What does the second one need that the first did not?",
        "The prefill is right, the first token after it is wrong in every lightning layer.",
        "A prefill starts from an empty memory; the next call needs what the first returned.",
    ),
    (
        "The experts are the right ones", 6, 1,
        "Look at mlp.gate, .indices and .weights of layer 0, in this order.",
        "Scores and indices are right; the weights are all too small. What should they sum to?",
        "Indices right, weights too small: they do not sum to one.",
    ),
    (
        "Layer 0 is right", 8, 2,
        "All of layer 0 is right, layer 1 is wrong, with the same code. What does a layer know of its place?",
        "q, k and v of layer 1 are right, its state is not. Which number depends on the layer?",
        "Only what depends on the layer's index can be right in layer 0 and wrong in layer 1: the slopes.",
    ),
    (
        "The output is right, the memory is not", 10, 3,
        "In the prefill of 33 tokens one part of layer 0 is wrong. Which, and what of the same layer is right?",
        "What the prefill reads is right, what it leaves is too small. How long is its last chunk?",
        "33 is no multiple of the chunk: the last one is short, and only the state it leaves behind is wrong.",
    ),
    (
        "Angles that are nearly right", 10, 3,
        "In layer 2 query and key are wrong. Compare their first position with the others: broken(8).parts(ids).",
        "Position 0 is right, lengths are right, so it is a rotation; its frequencies occur, in other channels.",
        "The channels turn by true frequencies, but with the neighbour in place of the partner half a rotation away.",
    ),
)  # fmt: skip

for _i, (_title, _minutes, _difficulty, _first, _second, _reason) in enumerate(DEBUG, 1):
    register(
        Exercise(
            f"9.{_i}",
            _title,
            "debug",
            _minutes,
            _difficulty,
            f"`broken({_i})` has one mistake in it. Print it: that is the cross-check's report without its guess. "
            "Answer with the mistake's name, a key of `minimax_numpy.check.DEFECTS`.",
            (_first, _second),
            f"print(broken({_i}))\nanswer = ...  # the name of the mistake\n",
            f'"{KEYS[_i - 1]}"',
            _reason,
            judge_diagnosis,
        )
    )
