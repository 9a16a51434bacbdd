"""Twin of `minimax_numpy.ops`: same names, same order, on tensors of any device, differentiable by autograd.

Functions compute in the dtype of their input; norms, softmax, router and lightning state are at least
float32; decay tables are built in float64 and cast once. `using` is the one door into the model, here too.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

from minimax_numpy import ops as reference

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

__all__ = list(reference.__all__)


def using(**functions: Callable) -> AbstractContextManager[None]:
    """Twin of [using][minimax_numpy.ops.using]."""
    return reference.swapped(globals(), functions)
