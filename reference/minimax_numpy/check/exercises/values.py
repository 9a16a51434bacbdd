"""Exercises whose answer is a number: judged with a tolerance; a typical wrong value is recognised by name."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .registry import Exercise, Mistake, Verdict, register


def number(
    number: str,
    title: str,
    kind: str,
    statement: str,
    *,
    minutes: int,
    difficulty: int,
    solution: str,
    reason: str,
    hints: tuple[str, str],
    mistakes: Sequence[Mistake],
    within: float = 1e-3,
) -> None:
    """Register an exercise answered by a number.

    ``solution`` and the mistakes are expressions that know ``np`` and ``math``, or lines that set ``answer``;
    ``within`` is a relative error: 1e-3 takes an answer given to four figures.
    """

    def judge(exercise: Exercise, answer: Any) -> Verdict:
        return judge_number(exercise, answer, within)

    stub = f"answer = ...  # {title}\n"
    register(
        Exercise(
            number, title, kind, minutes, difficulty, statement, hints, stub, solution, reason, judge, tuple(mistakes)
        )
    )


@functools.cache
def value(source: str) -> float:
    """The number that a piece of source of ours is worth."""
    return float(worth(source))


def worth(source: str) -> Any:
    """What a piece of source of ours is worth: that of an expression, or of ``answer`` after lines that set it."""
    known: dict[str, Any] = {"np": np, "math": math}
    try:
        expression = compile(source, "<an answer>", "eval")
    except SyntaxError:
        exec(compile(source, "<an answer>", "exec"), known)
        return known["answer"]
    return eval(expression, known)


def judge_number(exercise: Exercise, answer: Any, within: float) -> Verdict:
    """Right within the tolerance; else the mistake by name, or the direction in which it is off."""
    if answer is ... or answer is None:
        return exercise.failed("There is no answer yet. A way to begin:", exercise.hints[0])
    try:
        given = float(answer)
    except (TypeError, ValueError):
        return exercise.failed(f"The answer is one number; this is a {type(answer).__name__}.")
    right = value(exercise.solution)
    if math.isclose(given, right, rel_tol=within):
        return exercise.passed(f"{given:.6g} it is.")
    for mistake in exercise.mistakes:
        if math.isclose(given, value(mistake.source), rel_tol=within):
            return exercise.failed(f"{given:.6g} is a typical answer, but not the right one.", mistake=mistake)
    return exercise.failed(direction(given, right))


def direction(given: float, right: float) -> str:
    """Too large or too small, and roughly by how much, without the answer."""
    if not math.isfinite(given) or given * right <= 0:
        return f"{given:.6g} cannot be: the answer is a {'positive' if right > 0 else 'negative'} number."
    ratio = abs(given / right)
    far = max(ratio, 1 / ratio)
    size = "by less than a tenth" if far < 1.1 else "by less than ten times" if far < 10 else "more than tenfold"
    return f"{given:.6g} is too {'large' if ratio > 1 else 'small'}, {size}."
