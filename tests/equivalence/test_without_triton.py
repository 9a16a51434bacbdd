"""Triton exists for Linux only, so nothing but the kernels may ask for it."""

import os
import subprocess
import sys

from close import assert_one_sentence

WITHOUT_TRITON = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import minimax_torch, minimax_torch.kernels, minimax_torch.slots
try:
    import minimax_torch.kernels.lightning
except ModuleNotFoundError as error:
    print(error)
"""


def test_without_triton_one_sentence_says_what_to_do():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, env=environment)
    assert_one_sentence(run.stdout.strip() or run.stderr, "triton", "pip install 'minimax-twin[kernels]'", "Linux")


def test_nothing_but_a_triton_kernel_imports_triton():
    modules = "minimax_torch.kernels.chunks, minimax_torch.bench, minimax_torch.slots"
    code = f"import sys, {modules}; print('triton' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == "False", run.stderr
