"""Exercises whose answer is a function: run it on cases, say where it first goes wrong and what that looks like."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..child import attempt
from ..judge import LIKENESS, SAME_NUMBERS, first_index, judge, rms
from ..report import DIFFERENT, Row
from ..single import Case, counted, padding_is_finite
from .registry import Edit, Exercise, Mistake, Task, Verdict, build, edited, register, source_and_stub

FLOAT32 = 2e-6
"""What an answer that passed through float32 may err: its roundoff 6e-8, compounded over the 70 steps of the longest
case. Every known mistake is at least ten times further off; a test sees to that."""


class Found(NamedTuple):
    """What a function made of a case: its arrays, or the trouble that it had."""

    arrays: list[np.ndarray] | None = None
    trouble: str | None = None


def implement(
    number: str,
    title: str,
    *,
    minutes: int,
    difficulty: int,
    hints: tuple[str, str],
    reason: str,
    cases: Callable[[np.random.Generator], Iterator[Case]],
    truth: Callable | None = None,
    outputs: dict[str, str],
    mistakes: Sequence[Edit],
):
    """Register the decorated function as the solution of an exercise; without ``truth`` it is its own.

    ``outputs`` names what is returned, with its axes.
    """

    def register_solution(solution: Callable) -> Callable:
        source, stub = source_and_stub(solution)
        task = Task(solution.__name__, cases, truth or solution, tuple(outputs), tuple(outputs.values()))
        register(
            Exercise(
                number,
                title,
                "implement",
                minutes,
                difficulty,
                inspect.getdoc(solution) or "",
                hints,
                stub,
                source,
                reason,
                judge_function,
                tuple(edited(source, edit) for edit in mistakes),
                task,
            )  # fmt: skip
        )
        return solution

    return register_solution


def judge_function(exercise: Exercise, answer: Any) -> Verdict:
    """Run a function on the cases of seed 0."""
    task = exercise.task
    assert task is not None
    if not callable(answer):
        return exercise.failed(f"The answer is a function, {task.function}; this is a {type(answer).__name__}.")
    cases = list(task.cases(np.random.default_rng(0)))
    return tell(exercise, cases, [run(answer, case) for case in cases])


def run(function: Callable, case: Case) -> Found:
    """Call a function on copies of a case's arguments."""
    return Found(*attempt(function, case.arguments))


def judge_case(task: Task, case: Case, made: Found, expected: list[np.ndarray]) -> list[Row]:
    """A row for each answer; where there is none, one row that says why."""
    rows = [Row(name, case.label, x.shape) for name, x in zip(task.outputs, expected, strict=True)]
    if made.arrays is not None and len(made.arrays) != len(expected):
        wanted, s = ", ".join(task.outputs), "s" * (len(made.arrays) != 1)
        made = Found(trouble=f"it returns {len(made.arrays)} array{s}, not {len(expected)} ({wanted})")
    if made.arrays is None:
        return [Row(task.outputs[0], case.label, expected[0].shape, verdict=DIFFERENT, note=made.trouble)]
    for row, axes, x, exact in zip(rows, task.axes, made.arrays, expected, strict=True):
        if not padding_is_finite(case, x, row.part):
            row.verdict, row.note = DIFFERENT, "it holds NaN or infinity at padded positions"
            continue
        if x.shape == exact.shape:
            x, exact = (counted(case, y, exact, row.part) for y in (x, exact))
        narrow = exact.dtype == np.float32
        within = FLOAT32 if narrow or rounded_only(x, exact) else SAME_NUMBERS
        judge(row, x.astype(np.float64), exact.astype(np.float64), max(within * rms(exact), SAME_NUMBERS), axes)
        if not row.wrong and narrow and x.dtype != np.float32:
            row.verdict = DIFFERENT
            row.note = f"it is {x.dtype} where everything handed in is float32; cast tables and constants once"
    return rows


def rounded_only(x: np.ndarray, exact: np.ndarray) -> bool:
    """Whether an answer is so near that float32 somewhere inside may account for it."""
    return x.shape == exact.shape and bool(rms(x.astype(np.float64) - exact) <= FLOAT32 * rms(exact))


def answers(function: Callable, case: Case) -> list[np.ndarray]:
    """What the truth answers."""
    arrays, trouble = attempt(function, case.arguments)
    assert arrays is not None, trouble
    return arrays


def tell(exercise: Exercise, cases: list[Case], made: list[Found]) -> Verdict:
    """The verdict on what a function made of each case."""
    task = exercise.task
    assert task is not None
    expected = [answers(task.truth, case) for case in cases]
    judged = [judge_case(task, *each) for each in zip(cases, made, expected, strict=True)]
    wrong = [(i, row) for i, rows in enumerate(judged) for row in rows if row.wrong]
    if not wrong:
        worst = max((row.error for rows in judged for row in rows), default=0.0)
        told = f"{len(cases)} cases; the largest relative error is {worst:.0e}."
        return exercise.passed(told + (" float32 rounds so much." if worst > SAME_NUMBERS else ""))
    i, row = wrong[0]
    if made[i].trouble == "it is still the stub":
        return exercise.failed("It is still the stub. A way to begin:", exercise.hints[0])
    if (made[i].trouble or "").startswith("there is no function"):
        return exercise.failed(sentence(made[i].trouble))
    lines = [f"First wrong: {row.part}, in the case “{row.phase}”{shapes(cases[i])}."]
    arrays = made[i].arrays
    if row.note:
        lines.append(sentence(row.note))
    elif arrays is not None:
        k = task.outputs.index(row.part)
        lines.append(position(row, arrays[k], expected[i][k], task.axes[k]))
    return exercise.failed(*lines, mistake=nearest(exercise, cases, made, expected))


def sentence(told: str | None) -> str:
    """A remark, told as a sentence of its own."""
    return f"{(told or '')[:1].upper()}{(told or '')[1:]}."


def shapes(case: Case) -> str:
    """The shapes of the arrays that a case hands in, and its numbers."""
    told = [f"{name} {list(x.shape) if isinstance(x, np.ndarray) else x}" for name, x in case.arguments.items()]
    return f" ({', '.join(told)})"


def position(row: Row, x: np.ndarray, exact: np.ndarray, axes: str) -> str:
    """The first wrong number, beside the right one."""
    axes = axes if len(axes.split()) == x.ndim else " ".join(f"axis_{i}" for i in range(x.ndim))
    index = first_index(np.abs(x.astype(np.float64) - exact), row.allowed * rms(exact), axes)
    if index is None:
        return f"Its relative error is {row.error:.1e}; {row.allowed:.0e} is allowed."
    place = ", ".join(f"{axis} = {i}" for axis, i in zip(axes.split(), index))
    mine, right = x[index], exact[index]
    digits = 6 if f"{mine:.6g}" != f"{right:.6g}" else 15
    there = f"{f'At {place} it' if place else 'It'} is {mine:.{digits}g}, not {right:.{digits}g}"
    return f"{there}; the relative error of all of it is {row.error:.1e}."


def nearest(exercise: Exercise, cases: list[Case], made: list[Found], expected: list) -> Mistake | None:
    """The known mistake whose answers are nearest to those that were found."""
    scores = {mistake: distance(exercise, mistake, cases, made, expected) for mistake in exercise.mistakes}
    best = min(scores, key=lambda mistake: scores[mistake], default=None)
    return best if best is not None and scores[best] < LIKENESS else None


def distance(exercise: Exercise, mistake: Mistake, cases: list[Case], made: list[Found], expected: list) -> float:
    """Mean distance from a mistake over the answers that either of the two gets wrong."""
    task = exercise.task
    assert task is not None
    function, apart = compiled(mistake.source, task.function), []
    for case, mine, exact in zip(cases, made, expected, strict=True):
        theirs = run(function, case)
        if mine.arrays is None or theirs.arrays is None:
            if mine.trouble or theirs.trouble:
                apart.append(0.0 if mine.trouble == theirs.trouble else 1.0)
            continue
        for name, m, t, e in zip(task.outputs, mine.arrays, theirs.arrays, exact):
            if m.shape == e.shape:
                m, t, e = (counted(case, x, e, name) if x.shape == e.shape else x for x in (m, t, e))
            within = FLOAT32 * rms(e)
            if not (same(m, e, within) and same(t, e, within)):
                apart.append(unlike(m, t, e))
    return float(np.mean(apart)) if apart else 1.0


@functools.cache
def compiled(source: str, name: str) -> Callable:
    """A mistake as a function."""
    return build(source, name)


def same(x: np.ndarray, exact: np.ndarray, within: float) -> bool:
    """Same shape, and the same numbers to an RMS of ``within``."""
    return x.shape == exact.shape and rms(x.astype(np.float64) - exact) <= within


def unlike(mine: np.ndarray, theirs: np.ndarray, exact: np.ndarray) -> float:
    """0 for the same wrong answer, 1 and more for no likeness; NaN is like NaN in the same place."""
    if mine.shape != theirs.shape:
        return 1.0
    mine, theirs = (x.astype(np.float64) for x in (mine, theirs))
    finite = np.isfinite(mine)
    if (finite != np.isfinite(theirs)).any():
        return 1.0
    m, t = mine[finite], theirs[finite]
    if mine.shape != exact.shape or not finite.all():
        return rms(m - t) / max(rms(t), 1e-300)
    apart = max(rms(m - exact[finite]), rms(t - exact[finite]))
    return rms(m - t) / apart if apart else 0.0
