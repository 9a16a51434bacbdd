"""Grading: points by groups, the teacher's seed, no reference to lean on, and nothing that a submission does hurts."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from minimax_numpy.check import grade as grading
from minimax_numpy.check.exercises import EXERCISES
from minimax_numpy.check.grade import MODULE, POINTS, describe, grade, read_records
from minimax_numpy.cli import main

SOLUTIONS = "import numpy as np\n\n\n" + "\n\n".join(EXERCISES[n].solution for n in MODULE)
FORM = "lightning_attention_recurrent"


def submit(folder, source, *exercises, name="submission.py", **options):
    """The mark of a piece of source."""
    (folder / name).write_text(source, encoding="utf-8")
    return grade([folder / name], exercises=exercises or MODULE, **options)[0]


def test_the_module_has_ten_tasks_and_a_hundred_points():
    assert len(MODULE) == 10 and POINTS * len(MODULE) == 100
    assert len({EXERCISES[n].task.function for n in MODULE}) == 10
    for n in MODULE:  # something to earn in part
        assert len({case.label for case in EXERCISES[n].task.cases(np.random.default_rng(0))}) >= 3


@pytest.mark.parametrize("seed", [1, 2])
def test_solutions_are_right_whatever_the_seed(seed):
    """And the known mistakes wrong: no seed draws numbers that hide one, or that make it look like another."""
    from minimax_numpy.check.exercises.functions import run, tell
    from minimax_numpy.check.exercises.registry import build

    for n in MODULE:
        asked = EXERCISES[n]
        cases = list(asked.task.cases(np.random.default_rng(seed)))

        def verdict(source, asked=asked, cases=cases):
            function = build(source, asked.task.function)
            return tell(asked, cases, [run(function, case) for case in cases])

        assert verdict(asked.solution).ok
        for mistake in asked.mistakes:
            assert verdict(mistake.source).mistake == mistake.says


def test_the_command_writes_points_and_messages(tmp_path, capsys):
    (tmp_path / "ada.py").write_text(SOLUTIONS, encoding="utf-8")
    (tmp_path / "empty.py").write_text("import nothing_at_all", encoding="utf-8")
    out = tmp_path / "marks.json"
    assert main(["grade", str(tmp_path), "--seed", "7", "--json", str(out)]) == 0
    told = json.loads(out.read_text(encoding="utf-8"))
    ada, empty = told["submissions"]
    assert told["seed"] == 7 and [ada["points"], empty["points"]] == [100.0, 0.0] and ada["of"] == 100
    assert [task["exercise"] for task in ada["tasks"]] == list(MODULE)
    assert empty["error"] == "it does not load: ModuleNotFoundError: No module named 'nothing_at_all'"
    printed = capsys.readouterr().out
    assert "100.0 of 100" in printed and empty["error"] in printed


@pytest.mark.parametrize(
    "arguments",
    [["nowhere.py"], ["."], ["--seed", "-1", "x.py"], ["x.py", "--time-limit", "0"], ["x.py", "--json", "no/o"]],
)
def test_bad_input_is_told_before_anything_runs(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "." not in arguments:
        (tmp_path / "x.py").write_text("import nothing_at_all", encoding="utf-8")
    assert main(["grade", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_another_seed_draws_other_numbers(tmp_path):
    """Answers learnt by heart from one seed earn nothing with another."""
    task = EXERCISES["2.2"].task
    table = {
        case.arguments["k"].tobytes(): task.truth(**case.arguments) for case in task.cases(np.random.default_rng(1))
    }
    entries = ", ".join(f"{key!r}: np.array({value.tolist()!r})" for key, value in table.items())
    source = f"import numpy as np\nTABLE = {{{entries}}}\ndef memory(k, v, s):\n    return TABLE[k.tobytes()]\n"
    assert submit(tmp_path, source, "2.2", seed=1).points == 10
    assert submit(tmp_path, source, "2.2", seed=2).points == 0


def test_a_part_that_is_right_earns_its_part(tmp_path):
    """The state of before is ignored: the groups without one are right."""
    mark = submit(tmp_path, SOLUTIONS.replace("S = state", "S = 0 * state"), "2.3", "5.1", "2.2")
    recurrent, norm, absent = mark.tasks
    assert recurrent.groups == {"shapes": True, "one token": False, "a state handed in": False, "float32": False}
    assert recurrent.points == 2.5 and norm.points == 10 and mark.points == 12.5 and mark.of == 30
    assert "It looks as if the state is forgotten between calls." in recurrent.message
    assert "Help:" not in recurrent.message and "There is no function memory in the file." in absent.message
    assert "      recurrent 2.5 of 10; wrong: one token, a state handed in, float32" in describe([mark])


def test_the_page_shows_what_is_said(tmp_path):
    """The lines of the page on grading are those of a submission with the first mistake of exercise 3.4."""
    page = (Path(__file__).parents[2] / "docs/teach/grading.md").read_text(encoding="utf-8")
    asked = EXERCISES["3.4"]
    mark = submit(tmp_path, f"import numpy as np\n{asked.mistakes[0].source}", "3.4")
    assert describe([mark]).splitlines()[1] in page
    shown = json.loads(page.partition("```json\n")[2].partition("```")[0])
    task = asdict(mark.tasks[0])
    assert shown.pop("message").strip("… ") in task.pop("message")
    assert shown == task


CHEATS = {
    "by import": f"from minimax_numpy.ops import {FORM} as recurrent",
    "by a call": f"import minimax_numpy\ndef recurrent(*x):\n    return minimax_numpy.ops.{FORM}(*x)",
    "by importlib": f"import importlib\ndef recurrent(*x):\n    m = importlib.import_module('minimax_numpy.ops')\n"
    f"    return getattr(m, '{FORM}')(*x)",
    "by using": "from minimax_numpy import ops\ndef recurrent(*x):\n    with ops.using():\n"
    f"        return ops.{FORM}(*x)",
    "by the twin": f"import minimax_torch.ops as o\nrecurrent = lambda *x: o.{FORM}(*x)",
    "by a star": "from minimax_numpy.ops import *\nrecurrent = lightning_attention_recurrent",
    "by its exercises": "from minimax_numpy.check.exercises import chapter2\nrecurrent = chapter2.recurrent",
    "around the finder": "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != 'Finder']\n"
    "def recurrent(*x):\n    from minimax_numpy import ops\n"
    f"    return ops.{FORM}(*x)",
    "by its file": "import runpy, sys, pathlib\ndef recurrent(*x):\n    root = [p for p in sys.path"
    " if (pathlib.Path(p) / 'minimax_numpy').is_dir()][0]\n"
    f"    return runpy.run_path(root + '/minimax_numpy/ops/lightning.py')['{FORM}'](*x)",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_calling_the_reference_earns_nothing_and_is_told(cheat, tmp_path):
    """By whatever door; in the task that does it, and, but for a star, in no other."""
    source = f"{CHEATS[cheat]}\n\nimport numpy as np\n{EXERCISES['5.1'].solution}"
    recurrent, norm = submit(tmp_path, source, "2.3", "5.1").tasks
    assert recurrent.points == 0
    assert "the reference is not there while grading; write the function yourself" in recurrent.message
    assert norm.points == (0 if cheat == "by a star" else 10)


ACCIDENTS = {
    "a crash": ("import os; os._exit(3)", "Its process ended with exit code 3."),
    "an exit": ("raise SystemExit", "It fails with SystemExit"),
    "an interrupt": ("raise KeyboardInterrupt", "Its process ended"),
    "an endless loop": ("while True: pass", "It was not done after 1 seconds."),
    "too much memory": ("x = np.ones((10**6, 10**5))", "It fails with MemoryError"),
    "memory in steps": ("x = []\n    while True: x.append(bytearray(2**24))", "It fails with MemoryError"),
    "endless recursion": ("return rms_norm(x, weight, eps)", "It fails with RecursionError"),
    "another process": ("import subprocess; subprocess.run(['true'])", "It fails with PermissionError"),
    "a fork": ("import os; os.fork()", "It fails with PermissionError"),
    "the wrong kind": ("return 'fine'", "It returns something other than arrays of real numbers."),
    "an object that bites": ("return np.array([print], object)", "It returns something other than arrays"),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_whatever_happens_is_survived_and_told(accident, tmp_path, monkeypatch):
    """The next task is graded as if nothing had been."""
    monkeypatch.setattr(grading, "MEGABYTES", 512)  # reached sooner
    body, told = ACCIDENTS[accident]
    source = f"import numpy as np\n{EXERCISES['2.2'].solution}\ndef rms_norm(x, weight, eps):\n    {body}\n"
    norm, memory = submit(tmp_path, source, "5.1", "2.2", time_limit=10 if "memory" in accident else 1).tasks
    assert norm.points == 0 and told in norm.message
    assert memory.points == 10


def test_prints_are_swallowed_and_what_was_done_in_time_counts(tmp_path, capfd):
    """The first group is answered before the function begins to loop."""
    loop = "    print('x' * 10**6)\n    while x.ndim == 1: pass\n"
    source = f"import numpy as np\ndef rms_norm(x, weight, eps):\n{loop}" + "\n".join(
        EXERCISES["5.1"].solution.splitlines()[1:]
    )
    (norm,) = submit(tmp_path, source, "5.1", time_limit=1).tasks
    assert norm.groups["shapes"] and not norm.groups["one vector"] and norm.points == 2
    assert "It was not done after 1 seconds." in norm.message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "source, told",
    [
        ("def softmax(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("while True: pass", "it was not done after 1 seconds"),
        ("import os; os._exit(0)", "its process ended early"),
        ("\0", "it does not load"),
        ("import minimax_twin_of_my_own", "ModuleNotFoundError"),
    ],
)
def test_a_file_that_does_not_load_is_asked_once(source, told, tmp_path):
    """Ten tasks with a limit of a second are refused in about one."""
    started = time.monotonic()
    mark = submit(tmp_path, source, time_limit=1)
    assert time.monotonic() - started < 4
    assert mark.points == 0 and mark.error.startswith("it does not load: ") and told in mark.error
    assert len(mark.tasks) == 10 and all("It does not load" in task.message for task in mark.tasks)


def test_a_file_that_is_no_text_is_told(tmp_path):
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    assert "cannot be read" in grade([tmp_path / "latin.py"], exercises=["2.2"])[0].error


@pytest.mark.parametrize(
    "written",
    [
        b"", b"\x80\x04pickle", b"{}\n", b'{"trouble": null, "arrays": [["<f8", [1000000000000]]]}\n',
        b'{"trouble": null, "arrays": [["O", [1]]]}\n12345678', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_forged_answer_harms_nobody(written, tmp_path):
    """Nothing in it is executed or believed about its size."""
    (tmp_path / "answers").write_bytes(written)
    outcome = read_records(tmp_path / "answers", 3, "its process ended early")
    assert len(outcome.found) == 3 and all(found.arrays is None for found in outcome.found)


def test_only_functions_are_graded(tmp_path):
    with pytest.raises(ValueError, match="Exercise 1.1 cannot be graded"):
        grade([tmp_path], exercises=["1.1"])
