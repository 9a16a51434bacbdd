"""Write each notebook from its script. Cells are numbered, outputs left out.

A markdown cell that reads `{{ exercise 3.4 }}` becomes the exercise: what is asked with its hints and its solution
folded away, the stub, and the check. So notebook, site and judge have one text.
"""

import re
from pathlib import Path

import jupytext
import nbformat
from minimax_numpy.check import exercise
from minimax_numpy.check.exercises.registry import EXERCISES

FOLDER = Path(__file__).parents[2] / "notebooks"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def scripts():
    """The percent scripts, in order."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def cells_of(number):
    """The cells of an exercise: statement, stub, check."""
    it = EXERCISES[number]
    name = it.task.function if it.task else "answer"
    signature = exercise.stub(number).partition("\n")[0].removeprefix("def ").removesuffix(":")
    folded = [("A hint", it.hints[0]), ("Another hint", it.hints[1])]
    folded.append(("Solution", f"```python\n{it.solution.strip()}\n```\n\n{it.reason}"))
    parts = [
        f"### Exercise {number} · {it.title}",
        f"{'●' * it.difficulty + '○' * (3 - it.difficulty)} {it.kind}, {it.minutes} min",
        *([f"Write `{signature}`."] if it.task else []),
        it.statement,  # of a function, its docstring
        *(f"<details><summary>{name}</summary>\n\n{text}\n\n</details>" for name, text in folded),
    ]
    return [
        nbformat.v4.new_markdown_cell("\n\n".join(parts)),
        nbformat.v4.new_code_cell(exercise.stub(number).strip()),
        nbformat.v4.new_code_cell(f'exercise("{number}", {name})'),
    ]


def expanded(cells):
    """Cells with each exercise in full."""
    for cell in cells:
        asked = re.fullmatch(r"\{\{ exercise (\d+\.\d+) \}\}", cell.source)
        yield from cells_of(asked[1]) if asked else [cell]


def notebook(script):
    """The text of a script's .ipynb, the same on every machine."""
    book = jupytext.read(script)
    book.cells = list(expanded(book.cells))
    for number, cell in enumerate(book.cells, start=1):
        cell["id"], cell["metadata"] = f"cell-{number:02}", {}
    book["metadata"] = {"kernelspec": KERNEL}
    book["nbformat"], book["nbformat_minor"] = 4, 5
    nbformat.validate(book)
    return nbformat.writes(book, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for script in scripts():
        script.with_suffix(".ipynb").write_text(notebook(script), encoding="utf-8", newline="\n")
