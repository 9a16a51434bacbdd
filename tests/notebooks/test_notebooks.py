"""Notebooks are what their scripts say, and run from top to bottom."""

import json
import runpy
from pathlib import Path

import nbformat
import pytest
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


@every_notebook
def test_a_notebook_runs_from_top_to_bottom(script):
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    NotebookClient(
        notebook, timeout=60, resources={"metadata": {"path": str(FOLDER)}}
    ).execute()  # a bound for each cell
