"""The notebook on kernels says in one sentence where there is no Triton, and nothing in it fails."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"


def test_without_triton_the_other_cells_are_left_out():
    notebook = nbformat.read(FOLDER / "11_kernel.ipynb", as_version=4)
    asks = next(cell for cell in notebook.cells if 'find_spec("triton") is None' in cell.source)
    asks.source = asks.source.replace('"triton"', '"triton_of_another_system"')
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(FOLDER)}}).execute()
    said = [output.text for cell in notebook.cells for output in cell.get("outputs", [])]
    assert said == ["Triton exists for Linux only; the cells below are left out.\n"]
