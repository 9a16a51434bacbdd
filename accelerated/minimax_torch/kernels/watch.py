"""Whether anybody looks into a model or has changed it: then what is fused steps aside, and modules run one by one."""

from collections.abc import Iterable
from typing import Any

from minimax_numpy.ops import __all__ as names
from torch import nn

from .. import layers, ops

PLAIN = {name: getattr(ops, name) for name in names}
"""The ops as they are; where one is another, the plain path runs it."""

BUILT = {nn.Linear, nn.Identity, nn.ModuleList, *(x for x in vars(layers).values() if isinstance(x, type))}
"""Kinds of modules that a layer is built of."""


def unchanged(layers: nn.ModuleList) -> bool:
    """Whether these layers are made of what they were built of, and nobody looks."""
    modules = list(layers.modules())
    return (
        all(type(m) in BUILT and getattr(m, "bias", None) is None for m in modules)
        and watched(hooks_of(modules)) is None
    )


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
