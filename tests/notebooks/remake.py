"""Write each notebook from its script: `make notebooks`. Cells are numbered, outputs left out."""

from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parents[2] / "notebooks"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def scripts():
    """The percent scripts, in order."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def notebook(script):
    """The text of a script's .ipynb, the same on every machine."""
    book = jupytext.read(script)
    for number, cell in enumerate(book.cells, start=1):
        cell["id"], cell["metadata"] = f"cell-{number:02}", {}
    book["metadata"] = {"kernelspec": KERNEL}
    book["nbformat"], book["nbformat_minor"] = 4, 5
    nbformat.validate(book)
    return nbformat.writes(book, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for script in scripts():
        script.with_suffix(".ipynb").write_text(notebook(script), encoding="utf-8", newline="\n")
