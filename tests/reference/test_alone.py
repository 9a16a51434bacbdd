"""The reference stands alone: NumPy for arithmetic, no torch anywhere, and small enough to read in an evening."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import minimax_numpy
import minimax_torch
import pytest

WITHOUT_TORCH = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "minimax_torch"):
            raise ImportError(f"{name} is blocked: the reference needs NumPy only.")

sys.meta_path.insert(0, Blocked())
import numpy as np
import minimax_numpy

for module in pkgutil.walk_packages(minimax_numpy.__path__, "minimax_numpy."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

model = minimax_numpy.MiniMaxForCausalLM(minimax_numpy.MiniMaxConfig.tiny())
ids = np.array([[5, 6, 7]])
assert model(ids, labels=ids, output_router_logits=True).logits.shape == (1, 3, 256)
assert model.generate(ids, max_new_tokens=4, eos_token_id=999).shape == (1, 7)
assert not any(name.split(".")[0] == "torch" for name in sys.modules)
"""


def test_the_reference_needs_only_numpy():
    """With torch blocked, every module of it imports, and the model runs and writes."""
    run = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def code_lines(file: Path) -> int:
    """Lines with code on them: no blanks, no comments, no docstrings."""
    source = file.read_text(encoding="utf-8")
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in silent
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


@pytest.mark.parametrize("package", [minimax_numpy, minimax_torch], ids=lambda p: p.__name__)
def test_the_core_is_read_in_one_evening(package):
    """config, ops, cache, layers and model: at most 1,200 lines of code in either package."""
    folder = Path(package.__file__).parent
    files = [file for name in ("config.py", "cache.py", "layers.py", "model.py") if (file := folder / name).exists()]
    counts = {file.name: code_lines(file) for file in [*files, *folder.glob("ops/*.py")]}
    assert sum(counts.values()) <= 1200, counts


COUNTED = '''"""Doc
string."""

# comment
x = 1  # one
y = """a
b"""
def f(
    a,
):
    """Doc."""
    return a
'''


def test_lines_are_counted_honestly(tmp_path):
    """Seven lines hold code here; the docstrings, the comment and the blank hold none."""
    (tmp_path / "file.py").write_text(COUNTED)
    assert code_lines(tmp_path / "file.py") == 7
