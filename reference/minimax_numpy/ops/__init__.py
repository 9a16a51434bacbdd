"""The parts of the model as pure functions on arrays, one idea a file.

Functions compute in the dtype of their input; norms, softmax, router and lightning state are at least
float32; decay tables are built in float64 and cast once.

Layers call these functions through this module, which makes it the one door into the model:

    with ops.using(lightning_attention_chunked=mine):
        model(input_ids)
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from .attention import softmax, softmax_attention, visible_keys
from .experts import mix_experts, route, swiglu
from .lightning import (
    decay_slopes,
    lightning_attention_chunked,
    lightning_attention_direct,
    lightning_attention_recurrent,
)
from .losses import causal_loss, classification_loss, cross_entropy, load_balancing_loss, log_softmax
from .norms import inner_norm, rms_norm
from .packing import document_rows, pack, unpack
from .pointwise import activate, add_residual, gelu, output_gate, sigmoid, silu
from .projections import linear, merge_heads, split_heads, split_qkv
from .rotary import apply_rotary, rotary_frequencies

__all__ = [
    "activate",
    "add_residual",
    "apply_rotary",
    "causal_loss",
    "classification_loss",
    "cross_entropy",
    "decay_slopes",
    "document_rows",
    "gelu",
    "inner_norm",
    "lightning_attention_chunked",
    "lightning_attention_direct",
    "lightning_attention_recurrent",
    "linear",
    "load_balancing_loss",
    "log_softmax",
    "merge_heads",
    "mix_experts",
    "output_gate",
    "pack",
    "rms_norm",
    "rotary_frequencies",
    "route",
    "sigmoid",
    "silu",
    "softmax",
    "softmax_attention",
    "split_heads",
    "split_qkv",
    "swiglu",
    "unpack",
    "using",
    "visible_keys",
]


@contextmanager
def swapped(namespace: dict, functions: dict[str, Callable]) -> Iterator[None]:
    """Put other functions under the names of ops in a module's namespace until the block ends."""
    for name in functions:
        if name not in __all__:
            raise ValueError(f"There is no op {name!r} to replace. The ops are: {', '.join(__all__)}.")
    before = {name: namespace[name] for name in functions}
    namespace.update(functions)
    try:
        yield
    finally:
        namespace.update(before)


def using(**functions: Callable) -> AbstractContextManager[None]:
    """Run other functions in place of these, inside the whole model, until the block ends.

    Raises ValueError where a name is not that of an op.
    """
    return swapped(globals(), functions)
