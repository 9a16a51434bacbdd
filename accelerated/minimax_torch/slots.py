"""Slots: the memory of many rows, laid out once, and a step that takes all of them one token further.

A row is a text under way. Each has a slot of its own, and its own length; one that ends leaves its slot to the next,
while the others go on (*continuous batching*). Nothing about a step depends on what the slots hold: shapes and
addresses stay, and the lengths lie on the device. So on a GPU the whole model is recorded once, as a CUDA graph, and
replayed for every token; elsewhere the same lines run as they are.

| layer | in a slot |
|---|---|
| lightning | a state (H, d, d), at least float32, written over by each token |
| softmax | keys and values (G, capacity, d); the token at position p writes into p mod capacity |

A sliding window of w needs w keys, and goes round. Slots that nobody uses are computed with the others and ignored.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from minimax_numpy.config import LIGHTNING, MiniMaxConfig
from minimax_numpy.generate import Choice, check_logits, check_stops, chooser, warn_of_length
from minimax_numpy.inputs import check_cache, check_inputs
from torch import Tensor, nn

from . import ops
from .cache import Cache, LightningMemory, SoftmaxMemory
from .kernels import choose
from .kernels import layer as fused
from .kernels.watch import hooks_of, watched
from .layers import DecoderLayer, LightningSelfAttention, SoftmaxSelfAttention, SparseMoe
from .model import MiniMaxForCausalLM
from .quantize import Quantized
from .shapes import GroupedKeys, GroupedValues, Hidden, Lengths


class LightningSlots:
    """States of one lightning layer, (rows, H, d, d)."""

    def __init__(self, attention: LightningSelfAttention, rows: int, capacity: int, like: Tensor):
        config = attention.config
        H, d = config.num_attention_heads, config.head_dim
        slopes = ops.decay_slopes(H, attention.layer_idx, config.num_hidden_layers, config.slope_rule)
        self.slopes = slopes.to(like.device)
        self.state = like.new_zeros((rows, H, d, d), dtype=torch.promote_types(like.dtype, torch.float32))

    def step(
        self, attention: LightningSelfAttention, x: Hidden, lengths: Lengths, in_parts: bool
    ) -> tuple[Hidden, Float[Tensor, "B 1"] | None]:
        """Decay, write, read: what the layer's attention adds; in parts, its inner norm's factor is left to squares."""
        if in_parts:
            qkv, gate = attention.qkv_proj(x), attention.output_gate(x)
            y, square, _ = fused.lightning(attention, qkv, gate, self.state, into=self.state)
            return attention.out_proj(y), square
        config = attention.config
        q, k, v = ops.split_qkv(attention.qkv_proj(x), config.num_attention_heads, config.hidden_act)
        in_place = choose.lightning_step(q, v)
        if in_place is not None:
            out, _ = in_place(q, k, v, self.slopes, self.state, into=self.state)
        else:
            out, state = ops.lightning_attention_recurrent(q, k, v, self.slopes, self.state)
            self.state.copy_(state)
        y = attention.norm(ops.merge_heads(out))
        return attention.out_proj(ops.output_gate(y, x, attention.output_gate)), None

    def put(self, slot: int, memory: LightningMemory, length: int) -> None:
        """Begin with what a cache's layer remembers."""
        if memory.state is None:
            self.state[slot].zero_()
        else:
            self.state[slot].copy_(memory.state[0])

    def take(self, slot: int, memory: LightningMemory, lengths: Lengths, length: int) -> None:
        """Let a cache's layer remember this."""
        memory.state = self.state[slot : slot + 1].clone()


class SoftmaxSlots:
    """Keys and values of one softmax layer, (2, rows, G, capacity, d)."""

    def __init__(self, attention: SoftmaxSelfAttention, rows: int, capacity: int, like: Tensor):
        config = attention.config
        self.capacity = min(capacity, config.sliding_window or capacity)
        self.rows = torch.arange(rows, device=like.device)
        self.frequencies = ops.rotary_frequencies(config.rotary_dim, config.rope_theta, like.device)
        self.slots = like.new_zeros((2, rows, config.num_key_value_heads, self.capacity, config.head_dim))

    def step(self, attention: SoftmaxSelfAttention, x: Hidden, lengths: Lengths, in_parts: bool) -> tuple[Hidden, None]:
        """Write, then look at all that is there: what the layer's attention adds, always whole."""
        config, H, G = attention.config, attention.config.num_attention_heads, attention.config.num_key_value_heads
        q, k, v = (
            ops.split_heads(project(x), heads)
            for project, heads in ((attention.q_proj, H), (attention.k_proj, G), (attention.v_proj, G))
        )
        kernels = choose.softmax_step(q, k)
        if kernels is not None:
            remember, attend = kernels
            q = remember(q, k, v, self.slots, lengths, self.frequencies)
            out = attend(q, self.slots[0], self.slots[1], lengths + 1)
        else:
            turn = partial(ops.apply_rotary, rotary_dim=config.rotary_dim, base=config.rope_theta)
            q, k = (turn(heads, lengths[:, None]) for heads in (q, k))
            self.slots[:, self.rows, :, lengths % self.capacity] = torch.stack([k, v])[:, :, :, 0].transpose(0, 1)
            out = attend_behind_a_mask(q, self.slots[0], self.slots[1], lengths + 1)
        return attention.o_proj(ops.merge_heads(out)), None

    def put(self, slot: int, memory: SoftmaxMemory, length: int) -> None:
        """Begin with what a cache's layer remembers."""
        held = min(length, self.capacity)
        if memory.keys is not None and memory.values is not None:
            self.slots[0, slot, :, :held].copy_(memory.keys[0, :, :held])
            self.slots[1, slot, :, :held].copy_(memory.values[0, :, :held])

    def take(self, slot: int, memory: SoftmaxMemory, lengths: Lengths, length: int) -> None:
        """Let a cache's layer remember this."""
        held = min(length, self.capacity)
        memory._keep(self.slots[:, slot : slot + 1, :, :held].clone(), lengths)


def attend_behind_a_mask(
    q: Float[Tensor, "B H 1 d"], keys: GroupedKeys, values: GroupedValues, lengths: Lengths
) -> Float[Tensor, "B H 1 e"]:
    """Softmax attention of one query a row over its first ``lengths`` keys; what lies behind them is left out."""
    seen = torch.arange(keys.shape[2], device=q.device) < lengths[:, None]  # (B, J)
    keys, values = (torch.where(seen[:, None, :, None], x, 0) for x in (keys, values))  # 0 · NaN would be NaN
    return ops.softmax_attention(q, keys, values, seen[:, None])


def mix_experts(moe: SparseMoe, x: Hidden) -> Hidden:
    """Compute the experts' answers without asking the device which ones are wanted.

    Few choices gather their matrices; as many as there are experts let every expert say something to every token.
    """
    stacks = moe.experts
    _, weights, indices = moe.gate(x)
    flat, weights, indices = x[:, 0], weights[:, 0], indices[:, 0]  # (B, ·)
    if indices.numel() < len(stacks.gate_up_proj):
        up, down = stacks.gate_up_proj[indices], stacks.down_proj[indices]  # (B, K, ·, ·)
        said = swiglu(flat[:, None, None], up, down, stacks.hidden_act)[:, :, 0]  # (B, K, D)
    else:
        said = swiglu(flat, stacks.gate_up_proj, stacks.down_proj, stacks.hidden_act)  # (E, B, D)
        said = said[indices, torch.arange(len(x), device=x.device)[:, None]]
    return (weights[:, None] @ said.to(weights.dtype)).to(x.dtype)


def swiglu(x: Float[Tensor, "*a B D"], up: Float[Tensor, "*e F2 D"], down: Float[Tensor, "*e D F"], act: str) -> Tensor:
    """Compute [swiglu][minimax_torch.ops.experts.swiglu] with a stack of experts."""
    gate, up = (x @ up.mT).chunk(2, dim=-1)
    return (ops.activate(gate, act) * up) @ down.mT


def decoder_layer(
    layer: DecoderLayer, x: Hidden, n1: Hidden, following: nn.Module, attend: Callable[..., tuple[Hidden, None]]
) -> tuple[Hidden, Hidden]:
    """[DecoderLayer][minimax_torch.layers.DecoderLayer] from the stream and its norm to the next layer's."""
    config = layer.config
    update, _ = attend(layer.self_attn, n1)
    x = ops.add_residual(x, n1, update, layer.alpha, layer.beta, config.postnorm)

    n2 = layer.post_attention_layernorm(x)
    update = mix_experts(layer.mlp, n2)
    if config.shared_intermediate_size:
        c = ops.sigmoid(layer.coefficient(n2))  # (B, 1, 1)
        update = (1 - c) * update + c * layer.shared_mlp(n2)
    x = ops.add_residual(x, n2, update, config.mlp_alpha_factor, config.mlp_beta_factor, config.postnorm)
    return x, following(x)


class Slots:
    """Room for ``rows`` texts of at most ``capacity`` tokens each, on the model's device.

        slots = Slots(model, rows=32, capacity=8192)
        slot = slots.put(prompt)                  # (T,), read by the model's own call
        logits = slots.step(tokens)               # (rows,) → (rows, V)
        slots.free(slot)

    Modules are not called one by one, so hooks see nothing: with hooks on the model, or ops swapped, a step refuses.

    Raises ValueError where the model is no language model, is quantised, streamed or on several devices, or where there
    is no row or no capacity; torch.OutOfMemoryError, one sentence long, where it does not fit.
    """

    def __init__(self, model: MiniMaxForCausalLM, rows: int, capacity: int):
        check_model(model)
        if rows < 1 or capacity < 1:
            raise ValueError(f"rows is {rows} and capacity {capacity}; there is at least one slot of one token.")
        like = model.model.embed_tokens.weight.detach()
        check_memory(model.config, rows, capacity, like)
        self.model, self.rows, self.capacity = model, rows, capacity
        self.held: list[int | None] = [None] * rows  # tokens of each slot; None: nobody uses it
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=like.device)
        self.used = torch.zeros_like(self.lengths)  # 1 where somebody uses the slot
        self.tokens = torch.zeros_like(self.lengths)
        self.layers = [slots_of(layer, rows, capacity, like) for layer in model.model.layers]
        self._parts = [m._parameters for m in model.modules() if m._parameters]
        self._hooks = hooks_of(model.modules())
        self._made_for = like.dtype, like.device
        self._records = like.is_cuda
        self._graph: Any = None  # torch.cuda.CUDAGraph
        self._addresses: list[int] = []

    @property
    def nbytes(self) -> int:
        """Bytes of states, keys and values."""
        return sum((x.state if isinstance(x, LightningSlots) else x.slots).nbytes for x in self.layers)

    @torch.no_grad()
    def put(self, prompt: Int[Tensor, "T"] | Cache) -> int:
        """Give a text a slot: its first tokens, or a cache of one row that has seen them. Returns the slot.

        Raises ValueError where all slots are in use, the text is longer than a slot, or the cache is of another model.
        """
        if None not in self.held:
            raise ValueError(f"All {self.rows} slots are in use; free one first, or make more.")
        length = int(prompt.lengths.max()) if isinstance(prompt, Cache) else len(prompt)
        if length > self.capacity:
            raise ValueError(f"The text has {length} tokens and a slot holds {self.capacity}; make slots with more.")
        if isinstance(prompt, Cache):
            check_cache(self.model.config, prompt, self.model.model.embed_tokens.weight[None, :1], None)
            prompt.belong_to(self.model.fingerprint)
            cache = prompt
        else:
            cache = self.model(prompt.to(self.tokens.device)[None], use_cache=True, logits_to_keep=1).cache
        slot = self.held.index(None)
        self._write(slot, cache, length)
        return slot

    def _write(self, slot: int, cache: Cache, length: int) -> None:
        for mine, theirs in zip(self.layers, cache.layers, strict=True):
            mine.put(slot, theirs, length)
        self.held[slot] = length
        self.lengths[slot], self.used[slot] = length, 1

    def free(self, slot: int) -> None:
        """Let the slot be given to another text."""
        self._check_used(slot)
        self.held[slot] = None
        self.lengths[slot] = self.used[slot] = 0

    @torch.no_grad()
    def cache(self, slot: int) -> Cache:
        """What the slot holds, as a cache of one row with which the model goes on elsewhere; a copy."""
        length, cache = self._check_used(slot), self.model.empty_cache(1)
        if length:
            cache.lengths += length
            cache.dtype = self.model.model.embed_tokens.weight.dtype
            cache.belong_to(self.model.fingerprint)
            for mine, theirs in zip(self.layers, cache.layers, strict=True):
                mine.take(slot, theirs, cache.lengths, length)
        return cache

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, "rows"]) -> Float[Tensor, "rows V"]:
        """Give every slot in use one token more; logits of all slots, of which those of unused ones mean nothing.

        Raises ValueError, before anything is computed, where a slot is full or somebody looks into the model.
        """
        if tuple(tokens.shape) != (self.rows,) or tokens.is_floating_point():
            raise ValueError(f"tokens are {tokens.dtype} {tuple(tokens.shape)}; give {self.rows} ids, one a slot.")
        if self.capacity in self.held:
            full = self.held.index(self.capacity)
            raise ValueError(f"Slot {full} is full with {self.capacity} tokens; free it, or make slots with more.")
        self._check_unwatched()
        self.tokens.copy_(tokens)
        if self._records and not choose.is_plain():
            self._record()
            self._graph.replay()
            logits = self._logits.clone()
        else:
            logits = self._step()
        self.held = [None if n is None else n + 1 for n in self.held]
        return logits

    def _step(self) -> Float[Tensor, "rows V"]:
        """The step itself: it asks the device nothing, and finds and leaves everything at its place."""
        model = self.model
        x = model.model.embed_tokens(self.tokens * self.used)[:, None]  # (rows, 1, D)
        layers: Any = model.model.layers
        norms = [*(layer.input_layernorm for layer in layers), model.model.norm]
        n, few_kernels = norms[0](x), fused.takes(layers, x)
        run: Callable = fused.decoder_layer if few_kernels else decoder_layer
        for layer, memory, following in zip(layers, self.layers, norms[1:], strict=True):
            attend = partial(memory.step, lengths=self.lengths, in_parts=few_kernels)
            x, n, *_ = run(layer, x, n, following, attend)
        self.lengths += self.used
        return model.lm_head(n[:, 0].to(torch.promote_types(n.dtype, model.lm_head.weight.dtype)))

    def _record(self) -> None:
        """Record the step, once for these weights: where one has moved, anew."""
        addresses = [x.data_ptr() for parts in self._parts for x in parts.values() if x is not None]
        if self._graph is not None and addresses == self._addresses:
            return
        self._graph = None
        # Trial steps, of no row: what is compiled or set up on a first call is no part of a graph. They write over the
        # states, and into the place where the next token's keys will lie.
        altered = [x.state for x in self.layers if isinstance(x, LightningSlots)] + [self.used]
        before = [x.clone() for x in altered]
        self.used.zero_()
        here, aside = torch.cuda.current_stream(self.tokens.device), torch.cuda.Stream(self.tokens.device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(2):
                self._step()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = self._step()
        for x, kept in zip(altered, before, strict=True):
            x.copy_(kept)
        self._graph, self._addresses = graph, addresses

    def generate(
        self,
        prompts: Sequence[Any],
        max_new_tokens: int = 20,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        seed: int | None = None,
    ) -> list[list[int]]:
        """Continue many prompts, each in a slot as soon as one is free; the tokens that each was given.

        Options are those of [generate][minimax_numpy.generate.Generates.generate], whose tokens these are: prompt r
        draws from ``numpy.random.default_rng(seed + r)``, whoever its neighbours are. A prompt is (T,), unpadded.

        Raises ValueError where a slot is in use, or a prompt is empty or too long for a slot.
        """
        config = self.model.config
        stops = check_stops(config.eos_token_id if eos_token_id is None else eos_token_id)
        texts = []
        for r, prompt in enumerate(prompts):
            choose = chooser(do_sample, temperature, top_k, top_p, None if seed is None else seed + r)
            texts.append(Text(torch.as_tensor(prompt).cpu().numpy(), choose, stops, max_new_tokens))
        self._check_texts(texts, max_new_tokens)
        waiting, running = deque(texts if max_new_tokens else []), dict[int, Text]()
        try:
            while waiting or running:
                while waiting and None in self.held:
                    text, cache = waiting.popleft(), self.model.empty_cache(1)
                    ids = text.prompt[None]
                    if text.goes_on(self.model.show(ids, np.ones(ids.shape, bool), cache)):
                        running[self.put(cache)] = text
                if running:
                    last = [running[slot].new[-1] if slot in running else 0 for slot in range(self.rows)]
                    logits = self.step(torch.tensor(last)).double().cpu().numpy()
                for slot in [slot for slot, text in running.items() if not text.goes_on(logits[slot : slot + 1])]:
                    self.free(slot)
                    del running[slot]
        finally:
            for slot in running:
                self.free(slot)
        return [text.new for text in texts]

    def _check_texts(self, texts: "list[Text]", new: int) -> None:
        if self.held.count(None) < self.rows:
            raise ValueError("generate wants all slots; free those that are in use, or make others.")
        if new < 0:
            raise ValueError(f"max_new_tokens is {new}; it must be 0 or more.")
        for text in texts:
            check_inputs(self.model.config, text.prompt[None], None, None, None, None)
        longest = max((len(text.prompt) for text in texts), default=0) + new
        if texts and longest - 1 > self.capacity:  # the last token is shown to nobody
            raise ValueError(
                f"A text may come to {longest} tokens and a slot holds {self.capacity}; make slots with more."
            )
        warn_of_length(self.model.config, longest)

    def _check_used(self, slot: int) -> int:
        length = self.held[slot] if 0 <= slot < self.rows else None
        if length is None:
            used = [i for i, n in enumerate(self.held) if n is not None]
            raise ValueError(f"Nobody uses slot {slot}; in use are {used}.")
        return length

    def _check_unwatched(self) -> None:
        now = self.model.model.embed_tokens.weight
        if (now.dtype, now.device) != self._made_for:
            raise ValueError(f"The model is {now.dtype} on {now.device} by now, and its slots are not; make new ones.")
        what = watched(self._hooks)
        if what is not None:
            raise ValueError(f"{what}, which a step of Slots would pass by; take it away, or call the model.")


class Text:
    """A prompt, how its tokens are chosen, and those that it has been given."""

    def __init__(self, prompt: Int[np.ndarray, "T"], choose: Choice, stops: Int[np.ndarray, "stops"], longest: int):
        self.prompt, self.choose, self.stops, self.longest = prompt, choose, stops, longest
        self.new: list[int] = []

    def goes_on(self, logits: Float[np.ndarray, "1 V"]) -> bool:
        """Take the next token; whether there is one after it."""
        self.new.append(int(self.choose(check_logits(logits))[0]))
        return self.new[-1] not in self.stops and len(self.new) < self.longest


def slots_of(layer: Any, rows: int, capacity: int, like: Tensor) -> LightningSlots | SoftmaxSlots:
    """The memory that suits a layer."""
    kind = LightningSlots if isinstance(layer.self_attn, LightningSelfAttention) else SoftmaxSlots
    return kind(layer.self_attn, rows, capacity, like)


def check_model(model: Any) -> None:
    """Refuse a model whose step cannot be recorded."""
    if not isinstance(model, MiniMaxForCausalLM):
        raise ValueError(f"The model is a {type(model).__name__}; slots are for the twin's MiniMaxForCausalLM.")
    if model.streamed is not None:
        raise ValueError(
            "The weights are streamed from disk, which a step of Slots cannot; load the model without stream."
        )
    if any(isinstance(module, Quantized) for module in model.modules()):
        raise ValueError("The weights are quantised, which a step of Slots does not know; load the model as it is.")
    if len({x.device for x in model.parameters()}) > 1:
        raise ValueError("The weights are on several devices; slots are for a model on one.")


def check_memory(config: MiniMaxConfig, rows: int, capacity: int, like: Tensor) -> None:
    """Say what would fit, where these slots do not."""
    if not like.is_cuda:
        return
    G, H, d, state = config.num_key_value_heads, config.num_attention_heads, config.head_dim, max(like.itemsize, 4)
    keys = min(capacity, config.sliding_window or capacity)
    kinds = [kind == LIGHTNING for kind in config.layer_types]
    each = sum(H * d * d * state if lightning else 2 * G * keys * d * like.itemsize for lightning in kinds)
    kept = torch.cuda.memory_reserved(like.device) - torch.cuda.memory_allocated(like.device)
    free = torch.cuda.mem_get_info(like.device)[0] + kept
    if rows * each > free:
        raise torch.OutOfMemoryError(
            f"{rows} slots of {capacity} tokens take {rows * each / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: "
            f"{free // each} would fit."
        )
