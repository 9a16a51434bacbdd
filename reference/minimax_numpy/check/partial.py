"""Some layers of a model by themselves: what can be run when only their shards are there."""

import os
from collections.abc import Collection

import numpy as np

from ..cache import Cache
from ..config import MiniMaxConfig
from ..layers import Weights, decoder_layer
from ..model import ModelOutput, plan_step
from ..shapes import Hidden
from ..streaming import Streamed
from ..trace import record


class Layers:
    """Layers of a checkpoint, streamed, one after another, each with its own index; no embedding, last norm or head.

    Raises FileNotFoundError naming a shard that is absent, ValueError where the index lacks a layer.
    """

    head = "MiniMaxForCausalLM"

    def __init__(self, path: str | os.PathLike, layers: Collection[int], dtype):
        self.config, self.layers = MiniMaxConfig.from_pretrained(path), sorted(set(layers))
        self.weights = Streamed(path, self.config, self.head, np.dtype(dtype), self.layers)

    def __call__(
        self, input_ids=None, attention_mask=None, *, inputs_embeds: Hidden, cache: Cache, cu_seqlens=None
    ) -> ModelOutput:
        """Run the layers on hidden states (B, T, D)."""
        w = Weights(self.weights)
        x = record(f"model.layers.{self.layers[0]}.input", inputs_embeds)
        step, lengths = plan_step(self.config, x.shape[:2], None, None, cache.lengths, None)
        with cache.advancing(lengths, x.dtype):
            for i in self.layers:
                x, _ = decoder_layer(w / "model.layers" / i, x, self.config, i, step, cache.layers[i])
        return ModelOutput(cache=cache, last_hidden_state=x)
