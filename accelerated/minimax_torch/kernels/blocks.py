"""A decoder layer for inference on a CPU: many tokens in blocks, each in the memory that the last one used.

A matrix product into fresh pages takes a third longer than one into pages that were there, and what is done number by
number between two products is quicker where its block stays in the processor's caches.

| what | tokens at a time |
|---|---|
| norm, SiLU, lightning attention by [chunks][minimax_torch.kernels.chunks], gate, residual | `TOKENS` |
| norm, router, experts, residual | `ROUTED`, so that every expert has enough |
| softmax attention | all |

The modules one by one stay the definition, and run whenever somebody looks or changes something.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..cache import LightningMemory, SoftmaxMemory
from ..layers import Step
from ..shapes import Hidden, RouterLogits
from . import choose
from .chunks import narrowed, pieces, walk
from .experts import mix_experts
from .norm import INNER_EPS, inverse_rms
from .token import places_of
from .watch import unchanged

TOKENS, ROUTED = 1024, 4096
FEWEST = 64  # tokens of a text: fewer fit wherever they are
WRITTEN_TO = {"silu": torch.ops.aten.silu.out, "gelu": torch.ops.aten.gelu.out}
"""Activations that put what they give where they are told."""


class Room:
    """Memory under names, asked for again and again."""

    def __init__(self, like: Tensor):
        self.like, self.held = like.new_empty(0), dict[str, Tensor]()

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Some of that shape, whatever is in it."""
        if name not in self.held or self.held[name].numel() < prod(shape):
            self.held[name] = self.like.new_empty(prod(shape))
        return self.held[name][: prod(shape)].view(shape)


def takes(layers: Any, x: Hidden, step: Step) -> bool:
    """Whether these layers run in blocks for this call: on a CPU, many tokens, no gradient, and nobody looks."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.shape[1] >= FEWEST
        and step.rows is None
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not choose.is_plain()
        and unchanged(layers)
        and all(suits(layer, x.dtype) for layer in layers)
    )


def suits(layer: Any, dtype: torch.dtype) -> bool:
    """Whether all weights are there, of the stream's type, and the layer has no expert shared by all."""
    weights = [module._parameters.get(name) for _, module, name in places_of(layer)]
    return not layer.config.shared_intermediate_size and all(plain(w, dtype) for w in weights)


def plain(w: Any, dtype: torch.dtype) -> bool:
    """Whether it is a tensor that any product takes: on the CPU, of this type, no subclass, nothing sparse."""
    usual = type(w) in (Tensor, nn.Parameter) and w.layout == torch.strided
    return usual and w.dtype == dtype and w.device.type == "cpu"


def decoder_layer(
    layer: Any, x: Hidden, into: Hidden, step: Step, memory: LightningMemory | SoftmaxMemory, room: Room
) -> tuple[Hidden, RouterLogits]:
    """Compute [DecoderLayer][minimax_torch.layers.DecoderLayer]; the stream is written to ``into``, which may be x."""
    if isinstance(memory, LightningMemory):
        memory.state = lightning(layer, x, into, step, memory.state, room)
    else:
        n1 = layer.input_layernorm(x)
        update = layer.self_attn(n1, step, memory)
        add(n1 if layer.config.postnorm else x, update, layer.alpha, layer.beta, into)
    return into, experts(layer, into, room)


def lightning(layer: Any, x: Hidden, into: Hidden, step: Step, state: Tensor | None, room: Room) -> Tensor:
    """Add lightning attention, one block of tokens after another; the state in the end, (B, H, d, d)."""
    c, module = layer.config, layer.self_attn
    (B, T, D), H, d = x.shape, c.num_attention_heads, c.head_dim
    slopes = ops.decay_slopes(H, module.layer_idx, c.num_hidden_layers, c.slope_rule)
    S = x.new_zeros(B, H, d, d) if state is None else state.to(x.dtype)
    chunk = narrowed(c.block_size, d)
    for piece, tables in pieces(T, chunk, max(1, TOKENS // (B * chunk)), slopes, step.mask, x):
        n, m, part = piece.n, piece.m, piece.part
        rows = B * n * m
        n1 = norm(
            x[:, part], layer.input_layernorm.weight, layer.input_layernorm.eps, room("normed", B, n * m, D)
        ).view(rows, D)
        qkv = torch.mm(n1, module.qkv_proj.weight.mT, out=room("qkv", rows, 3 * H * d))
        heads = qkv.view(B, n, m, H, 3, d).permute(4, 0, 3, 1, 2, 5)  # (3, B, H, n, m, d)
        q, k, v = heads = WRITTEN_TO[c.hidden_act](heads, out=room("heads", *heads.shape))
        if step.mask is not None:
            heads[1:].masked_fill_(~step.mask[:, part].reshape(B, 1, n, m, 1), 0)
        out, S, _ = walk(q, k, v, S, tables)
        y = room("out", rows, H * d)
        y.view(B, n, m, H, d).copy_(out.permute(0, 2, 3, 1, 4))
        y = norm(y, module.norm.weight, INNER_EPS, y)
        gate = torch.mm(n1, module.output_gate.weight.mT, out=room("gate", rows, H * d))
        update = torch.mm(gate.sigmoid_().mul_(y), module.out_proj.weight.mT, out=room("update", rows, D))
        carried = n1.view(B, n * m, D) if c.postnorm else x[:, part]
        add(carried, update.view_as(carried), layer.alpha, layer.beta, into[:, part])
    return S


def experts(layer: Any, x: Hidden, room: Room) -> RouterLogits:
    """Add what the experts say, one block of tokens after another, over the stream; the router's logits."""
    c, between, module, found = layer.config, layer.post_attention_layernorm, layer.mlp.experts, []
    for here in x.split(max(1, ROUTED // len(x)), dim=1):
        n2 = norm(here, between.weight, between.eps, room("normed", *here.shape))
        logits, weights, indices = layer.mlp.gate(n2)
        said = mix_experts(n2, weights, indices, module.gate_up_proj, module.down_proj, module.hidden_act)
        add(n2 if c.postnorm else here, said, c.mlp_alpha_factor, c.mlp_beta_factor, here)
        found.append(logits)
    return torch.cat(found, dim=1)


def norm(x: Tensor, weight: Tensor, eps: float, into: Tensor) -> Tensor:
    """RMSNorm, written there."""
    return torch.mul(x, inverse_rms(x, eps), out=into).mul_(weight)


def add(carried: Tensor, update: Tensor, alpha: float, beta: float, into: Tensor) -> None:
    """α times the stream and β times its update, written there; the update may be written over."""
    torch.add(update if beta == 1 else update.mul_(beta), carried, alpha=alpha, out=into)
