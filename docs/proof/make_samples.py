"""Write the two sample files of the page on tensors: `python docs/proof/make_samples.py`.

Both hold one call of lightning attention and its answers. The second's were made by a loop that reads the state before
it writes.
"""

from pathlib import Path

import numpy as np
from minimax_numpy import ops
from minimax_numpy.check import DEFECTS
from minimax_numpy.checkpoint import save_tensors

FOLDER = Path(__file__).parents[1] / "assets" / "tensors"
OP = "lightning_attention_recurrent"


def samples() -> dict[str, dict[str, np.ndarray]]:
    """File name → the arrays that it holds."""
    rng = np.random.default_rng(0)
    q, k, v = ops.silu(rng.standard_normal((3, 1, 4, 12, 8)))
    x = {"q": q, "k": k, "v": v, "slopes": ops.decay_slopes(4, 3, 80)}
    wrong = DEFECTS["reads_before_writing"].plant(ops)[OP]
    found = {}
    for name, function in (("right.safetensors", getattr(ops, OP)), ("wrong.npz", wrong)):
        out, state = function(*x.values())
        found[name] = {**x, "out": out.astype(np.float32), "new_state": state.astype(np.float32)}
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, arrays in samples().items():
        if name.endswith(".npz"):
            np.savez(FOLDER / name, **arrays)
        else:
            save_tensors(FOLDER / name, arrays)
