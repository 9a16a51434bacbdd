"""Notebooks are what their scripts say, and run from top to bottom."""

import copy
import json
import re
import runpy
from pathlib import Path

import nbformat
import pytest
from exercises.programs import written
from minimax_numpy.check.exercises.registry import EXERCISES
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
make = runpy.run_path(str(Path(__file__).parent / "remake.py"))
every_notebook = pytest.mark.parametrize("script", make["scripts"](), ids=lambda script: script.stem)


@every_notebook
def test_a_notebook_is_what_its_script_says(script):
    stored = script.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert stored == make["notebook"](script), "run make generated"


@every_notebook
def test_a_notebook_carries_no_outputs(script):
    cells = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def exercises_of(cells):
    """Number, stub cell and check cell of each exercise in a notebook."""
    for asked, stub, check in zip(cells, cells[1:], cells[2:]):
        if found := re.match(r"### Exercise (\d+\.\d+) ·", asked.source):
            yield found[1], stub, check


def solved(cells):
    """The cells again, with the solution of each exercise where its stub stands."""
    cells = copy.deepcopy(cells)
    for number, stub, _ in exercises_of(cells):
        it = EXERCISES[number]
        told = it.solution if "answer =" in it.solution else f"answer = {it.solution}"
        stub.source = it.solution if it.task else f"import math\n{told}"
        if it.kind == "port":  # a program, and the answer is the file that it writes
            stub.source = f"answer = {str(written(it.solution))!r}"
    return cells


def said(cell):
    """What a cell printed or returned."""
    outputs = cell.get("outputs", [])
    return "".join(output.get("text", output.get("data", {}).get("text/plain", "")) for output in outputs)


@every_notebook
def test_an_exercise_in_a_notebook_is_the_one_that_is_checked(script):
    cells = nbformat.read(script.with_suffix(".ipynb"), as_version=4).cells
    assert not [cell.source for cell in cells if "{{" in cell.source], "{{ exercise 3.4 }} stands alone in its cell"
    numbers = re.findall(r"### Exercise (\S+)", "\n".join(cell.source for cell in cells))
    found = list(exercises_of(cells))
    assert [number for number, _, _ in found] == numbers
    for number, stub, check in found:
        it = EXERCISES[number]
        assert stub.source == it.stub.strip()
        assert check.source == f'exercise("{number}", {it.task.function if it.task else "answer"})'


@every_notebook
def test_a_notebook_runs_from_top_to_bottom_with_its_stubs_and_with_the_solutions(script):
    """Both in one kernel, one after the other, for starting it takes longer than most notebooks."""
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    asked = list(exercises_of(notebook.cells))
    answered = solved(notebook.cells) if asked else []
    notebook.cells = notebook.cells + answered
    where = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=60, resources=where).execute()  # a bound for each cell
    for number, _, check in asked:
        assert "not yet" in said(check), f"the stub of {number} passes"
    for number, _, check in exercises_of(answered):
        assert ": right." in said(check), f"{number} with its solution: {said(check)}"
    for cell in answered:
        assert "the library's, until yours" not in said(cell), f"a right answer is not put to work: {said(cell)}"
