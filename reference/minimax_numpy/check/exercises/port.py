"""Exercises whose answer is a file: one op, written in any language, judged by golden vectors.

The solution is a program that shares nothing with this project: it reads the files that `minimax-twin golden` writes,
and writes its answers into a third one. The judge makes the same vectors for itself.
"""

import atexit
import functools
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ... import ops
from ...checkpoint import read_header
from .. import single
from ..golden import by_case, compare, write_op
from ..judge import LIKENESS
from ..report import MISSING, Report, Row
from .functions import position, sentence
from .registry import Edit, Exercise, Mistake, Verdict, build, edited, register, source_and_stub

PROGRAM = '''\
"""python program.py vectors actual.safetensors"""

import json
import struct
import sys
from pathlib import Path

import numpy as np

STORED = {{"F64": "<f8", "F32": "<f4", "I64": "<i8", "BOOL": "?"}}


def read(path):
    """A safetensors file: 8 bytes of header length, a JSON header, then the numbers, row by row."""
    data, arrays = path.read_bytes(), {{}}
    first = 8 + struct.unpack("<Q", data[:8])[0]
    for name, x in json.loads(data[8:first]).items():
        if name != "__metadata__":
            start, end = x["data_offsets"]
            numbers = np.frombuffer(data[first + start : first + end], STORED[x["dtype"]])
            arrays[name] = numbers.reshape(x["shape"])
    return arrays


def write(path, arrays):
    header, body = {{}}, b""
    for name, x in arrays.items():
        numbers = np.ascontiguousarray(x, "<f8").tobytes()
        header[name] = {{"dtype": "F64", "shape": x.shape, "data_offsets": [len(body), len(body) + len(numbers)]}}
        body += numbers
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


{source}

def main(folder, actual):
    inputs, answers = read(folder / "inputs.safetensors"), {{}}
    for i, case in enumerate(json.loads((folder / "golden.json").read_text())["cases"]):
        arrays = {{name.split(".")[1]: x for name, x in inputs.items() if name.startswith(f"{{i}}.")}}
        numbers = {{name: x for name, x in case.items() if name != "case"}}
        found = {op}(**arrays, **numbers)
        for name, x in zip({outputs}, found if isinstance(found, tuple) else (found,)):
            answers[f"{{i}}.{{name}}"] = x
    write(actual, answers)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
'''

ASKED = """\
Write one op in a language of your choice, in a program that uses nothing of this project. \
`minimax-twin golden vectors --op {op}`, with the default seed, writes `vectors/inputs.safetensors`, with `0.{first}` \
and so on for case 0, and `vectors/golden.json`, with each case's numbers that are no arrays. The program writes \
{answers} … into another safetensors file, in float64 or float32. Answer with that file's path."""


def port(
    number: str,
    title: str,
    *,
    minutes: int,
    difficulty: int,
    hints: tuple[str, str],
    reason: str,
    outputs: dict[str, str],
    mistakes: Sequence[Edit],
):
    """Register the decorated function, which has an op's name and arguments, as the heart of a program.

    ``outputs`` names what the op returns, with its axes.
    """

    def register_solution(solution: Callable) -> Callable:
        op, source = solution.__name__, source_and_stub(solution)[0]
        first = next(iter(inspect.signature(solution).parameters))
        asked = ASKED.format(op=op, first=first, answers=", ".join(f"`0.{name}`" for name in outputs))
        program = PROGRAM.format(source=source, op=op, outputs=json.dumps(list(outputs)))
        register(
            Exercise(
                number,
                title,
                "port",
                minutes,
                difficulty,
                f"{asked}\n\n{inspect.getdoc(solution)}",
                hints,
                f"# minimax-twin golden vectors --op {op}\n# your program: vectors → actual.safetensors\n"
                'answer = ...  # "actual.safetensors"\n',
                program,
                reason,
                lambda exercise, answer: judge_file(exercise, answer, op, outputs),
                tuple(edited(program, edit) for edit in mistakes),
            )
        )
        return solution

    return register_solution


@functools.cache
def vectors(op: str) -> Path:
    """The golden vectors of an op, seed 0, as `minimax-twin golden` makes them; gone when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="golden-")
    atexit.register(folder.cleanup)
    return write_op(folder.name, op)


def judge_file(exercise: Exercise, answer: Any, op: str, axes: dict[str, str]) -> Verdict:
    """Right by every vector; else the first answer that is missing or wrong, where, and what that looks like."""
    if answer is ... or answer is None:
        return exercise.failed("There is no answer yet. A way to begin:", exercise.hints[0])
    if not isinstance(answer, str | os.PathLike):
        return exercise.failed(f"The answer is the path of a safetensors file; this is a {type(answer).__name__}.")
    file = Path(answer)
    if not file.is_file():
        return exercise.failed(f"There is no file {file}. Has your program been run, and in which folder?")
    try:
        with np.errstate(all="ignore"):  # what a program computed may be anything
            report, _, outcomes = compare(vectors(op), file)
            held = list(read_header(file))
    except (ValueError, OSError) as error:
        return exercise.failed(f"Your file cannot be read: {error}")
    names = [f"{i // len(axes)}.{row.part}" for i, row in enumerate(report.rows)]
    for name, row in zip(names, report.rows, strict=True):
        if name == report.lacking:
            return exercise.failed(missing(name, row, held))
        if row.wrong:
            with np.errstate(all="ignore"):
                return exercise.failed(
                    *first_wrong(name, row, outcomes, axes[row.part]), mistake=nearest(exercise, op, outcomes)
                )
    return exercise.passed(all_right(report))


def missing(name: str, row: Row, held: list[str]) -> str:
    """What is not there, and what is."""
    there = f"{', '.join(held[:4])}{' …' if len(held) > 4 else ''}" if held else "nothing"
    return (
        f"{name} is missing: the answer to case {name.partition('.')[0]}, “{row.phase}”. Your file holds "
        f"{there}. A name is the case, a point, and the output; every case but those with a mask is asked for."
    )


def all_right(report: Report) -> str:
    """How many cases, how near, and what was left out."""
    judged = [row for row in report.rows if row.verdict != MISSING]
    left = list(dict.fromkeys(row.phase for row in report.rows if row.verdict == MISSING))
    worst, cases = max(row.error for row in judged), len({row.phase for row in judged})
    told = f"{cases} cases; the largest relative error is {worst:.0e}."
    return f"{told} Not answered, so not judged: {', '.join(left)}." if left else told


def first_wrong(name: str, row: Row, outcomes: list, axes: str) -> list[str]:
    """The first wrong answer, beside the right one."""
    lines = [f"First wrong: {name}, the answer to case {name.partition('.')[0]}, “{row.phase}”."]
    if row.note:
        return [*lines, sentence(row.note)]
    found, exact = next((found[0], exact[0]) for _, rows, found, exact, _ in outcomes if rows[0] is row)
    return [*lines, position(row, found, exact, axes)]


def nearest(exercise: Exercise, op: str, outcomes: list) -> Mistake | None:
    """The known mistake whose answers are nearest; else the planted defect that is."""
    whole, right = by_case(op, outcomes), getattr(ops, op)
    scores = {m: single.unlikeness(whole, op_of(m.source, op), right) for m in exercise.mistakes}
    best = min(scores, key=lambda mistake: scores[mistake])
    if scores[best] < LIKENESS:
        return best
    says, cure = single.nearest_mistake(op, whole)
    return Mistake(says, cure, "") if says and cure else None


@functools.cache
def op_of(program: str, op: str) -> Callable:
    """The heart of a program, as a function."""
    return build(program, op)
