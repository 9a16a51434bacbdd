"""The exercises of the course, each with a check whose message teaches.

    from minimax_numpy.check import exercise

    exercise()                   every exercise, with minutes and difficulty
    exercise("2.3")              what is asked
    exercise.stub("2.3")         where to begin
    exercise("2.3", mine)        the verdict: the first wrong position, the likely mistake, the cure
    exercise.hint("2.3", 1)      a hint, then a second one
    exercise.solution("2.3")     a solution, with its reason

A number is chapter.n. Chapter 9 hands out broken models with `broken`; an answer to chapter 10 is a file's path.
"""

from typing import Any

from . import chapter1, chapter2, chapter3, chapter4, chapter5, chapter6, chapter7, chapter8, chapter9, chapter10
from .chapter9 import broken, intact
from .registry import EXERCISES, Exercise, Verdict

__all__ = ["CHAPTERS", "EXERCISES", "Exercise", "Verdict", "broken", "exercise", "intact"]

MODULES = (
    chapter1, chapter2, chapter3, chapter4, chapter5, chapter6, chapter7, chapter8, chapter9, chapter10,
)  # fmt: skip
CHAPTERS = {
    i: (m.__doc__ or "").partition(" · ")[2].partition(".")[0].partition(":")[0] for i, m in enumerate(MODULES, 1)
}


class Text(str):
    """Text that shows itself as it is where a notebook or a prompt would quote it."""

    def __repr__(self) -> str:
        return str(self)


class _Unanswered:
    """Nothing was handed in: not even None."""


class Exercises:
    """What `exercise` is: call it, or ask it for a stub, a hint or a solution.

    Every method raises ValueError where there is no such exercise.
    """

    def __call__(self, number: str | None = None, answer: Any = _Unanswered) -> Verdict | Text:
        """The list of all exercises; with a number, what is asked; with an answer, the verdict."""
        if number is None:
            return Text("\n".join(_listed()))
        asked = self._find(number)
        return Text(_asked(asked)) if answer is _Unanswered else asked.judge(asked, answer)

    def stub(self, number: str) -> Text:
        """The source to begin with."""
        return Text(self._find(number).stub)

    def hint(self, number: str, which: int = 1) -> Text:
        """The first hint or the second."""
        hints = self._find(number).hints
        if which not in (1, 2):
            raise ValueError(f"There is no hint {which}; there are 1 and 2.")
        return Text(hints[which - 1])

    def solution(self, number: str) -> Text:
        """The source of a solution, and why it is right."""
        found = self._find(number)
        return Text(f"{found.solution.rstrip()}\n\n# {found.reason}\n")

    def _find(self, number: str) -> Exercise:
        if number not in EXERCISES:
            raise ValueError(f"There is no exercise {number!r}; exercise() lists all {len(EXERCISES)}.")
        return EXERCISES[number]


def _asked(asked: Exercise) -> str:
    return f"{_line(asked)}\n\n{asked.statement}"


def _line(asked: Exercise) -> str:
    stars = "●" * asked.difficulty + "○" * (3 - asked.difficulty)
    return f"{asked.number}  {asked.title}  {stars}  {asked.kind}, {asked.minutes} min"


def _listed() -> list[str]:
    lines = [f"{len(EXERCISES)} exercises, {sum(e.minutes for e in EXERCISES.values())} minutes"]
    for chapter, title in CHAPTERS.items():
        lines += ["", f"{chapter} · {title}"]
        lines += [f"  {_line(found)}" for found in EXERCISES.values() if found.chapter == chapter]
    return lines


exercise = Exercises()
