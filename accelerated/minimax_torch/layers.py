"""Twin of `minimax_numpy.layers`: each function there is a module here, in the same order.

Module paths and parameter names are those of transformers 5, so hooks on either line up. The parts that have
no module of their own there (query, key, state, the router's choice) pass through an `nn.Identity`, where
hooks can see and replace them.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from minimax_numpy.config import LIGHTNING, MiniMaxConfig
from torch import Tensor, nn

from . import ops
from .cache import LightningMemory, SoftmaxMemory
from .shapes import Hidden, Mask, Positions, RouterLogits, RoutingIndices, RoutingWeights, Visible


class Step(NamedTuple):
    """Twin of [Step][minimax_numpy.layers.Step]."""

    positions: Positions
    slots: Positions
    mask: Mask | None = None
    visible: Visible | None = None
    rows: Int[Tensor, "N longest"] | None = None

    def unpack(self, x: Float[Tensor, "B H T d"]) -> Float[Tensor, "N H longest d"]:
        """One row a document, where the call is packed."""
        return x if self.rows is None else ops.unpack(x, self.rows)

    def pack(self, x: Float[Tensor, "N H longest d"]) -> Float[Tensor, "B H T d"]:
        """Undo `unpack`; a packed call has a mask."""
        return x if self.rows is None or self.mask is None else ops.pack(x, self.mask)


class RMSNorm(nn.Module):
    """A gain per channel, and [rms_norm][minimax_torch.ops.norms.rms_norm]."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Hidden) -> Hidden:
        return ops.rms_norm(x, self.weight, self.eps)


class InnerNorm(nn.Module):
    """A gain per channel of all heads, and [inner_norm][minimax_torch.ops.norms.inner_norm]."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Float[Tensor, "B T Hd"]) -> Float[Tensor, "B T Hd"]:
        return ops.inner_norm(x, self.weight)


class LightningSelfAttention(nn.Module):
    """Twin of [lightning_self_attention][minimax_numpy.layers.lightning_self_attention]."""

    def __init__(self, config: MiniMaxConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        D, width = config.hidden_size, config.num_attention_heads * config.head_dim
        self.qkv_proj = nn.Linear(D, 3 * width, bias=False)
        self.norm = InnerNorm(width)
        self.output_gate = nn.Linear(D, width, bias=False)
        self.out_proj = nn.Linear(width, D, bias=False)
        self.state = nn.Identity()

    def forward(
        self, x: Hidden, step: Step, state: Float[Tensor, "N H d e"] | None
    ) -> tuple[Hidden, Float[Tensor, "N H d e"]]:
        config, H = self.config, self.config.num_attention_heads
        slopes = ops.decay_slopes(H, self.layer_idx, config.num_hidden_layers, config.slope_rule).to(x.device)
        q, k, v = ops.split_qkv(self.qkv_proj(x), H, config.hidden_act)  # (B, H, T, d) each
        q, k, v = (step.unpack(heads) for heads in (q, k, v))
        padding = {} if step.mask is None else {"mask": step.mask}
        chunk = min(config.block_size, 2 * config.head_dim)  # a wider one costs more inside than it saves between
        out, state = ops.lightning_attention_chunked(q, k, v, slopes, state, chunk=chunk, **padding)
        state = self.state(state)
        y = self.norm(ops.merge_heads(step.pack(out)))  # (B, T, H·d)
        return self.out_proj(ops.output_gate(y, x, self.output_gate)), state


class SoftmaxSelfAttention(nn.Module):
    """Twin of [softmax_self_attention][minimax_numpy.layers.softmax_self_attention].

    ``attn_implementation`` is that of [softmax_attention][minimax_torch.ops.attention.softmax_attention].
    """

    def __init__(self, config: MiniMaxConfig, attn_implementation: str = "sdpa"):
        super().__init__()
        self.config, self.attn_implementation = config, attn_implementation
        D, H, G, d = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.q_proj = nn.Linear(D, H * d, bias=False)
        self.k_proj = nn.Linear(D, G * d, bias=False)
        self.v_proj = nn.Linear(D, G * d, bias=False)
        self.o_proj = nn.Linear(H * d, D, bias=False)
        self.query, self.key = nn.Identity(), nn.Identity()

    def forward(self, x: Hidden, step: Step, memory: SoftmaxMemory) -> Hidden:
        config, H, G = self.config, self.config.num_attention_heads, self.config.num_key_value_heads
        q, k, v = (ops.split_heads(p(x), n) for p, n in ((self.q_proj, H), (self.k_proj, G), (self.v_proj, G)))
        q, k = (ops.apply_rotary(heads, step.positions, config.rotary_dim, config.rope_theta) for heads in (q, k))
        q, k = (part(heads.transpose(1, 2)).transpose(1, 2) for part, heads in ((self.query, q), (self.key, k)))
        q, k, v = (step.unpack(heads) for heads in (q, k, v))
        keys, values = memory.append(k, v, step.slots, step.mask)
        how = {} if self.attn_implementation == "sdpa" else {"implementation": self.attn_implementation}
        out = step.pack(ops.softmax_attention(q, keys, values, step.visible, **how))
        return self.o_proj(ops.merge_heads(out))


class TopKRouter(nn.Module):
    """Scores of the experts, in at least float32, and [route][minimax_torch.ops.experts.route]."""

    def __init__(self, config: MiniMaxConfig):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size))
        self.weights, self.indices = nn.Identity(), nn.Identity()

    def forward(self, x: Hidden) -> tuple[RouterLogits, RoutingWeights, RoutingIndices]:
        wide = torch.promote_types(torch.promote_types(x.dtype, self.weight.dtype), torch.float32)
        logits = ops.linear(x.to(wide), self.weight.to(wide))  # (B, T, E)
        weights, indices = ops.route(logits, self.top_k)
        return logits, self.weights(weights), self.indices(indices)


class Experts(nn.Module):
    """All experts of a layer, stacked, and [mix_experts][minimax_torch.ops.experts.mix_experts]."""

    def __init__(self, config: MiniMaxConfig):
        super().__init__()
        self.hidden_act = config.hidden_act
        E, F, D = config.num_local_experts, config.intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * F, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, F))

    def forward(self, x: Hidden, indices: RoutingIndices, weights: RoutingWeights) -> Hidden:
        return ops.mix_experts(x, weights, indices, self.gate_up_proj, self.down_proj, self.hidden_act)


class SparseMoe(nn.Module):
    """Twin of [sparse_moe][minimax_numpy.layers.sparse_moe].

    In training the router's input, and nothing else, is jittered by U(1 − j, 1 + j).
    """

    def __init__(self, config: MiniMaxConfig):
        super().__init__()
        self.jitter = config.router_jitter_noise
        self.gate, self.experts = TopKRouter(config), Experts(config)

    def forward(self, x: Hidden) -> tuple[Hidden, RouterLogits]:
        seen = x
        if self.training and self.jitter:
            seen = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        logits, weights, indices = self.gate(seen)
        return self.experts(x, indices, weights), logits


class SharedMlp(nn.Module):
    """Twin of [shared_mlp][minimax_numpy.layers.shared_mlp]."""

    def __init__(self, config: MiniMaxConfig):
        super().__init__()
        self.hidden_act = config.hidden_act
        D, width = config.hidden_size, config.shared_intermediate_size
        self.gate_proj = nn.Linear(D, width, bias=False)
        self.up_proj = nn.Linear(D, width, bias=False)
        self.down_proj = nn.Linear(width, D, bias=False)

    def forward(self, x: Hidden) -> Hidden:
        return self.down_proj(ops.activate(self.gate_proj(x), self.hidden_act) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Twin of [decoder_layer][minimax_numpy.layers.decoder_layer]."""

    def __init__(self, config: MiniMaxConfig, layer_idx: int, attn_implementation: str = "sdpa"):
        super().__init__()
        self.config = config
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.layer_types[layer_idx] == LIGHTNING:
            self.self_attn: nn.Module = LightningSelfAttention(config, layer_idx)
            self.alpha, self.beta = config.linear_attn_alpha_factor, config.linear_attn_beta_factor
        else:
            self.self_attn = SoftmaxSelfAttention(config, attn_implementation)
            self.alpha, self.beta = config.full_attn_alpha_factor, config.full_attn_beta_factor
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SparseMoe(config)
        if config.shared_intermediate_size:
            self.shared_mlp = SharedMlp(config)
            self.coefficient = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, x: Hidden, step: Step, memory: LightningMemory | SoftmaxMemory) -> tuple[Hidden, RouterLogits]:
        n1 = self.input_layernorm(x)
        if isinstance(memory, LightningMemory):
            update, memory.state = self.self_attn(n1, step, memory.state)
        else:
            update = self.self_attn(n1, step, memory)
        x = ops.add_residual(x, n1, update, self.alpha, self.beta, self.config.postnorm)

        n2 = self.post_attention_layernorm(x)
        update, router_logits = self.mlp(n2)
        if self.config.shared_intermediate_size:
            c = ops.sigmoid(self.coefficient(n2))  # (B, T, 1)
            update = (1 - c) * update + c * self.shared_mlp(n2)
        config = self.config
        x = ops.add_residual(x, n2, update, config.mlp_alpha_factor, config.mlp_beta_factor, config.postnorm)
        return x, router_logits
