"""Whether anybody looks into a model or has changed it: then what is fused steps aside, and modules run one by one."""

from collections.abc import Iterable
from typing import Any

from minimax_numpy.ops import __all__ as names
from torch import nn

from .. import ops

PLAIN = {name: getattr(ops, name) for name in names}
"""The ops as they are; where one is another, the plain path runs it."""


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
