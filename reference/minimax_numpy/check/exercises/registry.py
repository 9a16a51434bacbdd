"""What an exercise is, and where all of them are kept.

An exercise is declared where its solution is written. The solution is a real function: its docstring is the
statement, its signature and docstring are the stub, and every known mistake is a small edit of its text.
"""

import ast
import inspect
import math
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..defects import DEFECTS
from ..single import Case

KINDS = ("predict", "by hand", "implement", "derive", "debug", "measure", "estimate", "design", "port")
EXERCISES: dict[str, "Exercise"] = {}


class Mistake(NamedTuple):
    """A wrong answer that people give: what it is in words, the cure, and its source."""

    says: str
    cure: str
    source: str


class Edit(NamedTuple):
    """A mistake as a change of the solution's text; it stands there once."""

    says: str
    cure: str
    old: str
    new: str


def planted(key: str, old: str, new: str) -> Edit:
    """A mistake that the judge knows, in the words of [DEFECTS][minimax_numpy.check.defects]."""
    return Edit(DEFECTS[key].says, DEFECTS[key].cure, old, new)


@dataclass(frozen=True, repr=False)
class Verdict:
    """Right or not, with the reason; it shows itself as text."""

    number: str
    ok: bool
    text: str
    mistake: str | None = None  # what it looks like, where that is known

    def __repr__(self) -> str:
        return self.text


class Task(NamedTuple):
    """What a function is judged by: cases with the truth's answers, and the axes of what comes out.

    Cases are drawn from a generator; those with the same label are a group, which earns credit as a whole.
    """

    function: str
    cases: Callable[[np.random.Generator], Iterator[Case]]
    truth: Callable
    outputs: tuple[str, ...]
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Exercise:
    """One exercise; ``judge`` takes an answer and gives the verdict."""

    number: str
    title: str
    kind: str
    minutes: int
    difficulty: int  # 1 to 3
    statement: str
    hints: tuple[str, str]
    stub: str
    solution: str
    reason: str
    judge: Callable[["Exercise", Any], Verdict]
    mistakes: tuple[Mistake, ...] = ()
    task: Task | None = None

    @property
    def chapter(self) -> int:
        """The number before the dot."""
        return int(self.number.partition(".")[0])

    def failed(self, *lines: str | None, mistake: Mistake | None = None) -> Verdict:
        """A verdict that says what is wrong, what it looks like, and where help is."""
        told = [f"{self.number} · {self.title}: not yet.", *(line for line in lines if line)]
        if mistake:
            told += [f"It looks as if {mistake.says}.", f"Cure: {mistake.cure}"]
        told.append(f'Help: exercise.hint("{self.number}", 1), then 2, then exercise.solution("{self.number}").')
        return Verdict(self.number, False, "\n".join(told), mistake.says if mistake else None)

    def passed(self, *lines: str) -> Verdict:
        """A verdict that says why it is right."""
        told = [f"{self.number} · {self.title}: right.", *lines, self.reason]
        return Verdict(self.number, True, "\n".join(told))


def register(exercise: Exercise) -> Exercise:
    """Add an exercise to the list; a number stands there once."""
    if exercise.number in EXERCISES or exercise.kind not in KINDS:
        raise ValueError(f"Exercise {exercise.number} ({exercise.kind}) is there already, or of no known kind.")
    EXERCISES[exercise.number] = exercise
    return exercise


def source_and_stub(function: Callable) -> tuple[str, str]:
    """The text of a function without its decorators and docstring, and its stub: signature, docstring, no body."""
    text = textwrap.dedent(inspect.getsource(function))
    lines, node = text.splitlines(), next(n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef))
    docstring = node.body[0]
    head, body = lines[node.lineno - 1 : docstring.lineno - 1], lines[docstring.end_lineno :]
    said = lines[docstring.lineno - 1 : docstring.end_lineno]
    while body and not body[0].strip():
        body = body[1:]
    return "\n".join(head + body) + "\n", "\n".join([*head, *said, "    raise NotImplementedError"]) + "\n"


def build(source: str, name: str) -> Callable:
    """The function of that name in a piece of source that knows ``np`` and ``math``."""
    namespace: dict[str, Any] = {"np": np, "math": math}
    exec(compile(source, f"<{name}>", "exec"), namespace)
    return namespace[name]


def edited(source: str, edit: Edit) -> Mistake:
    """The solution with a mistake in it."""
    if source.count(edit.old) != 1:
        raise ValueError(f"{edit.old!r} stands {source.count(edit.old)} times in the solution; it must be once.")
    return Mistake(edit.says, edit.cure, source.replace(edit.old, edit.new))
