"""Make the two files to try "Bring your tensor" with: `python docs/proof/make_tensors.py` writes them.

Lightning attention of four heads over twelve tokens, in float32, as layer 3 of 80 has it. One file is right; the other
is what a kernel writes that reads the state before it writes to it.
"""

from pathlib import Path

import numpy as np
from minimax_numpy import ops
from minimax_numpy.check import DEFECTS
from minimax_numpy.checkpoint import save_tensors

FOLDER = Path(__file__).parents[1] / "assets" / "tensors"
LAYER, LAYERS = 3, 80


def tensors(attention=ops.lightning_attention_chunked):
    """Inputs and answers by name, in float32."""
    rng = np.random.default_rng(0)
    B, H, T, d, e = 1, 4, 12, 8, 4
    q, k, v = (ops.silu(rng.standard_normal((B, H, T, n))).astype("f4") for n in (d, d, e))
    state = rng.standard_normal((B, H, d, e)).astype("f4")
    slopes = ops.decay_slopes(H, LAYER, LAYERS).astype("f4")
    out, new_state = attention(q, k, v, slopes, state)
    inputs = {"q": q, "k": k, "v": v, "slopes": slopes, "state": state}
    return {**inputs, "out": out.astype("f4"), "new_state": new_state.astype("f4")}


def wrong():
    """The same from a kernel that reads too early."""
    return tensors(DEFECTS["reads_before_writing"].plant(ops)["lightning_attention_chunked"])


if __name__ == "__main__":
    numbers = {"op": "lightning_attention_chunked", "layer_idx": str(LAYER), "num_layers": str(LAYERS)}
    save_tensors(FOLDER / "right.safetensors", tensors(), numbers)
    np.savez_compressed(FOLDER / "wrong.npz", **wrong(), layer_idx=LAYER, num_layers=LAYERS)
