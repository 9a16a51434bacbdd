"""Whether anybody looks into a model or has changed it: then what is fused steps aside, and modules run one by one."""

from collections.abc import Iterable
from typing import Any

import torch
from minimax_numpy.config import LIGHTNING, SOFTMAX, MiniMaxConfig
from minimax_numpy.ops import __all__ as names
from torch import nn

from .. import ops
from ..layers import DecoderLayer

PLAIN = {name: getattr(ops, name) for name in names}
"""The ops as they are; where one is another, the plain path runs it."""


def built() -> dict[tuple[str, type], Any]:
    """What stands in a decoder layer under which name, and what its class computes."""
    config = MiniMaxConfig.tiny(shared_intermediate_size=8)
    with torch.device("meta"):
        layers = [DecoderLayer(config, config.layer_types.index(kind)) for kind in (LIGHTNING, SOFTMAX)]
    return {(own(name), type(m)): type(m).forward for layer in layers for name, m in layer.named_modules()}


def own(name: str) -> str:
    """The last part of a module's path."""
    return name.rpartition(".")[2]


BUILT = built()
FORWARDS = {kind: forward for (_, kind), forward in BUILT.items()}


def unchanged(layers: nn.ModuleList) -> bool:
    """Whether these layers are made of what they were built of, nobody looks, and nothing is left to chance."""
    for layer in layers:
        for name, m in layer.named_modules():
            if (own(name), type(m)) not in BUILT or patched(m) or getattr(m, "bias", None) is not None:
                return False
    chance = any(layer.mlp.training and layer.mlp.jitter for layer in layers)  # type: ignore[union-attr]
    return not chance and watched(hooks_of(layers.modules())) is None


def patched(module: nn.Module) -> bool:
    """Whether a module, or its class, computes something else than it did."""
    kind = type(module)
    return "forward" in vars(module) or FORWARDS.get(kind, kind.forward) is not kind.forward


def hooks_of(modules: Iterable[nn.Module]) -> list[dict[int, Any]]:
    """Where the hooks of modules are kept, which is where new ones will be."""
    return [h for m in modules for h in (m._forward_hooks, m._forward_pre_hooks)]


def watched(hooks: list[dict[int, Any]]) -> str | None:
    """Who looks, as the beginning of a sentence; None: nobody."""
    swapped = next((name for name, op in PLAIN.items() if getattr(ops, name) is not op), None)
    if swapped is not None:
        return f"Another {swapped} is in use"
    if any(hooks) or nn.modules.module._has_any_global_hook():
        return "A module has a hook"
    return None
