"""Run the programs of chapter 10 as a student would: a process of its own, and nothing of the project in it."""

import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from minimax_numpy.cli import main

FOLDER = tempfile.TemporaryDirectory(prefix="ports-")


@cache
def golden(op):
    """The folder that the command writes."""
    folder = Path(FOLDER.name) / op
    assert main(["golden", str(folder), "--op", op]) == 0
    return folder


def written(program):
    """The file that a program writes from the golden vectors of its op, the one function that takes arrays there."""
    op = re.search(r"found = (\w+)\(", program)[1]
    folder = Path(tempfile.mkdtemp(dir=FOLDER.name))
    (folder / "program.py").write_text(program, encoding="utf-8")
    run = [sys.executable, "-I", "-W", "ignore", folder / "program.py", golden(op), folder / "actual.safetensors"]
    subprocess.run(run, check=True)
    return folder / "actual.safetensors"
