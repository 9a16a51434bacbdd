r"""A layer: ops and weights. Normalise, mix over positions, join; normalise, mix over channels, join.

$$n_1 = \mathrm{RMSNorm}(x), \quad x \leftarrow \alpha_a n_1 + \beta_a\,\mathrm{Attention}(n_1), \qquad
n_2 = \mathrm{RMSNorm}(x), \quad x \leftarrow \alpha_m n_2 + \beta_m\,\mathrm{MoE}(n_2)$$

Functions here take a `Weights`, a module path into the model's weights, and record their parts under it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from . import ops
from .cache import LightningMemory, SoftmaxMemory
from .config import MiniMaxConfig
from .shapes import Hidden, Mask, Positions, RouterLogits, Visible
from .trace import record


class Weights:
    """The model's weights seen from a module path: ``w / "self_attn"`` goes down, ``w["norm.weight"]`` reads."""

    def __init__(self, arrays: Mapping[str, Any], path: str = ""):
        self.arrays, self.path = arrays, path

    def __truediv__(self, name: str | int) -> "Weights":
        return Weights(self.arrays, f"{self.path}.{name}" if self.path else str(name))

    def __getitem__(self, name: str) -> Any:
        return self.arrays[f"{self.path}.{name}" if self.path else name]

    def record(self, name: str, x: np.ndarray) -> np.ndarray:
        """Show a part under this path; an empty name is the path's own output."""
        return record(".".join(filter(None, (self.path, name))), x)

    def linear(self, name: str, x: Float[np.ndarray, "*axes n"]) -> Float[np.ndarray, "*axes m"]:
        """Apply the linear module of that name, with its bias where it has one."""
        bias = self.arrays.get(f"{(self / name).path}.bias")
        return self.record(name, ops.linear(x, self[f"{name}.weight"], bias))

    def rms_norm(self, name: str, x: Hidden, eps: float) -> Hidden:
        """Apply the norm of that name."""
        return self.record(name, ops.rms_norm(x, self[f"{name}.weight"], eps))


class Step(NamedTuple):
    """What every layer needs to know about this call's tokens.

    ``positions`` turn the rotary; ``slots`` count each row's real tokens, and say where keys are kept. In a
    packed call each document is a row: ``rows`` takes the packed row apart, and mask and slots are theirs.
    """

    positions: Positions
    slots: Positions
    mask: Mask | None = None
    visible: Visible | None = None
    rows: Int[np.ndarray, "N longest"] | None = None

    def unpack(self, x: Float[np.ndarray, "B H T d"]) -> Float[np.ndarray, "N H longest d"]:
        """One row a document, where the call is packed."""
        return x if self.rows is None else ops.unpack(x, self.rows)

    def pack(self, x: Float[np.ndarray, "N H longest d"]) -> Float[np.ndarray, "B H T d"]:
        """Undo `unpack`; a packed call has a mask."""
        return x if self.rows is None or self.mask is None else ops.pack(x, self.mask)


def lightning_self_attention(
    w: Weights, x: Hidden, config: MiniMaxConfig, layer_idx: int, step: Step, state: Float[np.ndarray, "N H d e"] | None
) -> tuple[Hidden, Float[np.ndarray, "N H d e"]]:
    r"""Lightning attention with its projections, its norm and its gate.

    $$\bigl(\sigma(x W_g^\top) \odot \mathrm{RMSNorm}(o)\bigr)\, W_o^\top$$
    """
    H = config.num_attention_heads
    slopes = ops.decay_slopes(H, layer_idx, config.num_hidden_layers, config.slope_rule)
    q, k, v = ops.split_qkv(w.linear("qkv_proj", x), H, config.hidden_act)  # (B, H, T, d) each
    q, k, v = (step.unpack(heads) for heads in (q, k, v))
    padding = {} if step.mask is None else {"mask": step.mask}
    chunk = min(config.block_size, 2 * config.head_dim)  # a wider one costs more inside than it saves between
    out, state = ops.lightning_attention_chunked(q, k, v, slopes, state, chunk=chunk, **padding)
    state = w.record("state", state)
    out = w.record("norm.input", ops.merge_heads(step.pack(out)))  # (B, T, H·d)
    y = w.record("norm", ops.inner_norm(out, w["norm.weight"]))
    gated = w.record("out_proj.input", ops.output_gate(y, x, lambda x: w.linear("output_gate", x)))
    return w.linear("out_proj", gated), state


def softmax_self_attention(w: Weights, x: Hidden, config: MiniMaxConfig, step: Step, memory: SoftmaxMemory) -> Hidden:
    r"""Softmax attention with its projections and its rotary: $\mathrm{softmax}(q k^\top / \sqrt d)\, v\, W_o^\top$.

    The memory grows in place: a copy of every key for every token would cost T².
    """
    H, G = config.num_attention_heads, config.num_key_value_heads
    q, k, v = (ops.split_heads(w.linear(name, x), n) for name, n in (("q_proj", H), ("k_proj", G), ("v_proj", G)))
    q, k = (ops.apply_rotary(heads, step.positions, config.rotary_dim, config.rope_theta) for heads in (q, k))
    q, k = (w.record(name, heads.swapaxes(1, 2)).swapaxes(1, 2) for name, heads in (("query", q), ("key", k)))
    q, k, v = (step.unpack(heads) for heads in (q, k, v))
    keys, values = memory.append(k, v, step.slots, step.mask)
    out = step.pack(ops.softmax_attention(q, keys, values, step.visible))
    return w.linear("o_proj", w.record("o_proj.input", ops.merge_heads(out)))


def sparse_moe(w: Weights, x: Hidden, config: MiniMaxConfig) -> tuple[Hidden, RouterLogits]:
    """Route each token to its experts; the router works in at least float32."""
    wide = x.astype(np.promote_types(x.dtype, np.float32), copy=False)
    logits = w.linear("gate", wide)  # (B, T, E)
    weights, indices = ops.route(logits, config.num_experts_per_tok)
    weights, indices = w.record("gate.weights", weights), w.record("gate.indices", indices)
    experts = w["experts.gate_up_proj"], w["experts.down_proj"]
    return w.record("", ops.mix_experts(x, weights, indices, *experts, config.hidden_act)), logits


def shared_mlp(w: Weights, x: Hidden, hidden_act: str) -> Hidden:
    r"""The expert that every token visits, in original checkpoints that have one: a plain SwiGLU."""
    gate, up = w.linear("gate_proj", x), w.linear("up_proj", x)
    return w.linear("down_proj", ops.activate(gate, hidden_act) * up)


def decoder_layer(
    w: Weights,
    x: Hidden,
    config: MiniMaxConfig,
    layer_idx: int,
    step: Step,
    memory: LightningMemory | SoftmaxMemory,
) -> tuple[Hidden, RouterLogits]:
    r"""One layer of the model; its memory is advanced.

    The residual is the **normed** value, scaled: $\alpha n + \beta\, u$. With a shared expert s,
    $u = (1 - c)\,\mathrm{MoE}(n) + c\, s(n)$, $c = \sigma(n W_c^\top)$.
    """
    n1 = w.rms_norm("input_layernorm", x, config.rms_norm_eps)
    if isinstance(memory, LightningMemory):
        update, memory.state = lightning_self_attention(w / "self_attn", n1, config, layer_idx, step, memory.state)
        alpha, beta = config.linear_attn_alpha_factor, config.linear_attn_beta_factor
    else:
        update = softmax_self_attention(w / "self_attn", n1, config, step, memory)
        alpha, beta = config.full_attn_alpha_factor, config.full_attn_beta_factor
    x = ops.add_residual(x, n1, update, alpha, beta, config.postnorm)
    x = w.record("post_attention_layernorm.input", x)

    n2 = w.rms_norm("post_attention_layernorm", x, config.rms_norm_eps)
    update, router_logits = sparse_moe(w / "mlp", n2, config)
    if config.shared_intermediate_size:
        c = ops.sigmoid(w.linear("coefficient", n2))  # (B, T, 1)
        update = (1 - c) * update + c * shared_mlp(w / "shared_mlp", n2, config.hidden_act)
    x = ops.add_residual(x, n2, update, config.mlp_alpha_factor, config.mlp_beta_factor, config.postnorm)
    return w.record("", x), router_logits
