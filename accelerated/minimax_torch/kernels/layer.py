"""A decoder layer for inference on a GPU: few kernels between its matmuls, and nothing that the host must wait for.

| what | in |
|---|---|
| SiLU, lightning attention, the gate, the inner norm's gain | `segments.lightning_packed` |
| residual and the next norm; the inner norm's factor; the sum over experts | `fused.add_norm` |
| experts of many tokens | sorted once, two grouped matmuls |
| experts of few tokens | `fused.few`, each wanted expert's weights read once |

The modules one by one stay the definition, and run whenever somebody looks or changes something.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..cache import LightningMemory, SoftmaxMemory
from ..layers import LightningSelfAttention, Step
from . import choose
from .experts import by_expert, sort
from .watch import unchanged

TYPES = (torch.bfloat16, torch.float32)  # float16 holds no sum that is yet to be normed
WIDEST = 16_384  # channels of the stream


def takes(layers: Any, x: Tensor) -> bool:
    """Whether these layers are fused for this call: on a GPU with Triton, no gradient, and nobody looks."""
    if x.dtype not in TYPES or not on_gpu(x) or torch.is_grad_enabled() or choose.is_plain():
        return False
    return (
        unchanged(layers)
        and all(suits(layer, x.dtype) for layer in layers)
        and choose.has_triton("Layers run", x.device)
    )


def suits(layer: Any, dtype: torch.dtype) -> bool:
    """Whether the kernels know this kind of layer, and its weights are there, in order, and of the stream's type."""
    c, experts = layer.config, layer.mlp.experts._parameters
    stacks = [experts.get(name) for name in ("gate_up_proj", "down_proj")]
    return (
        c.hidden_act == layer.mlp.experts.hidden_act == "silu"
        and not c.shared_intermediate_size
        and c.head_dim <= choose.WIDEST
        and c.hidden_size <= WIDEST
        and all(isinstance(x, Tensor) and x.dtype == dtype and x.is_contiguous() for x in stacks)
    )


def on_gpu(x: Tensor) -> bool:
    """Where the kernels are compiled; tests let the interpreter run them."""
    return x.is_cuda


def decoder_layer(
    layer: Any,
    x: Tensor,
    n1: Tensor,
    following: Any,
    attend: Callable[..., tuple[Tensor, Tensor | None]],
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer from the stream and its norm: the stream, the norm that the next one asks for, and router logits.

    ``attend`` gives the attention's update, and squares (B, T) where that still wants the inner norm's factor.
    """
    from .fused import add_norm

    c = layer.config
    update, square = attend(layer.self_attn, n1)
    norm = layer.post_attention_layernorm
    width = c.num_attention_heads * c.head_dim
    carried = n1 if c.postnorm else x
    x, n2 = add_norm(carried, update, layer.alpha, layer.beta, norm.weight, norm.eps, square=square, width=width)

    logits, weights, indices = layer.mlp.gate(n2)
    said, back = experts(layer.mlp.experts, n2, indices)
    carried = n2 if c.postnorm else x
    alpha, beta = c.mlp_alpha_factor, c.mlp_beta_factor
    x, n = add_norm(carried, said, alpha, beta, following.weight, following.eps, back=back, shares=weights)
    return x, n, logits


def attention(
    module: Any, x: Tensor, step: Step, memory: LightningMemory | SoftmaxMemory
) -> tuple[Tensor, Tensor | None]:
    """What a layer's attention adds, from and into its memory."""
    if isinstance(memory, SoftmaxMemory):
        return module(x, step, memory), None
    qkv, gate = (step.unpack(y[:, None])[:, 0] for y in (module.qkv_proj(x), module.output_gate(x)))
    y, square, memory.state = lightning(module, qkv, gate, memory.state, mask=step.mask)
    y, square = step.pack(y[:, None])[:, 0], step.pack(square[:, None, :, None])[:, 0, :, 0]
    return module.out_proj(y), square


def lightning(
    module: LightningSelfAttention, qkv: Tensor, gate: Tensor, state: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """[lightning_packed][minimax_torch.kernels.segments.lightning_packed] of a layer."""
    from .segments import lightning_packed

    c = module.config
    slopes = slopes_on(c.num_attention_heads, module.layer_idx, c.num_hidden_layers, c.slope_rule, qkv.device)
    return lightning_packed(qkv, gate, module.norm.weight, slopes, state, **options)


@lru_cache(maxsize=1024)  # a graph copies nothing from the host
def slopes_on(num_heads: int, layer_idx: int, num_layers: int, rule: str, device: torch.device) -> Tensor:
    """Slopes, moved to their device once."""
    return ops.decay_slopes(num_heads, layer_idx, num_layers, rule).to(device)


def experts(module: Any, x: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """What each choice's expert says (choices, D), sorted by expert, and where each token finds its K answers."""
    from . import fused

    flat, chosen, K = x.reshape(-1, x.shape[-1]), indices.reshape(-1), indices.shape[-1]
    up, down = module.gate_up_proj, module.down_proj
    if len(chosen) <= max(16 * len(up), 512):  # 256 rows that choose two must be in here: a graph asks the host nothing
        order, back, ends = fused.sort(chosen, len(up))
        return fused.few(fused.few(flat, up, ends, order, K), down, ends), back
    order, back, ends = sort(chosen, len(up))
    hidden = fused.silu_up(by_expert(flat.index_select(0, order // K), up, ends))
    return by_expert(hidden, down, ends), back
