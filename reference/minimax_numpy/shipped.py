"""The small model that ships with the package: random weights, every feature of the architecture.

``python -m minimax_numpy.shipped`` makes it again, to the byte.
"""

from pathlib import Path

import numpy as np

from .checkpoint import save_checkpoint
from .config import MiniMaxConfig
from .model import fresh_weights
from .trace import float32_to_bfloat16

TINY = Path(__file__).parent / "tiny"


def make(folder: Path = TINY) -> None:
    """Write the checkpoint: bfloat16, float32 routers, gains that are not all one."""
    config = MiniMaxConfig.tiny(slope_rule="transformers")  # so that transformers differs by its rotary alone
    weights = fresh_weights(config, "MiniMaxForCausalLM", seed=1, dtype=np.dtype(np.float32))
    rng = np.random.default_rng(2)
    for name, x in weights.items():
        if x.ndim == 1:
            x = x + np.float32(0.2) * rng.standard_normal(x.shape, np.float32)
        weights[name] = x if name.endswith("mlp.gate.weight") else float32_to_bfloat16(x)
    save_checkpoint(folder, config, "MiniMaxForCausalLM", weights, max_shard_bytes=10**9)


if __name__ == "__main__":
    make()
