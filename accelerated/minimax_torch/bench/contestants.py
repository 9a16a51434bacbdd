"""Who takes part: the twin in its forms, and transformers on the very same weights."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from minimax_numpy.cache import LightningMemory
from minimax_numpy.config import LIGHTNING, MiniMaxConfig
from torch import Tensor

from .. import ops
from ..model import MiniMaxForCausalLM
from .contest import Machine

PIECE = 32_768  # tokens that a prefill reads a call, where it is long


def built(config: MiniMaxConfig, machine: Machine) -> MiniMaxForCausalLM:
    """A model with random weights, made where they stay; routers are float32 that the machine's type can hold."""
    made, weights = machine.generator(), {}
    for name, shape in config.parameter_shapes().items():
        x = torch.empty(shape, dtype=machine.dtype, device=machine.device)
        weights[name] = x.fill_(1) if len(shape) == 1 else x.normal_(0, shape[-1] ** -0.5, generator=made)
    return with_weights(config, weights, machine)


def with_weights(config: MiniMaxConfig, weights: Any, machine: Machine, dtype=None) -> MiniMaxForCausalLM:
    """A model of these weights, shared unless another type is asked for."""
    model = MiniMaxForCausalLM(config, seed=None)
    model._take(dict(weights), dtype, machine.device)
    return model.eval()


class Ours:
    """The twin, in some form."""

    def __init__(self, name: str, model: MiniMaxForCausalLM, form: Callable = nullcontext, checkpointing: bool = False):
        self.name, self.model, self.form, self.checkpointing = name, model, form, checkpointing

    @torch.no_grad()
    def prefill(self, ids: Tensor) -> Tensor:
        """Logits of the last token; a long text is read piece by piece, through the cache."""
        with self.form():
            if ids.shape[1] <= PIECE:
                return self.model(ids, logits_to_keep=1).logits
            cache = self.model.empty_cache(len(ids))
            for piece in ids.split(PIECE, dim=1):
                logits = self.model(piece, cache=cache, logits_to_keep=1).logits
            return logits

    @torch.no_grad()
    def read(self, ids: Tensor, room: int) -> Any:
        """Read a prompt to continue from."""
        return self.model(ids, use_cache=True, logits_to_keep=1).cache

    def past(self, rows: int, length: int, room: int) -> Any:
        """What it would remember of random tokens."""
        return random_cache(self.model, rows, length, room)

    @torch.no_grad()
    def decode(self, cache: Any, ids: Tensor) -> tuple[Tensor, Any]:
        """Tokens one by one; logits of the last."""
        with self.form():
            for t in range(ids.shape[1]):
                logits = self.model(ids[:, t : t + 1], cache=cache).logits
        return logits, cache

    def train(self, ids: Tensor) -> dict[str, Tensor]:
        """A step's gradients."""
        self.model.zero_grad()
        if self.checkpointing:
            self.model.gradient_checkpointing_enable()
        with self.form():
            self.model(ids, labels=ids).loss.backward()
        self.model.gradient_checkpointing_disable()
        return {name: x.grad for name, x in self.model.named_parameters() if x.grad is not None}


class Slotted(Ours):
    """The twin's decode over slots, which do not move: on a GPU the whole step is one CUDA graph."""

    def read(self, ids: Tensor, room: int) -> Any:
        """A slot a row."""
        from ..slots import Slots

        slots = Slots(self.model, len(ids), ids.shape[1] + room)
        for row in ids:
            slots.put(row)
        return slots

    def past(self, rows: int, length: int, room: int) -> Any:
        """The same random past in each slot."""
        from ..slots import Slots

        slots, past = Slots(self.model, rows, length + room), random_cache(self.model, 1, length, 0)
        for _ in range(rows):
            slots.put(past)
        return slots

    def decode(self, cache: Any, ids: Tensor) -> tuple[Tensor, Any]:
        """Tokens one by one, in all slots."""
        for tokens in ids.unbind(1):
            logits = cache.step(tokens)
        return logits[:, None], cache


class Transformers:
    """transformers on the same weights, as it comes; or with its experts in the form that it calls eager."""

    def __init__(self, model: MiniMaxForCausalLM, experts: str | None = None):
        import transformers

        self.name = f"transformers, {experts} experts" if experts else "transformers"
        self.config, like = model.config, model.model.embed_tokens.weight
        config = transformers.MiniMaxConfig(**{**self.config.to_dict(), "dtype": like.dtype})
        with torch.device("meta"):
            self.model = transformers.MiniMaxForCausalLM(config)
        if experts:
            self.model.set_experts_implementation(experts)
        weights = {name: x.detach().to(like.dtype) for name, x in model.state_dict().items()}
        self.model.load_state_dict(weights, strict=False, assign=True)
        before = torch.get_default_dtype()
        torch.set_default_dtype(like.dtype)  # its constants are made in the model's own type when it loads a checkpoint
        try:
            with like.device:  # versions differ in whether they can be asked for one
                for layer in self.model.model.layers:
                    if hasattr(attention := layer.self_attn, "slope_rate"):
                        attention.slope_rate = attention.get_slope_rate()
                        names = ("query_decay", "key_decay", "diagonal_decay")
                        for name, x in zip(names, attention.decay_factors(attention.slope_rate), strict=True):
                            setattr(attention, name, x)
                self.model.model.rotary_emb = type(self.model.model.rotary_emb)(config)
        finally:
            torch.set_default_dtype(before)
        self.model.eval()

    @torch.no_grad()
    def prefill(self, ids: Tensor) -> Tensor:
        """All at once: a text that goes on it reads a token at a time."""
        return self.model(ids, logits_to_keep=1, use_cache=False).logits

    @torch.no_grad()
    def read(self, ids: Tensor, room: int) -> Any:
        """Its cache, and how many tokens it has seen."""
        out = self.model(ids, use_cache=True, logits_to_keep=1)
        return out.past_key_values, ids.shape[1]

    def past(self, rows: int, length: int, room: int) -> Any:
        """What it would remember of random tokens."""
        from transformers.models.minimax.modeling_minimax import MiniMaxCache

        c, like, cache = self.config, self.model.model.embed_tokens.weight, MiniMaxCache()
        H, G, d = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        for i, kind in enumerate(c.layer_types):
            if kind == LIGHTNING:
                cache.set_linear_cache(i, like.new_empty(rows, H, d, d).normal_())
            else:
                cache.update(*(like.new_empty(rows, G, length, d).normal_() for _ in range(2)), i)
        return cache, length

    @torch.no_grad()
    def decode(self, cache: Any, ids: Tensor) -> tuple[Tensor, Any]:
        """Tokens one by one; logits of the last."""
        past, seen = cache
        for t in range(ids.shape[1]):
            where = torch.full((len(ids), 1), seen + t, device=ids.device)  # left out, every token is at position 0
            out = self.model(ids[:, t : t + 1], past_key_values=past, use_cache=True, position_ids=where)
        return out.logits, (past, seen + ids.shape[1])

    def train(self, ids: Tensor) -> dict[str, Tensor]:
        """A step's gradients."""
        self.model.zero_grad()
        self.model(ids, labels=ids, use_cache=False).loss.backward()
        return {name: x.grad for name, x in self.model.named_parameters() if x.grad is not None}


def random_cache(model: MiniMaxForCausalLM, rows: int, length: int, room: int) -> Any:
    """A cache after random tokens: states and keys are drawn, and there is room for some more."""
    c, like, cache = model.config, model.model.embed_tokens.weight.detach(), model.empty_cache(rows)
    cache.lengths += length
    cache.dtype = like.dtype
    cache.belong_to(model.fingerprint)
    H, G, d = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    for memory in cache.layers:
        if isinstance(memory, LightningMemory):
            wide = torch.promote_types(like.dtype, torch.float32)
            memory.state = like.new_empty(rows, H, d, d, dtype=wide).normal_()
        else:
            memory._slots = like.new_empty(2, rows, G, length + room, d).normal_()
            memory._lengths, memory._used = cache.lengths.clone(), length
    return cache


def masked_experts(x, weights, indices, gate_up, down, hidden_act="silu"):
    """The experts as the reference writes them: for each, the tokens that chose it, found by a mask."""
    flat, out = x.reshape(-1, x.shape[-1]), torch.zeros_like(x.reshape(-1, x.shape[-1]))
    share, chosen = weights.reshape(len(flat), -1), indices.reshape(len(flat), -1)
    for e in range(len(gate_up)):
        token, place = (chosen == e).nonzero(as_tuple=True)
        if len(token):
            said = ops.swiglu(flat[token], gate_up[e], down[e], hidden_act)
            out = out.index_add(0, token, (share[token, place, None] * said).to(x.dtype))
    return out.reshape(x.shape)


def recurrent(q, k, v, slopes, state=None, *, chunk=256, mask=None):
    """Lightning attention token by token."""
    return ops.lightning_attention_recurrent(q, k, v, slopes, state, mask=mask)


def eager() -> Any:
    """The twin as the equations have it."""
    return ops.using(lightning_attention_chunked=recurrent, mix_experts=masked_experts)
