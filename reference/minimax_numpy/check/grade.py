"""Grade submissions: ten tasks of the exercises, 100 points.

A submission is a Python file with functions called as in the exercises' stubs. Each task runs in a process of its own
(`child.py`) on cases drawn from the teacher's seed; right answers stay here. Cases of a kind are a group (shapes, a
state handed in, a short chunk, …), and the points of a task are shared evenly among its groups.
"""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..checkpoint import write_whole
from . import child
from .exercises import EXERCISES
from .exercises.functions import Found, answers, judge_case, tell
from .single import Case

MODULE = ("1.2", "1.3", "2.3", "2.4", "3.4", "4.2", "4.3", "5.1", "6.1", "7.4")
POINTS = 10  # a task
MEGABYTES = 2048
LONGEST = 2**20  # bytes of a submission
LONGEST_LINE = 2**12  # bytes of a record's line


@dataclass
class TaskMark:
    """What a task earned, by group, and what there is to say about it."""

    exercise: str
    function: str
    points: float
    of: int
    groups: dict[str, bool]
    message: str


@dataclass
class Mark:
    """What a submission earned; ``error`` where it could not be run at all."""

    file: str
    points: float = 0.0
    of: int = 0
    error: str | None = None
    tasks: list[TaskMark] = field(default_factory=list)


class Outcome(NamedTuple):
    """What came back from a child: its import's trouble, if any, and what the function made of each case."""

    loading: str | None
    found: list[Found]


def grade(
    files: Sequence[str | os.PathLike],
    seed: int = 0,
    time_limit: float = 20.0,
    exercises: Collection[str] = MODULE,
) -> list[Mark]:
    """Grade Python files, as many at a time as there are processors.

    Parameters
    ----------
    files : sequence of paths
        Files, or folders, of which every ``.py`` is a submission.
    seed : int
        For the numbers of the cases. Whoever has another one gets other numbers.
    time_limit : float
        Seconds for a task, its import included.
    exercises : collection of str
        The graded ones, 10 points each.

    Raises FileNotFoundError or ValueError where there is nothing to grade, before anything is run.
    """
    if not time_limit > 0:
        raise ValueError(f"The time limit is {time_limit}; it must be more than 0 seconds.")
    if ungraded := [n for n in exercises if n not in EXERCISES or EXERCISES[n].task is None]:
        raise ValueError(f"Exercise {ungraded[0]} cannot be graded; graded are exercises whose answer is a function.")
    found = submissions(files)
    cases = {n: list(EXERCISES[n].task.cases(np.random.default_rng(seed))) for n in exercises}  # type: ignore[union-attr]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(lambda file: grade_file(file, cases, time_limit), found))


def submissions(files: Sequence[str | os.PathLike]) -> list[Path]:
    """The Python files that are meant."""
    found: list[Path] = []
    for path in map(Path, files):
        if path.is_dir():
            inside = sorted(path.glob("*.py"))
            if not inside:
                raise ValueError(f"{path} holds no .py to grade.")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"There is no {path} to grade.")
    return found


def grade_file(file: Path, cases: dict[str, list[Case]], time_limit: float) -> Mark:
    """Run every task of a submission; where it does not even load, it is asked once."""
    mark = Mark(str(file), of=POINTS * len(cases))
    try:
        if file.stat().st_size > LONGEST:
            raise ValueError(f"it has more than {LONGEST:,} bytes")
        source = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        mark.error = f"it cannot be read: {error}"
        source = None
    for number, drawn in cases.items():
        task = EXERCISES[number].task
        assert task is not None
        if mark.error is None and source is not None:
            outcome = run_child(source, file, task.function, drawn, time_limit)
            mark.error = outcome.loading
        made = [Found(trouble=mark.error)] * len(drawn) if mark.error else outcome.found
        mark.tasks.append(mark_task(number, drawn, made))
    mark.points = round(sum(task.points for task in mark.tasks), 1)
    return mark


def mark_task(number: str, cases: list[Case], made: list[Found]) -> TaskMark:
    """Points by group, and the message that the exercise itself would give."""
    exercise = EXERCISES[number]
    task = exercise.task
    assert task is not None
    groups: dict[str, bool] = {}
    for case, mine in zip(cases, made, strict=True):
        right = not any(row.wrong for row in judge_case(task, case, mine, answers(task.truth, case)))
        groups[case.label] = groups.get(case.label, True) and right
    points = round(POINTS * sum(groups.values()) / len(groups), 1)
    message = tell(exercise, cases, made).text.partition("\nHelp: ")[0]
    return TaskMark(number, task.function, points, POINTS, groups, message)


def run_child(source: str, file: Path, function: str, cases: list[Case], time_limit: float) -> Outcome:
    """Start a process, hand it the cases, and read what it has written when it ends or its time is up."""
    task = {"source": source, "file": file.name, "function": function, "megabytes": MEGABYTES}
    handed = pickle.dumps({**task, "cases": [case.arguments for case in cases]})
    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}  # threads reserve memory
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "answers"
        process = subprocess.Popen(
            [sys.executable, "-P", child.__file__, str(written)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd=folder, env={**os.environ, **one_thread}, start_new_session=True,
        )  # fmt: skip
        ended = ""
        try:
            process.communicate(handed, timeout=time_limit)
            if process.returncode:
                ended = f"its process ended with exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"it was not done after {time_limit:g} seconds"
        finally:
            stop(process)
        return read_records(written, len(cases), ended or "its process ended early")


def stop(process: subprocess.Popen) -> None:
    """End a process and whatever it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):  # all of it has ended
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def read_records(file: Path, count: int, ended: str) -> Outcome:
    """What a child wrote, as far as it got; the rest has the reason why there is no more."""
    records: list[Found] = []
    try:
        rest = file.read_bytes()
        while rest and len(records) <= count:
            line, _, rest = rest.partition(b"\n")
            header, arrays = json.loads(line[:LONGEST_LINE]), []
            for dtype, shape in header["arrays"]:
                kind = np.dtype(str(dtype))
                size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
                if kind.kind not in "biuf" or not 0 <= size <= len(rest):
                    raise ValueError("a record is cut short")
                arrays.append(np.frombuffer(rest[:size], kind).reshape(shape))
                rest = rest[size:]
            records.append(Found(None, str(header["trouble"])) if header["trouble"] else Found(arrays))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        pass  # a record cut short, or forged; what was written before still counts
    loading, *found = records or [Found(trouble=f"it does not load: {ended}")]
    told = f"it does not load: {loading.trouble.removeprefix('it does not load: ')}" if loading.trouble else None
    return Outcome(told, [*found, *[Found(trouble=ended)] * (count - len(found))])


def write_marks(marks: list[Mark], seed: int, path: str | os.PathLike) -> None:
    """Write everything as JSON."""
    values: dict[str, Any] = {"seed": seed, "submissions": [asdict(mark) for mark in marks]}
    text = json.dumps(values, indent=1, ensure_ascii=False)
    write_whole(path, lambda file: file.write_text(text + "\n", encoding="utf-8"))


def describe(marks: list[Mark]) -> str:
    """A line for each submission, and below it a line for each task that lost points."""
    lines = []
    for mark in marks:
        lines.append(f"{mark.points:5.1f} of {mark.of}  {mark.file}" + (f": {mark.error}" if mark.error else ""))
        for task in mark.tasks if not mark.error else ():
            if task.points < task.of:
                lost = ", ".join(group for group, right in task.groups.items() if not right)
                lines.append(f"      {task.function} {task.points:g} of {task.of}; wrong: {lost}")
    return "\n".join(lines)
