"""Twin of `minimax_numpy.model`: the same models as torch modules, on any device, float64 to float16.

Beside what the reference offers: ``device=`` and ``attn_implementation=`` ("sdpa", "eager" for the equation
written out, or "flash_attention_2"), and `from_reference`, which takes a NumPy model's weights.
"""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import minimax_numpy.model as reference
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from minimax_numpy.checkpoint import Checkpoint, by_matrix, plan_loading, read_matrix, save_checkpoint
from minimax_numpy.config import MiniMaxConfig, is_router
from minimax_numpy.generate import Generates
from minimax_numpy.inputs import check_cache, check_inputs, check_kept, check_labels, check_lm_head
from minimax_numpy.model import ModelOutput, check_held, fresh_weights
from minimax_numpy.quantize import check_kind, is_quantized
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import ops
from .cache import Cache, fingerprint_of, held_positions, to_bits
from .kernels import blocks
from .kernels import layer as fused
from .kernels.token import Decoder
from .layers import DecoderLayer, RMSNorm, Step
from .ops.attention import check_implementation
from .quantize import Quantized, quantize, replace_parameter
from .shapes import Hidden, Positions, TokenIds
from .streaming import Streamed, all_finite

DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}


class Pretrained(nn.Module):
    """What the five models share: fresh weights, a checkpoint's, a NumPy model's, and the way back to disk."""

    head: str
    """The name that config.json calls this model by; a subclass goes by it too."""
    streamed: Streamed | None = None
    """The weights, where they are read from the shards as they are used."""
    decoder: Decoder | None = None
    """What `compile_decode` made."""
    checkpointing = False
    """Whether layers are computed a second time in the backward, rather than remembered."""
    _known: tuple[Any, int | None] = (None, None)  # the first router, and its fingerprint

    def __init__(
        self,
        config: MiniMaxConfig,
        seed: int | None = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        attn_implementation: str = "sdpa",
    ):
        super().__init__()
        self.config = config
        check_dtype(dtype)
        check_implementation(attn_implementation)
        with torch.device("meta"):  # shapes only: the weights come once, below
            self._build(config, attn_implementation)
        if seed is not None:
            fresh = fresh_weights(config, self.head, seed, np.dtype(np.float32))
            self._take({name: torch.from_numpy(x) for name, x in fresh.items()}, dtype, check_device(device))

    def _build(self, config: MiniMaxConfig, attn_implementation: str) -> None:
        raise NotImplementedError

    def _take(self, weights: dict[str, Any], dtype: torch.dtype | None, device: torch.device) -> None:
        """Make these the parameters; routers are float32 at least."""
        state: dict[str, Tensor] = {}
        for name, x in weights.items():
            kept = x.dtype if dtype is None else dtype
            if is_router(name):
                kept = torch.promote_types(kept, torch.float32)
            path = name.removeprefix("model.") if isinstance(self, MiniMaxModel) else name
            if isinstance(x, Quantized):
                replace_parameter(self, path, x.to(device, kept))
                state |= {f"{path}.{part}": codes for part, codes in x.parts.items()}
            else:
                state[path] = weights[name] = x.to(device, kept)
        self.load_state_dict(state, assign=True)

    def _stream(self, weights: Streamed) -> None:
        """Put weights that are read as they are used where the parameters were; vectors and routers stay parameters."""
        for name, x in weights.items():
            path, _, leaf = name.removeprefix("model." if isinstance(self, MiniMaxModel) else "").rpartition(".")
            module = self.get_submodule(path)
            del module._parameters[leaf]
            setattr(module, leaf, nn.Parameter(x, requires_grad=False) if isinstance(x, Tensor) else x)
        self.streamed = weights

    @property
    def weights(self) -> Mapping[str, Any]:
        """Name → tensor, named as in ``config.parameter_shapes()``; or a quantised one, which is one weight."""
        if self.streamed is not None:
            return self.streamed
        prefix = "model." if isinstance(self, MiniMaxModel) else ""
        quantized = {name: module for name, module in self.named_modules() if isinstance(module, Quantized)}
        whole = {name: x for name, x in self.state_dict().items() if name.rpartition(".")[0] not in quantized}
        return {prefix + name: x for name, x in {**whole, **quantized}.items()}

    @property
    def fingerprint(self) -> int | None:
        """Tells these weights from others; a router that is trained, or loaded in place, keeps its first one."""
        body: Any = getattr(self, "model", self)
        router = body.layers[0].mlp.gate.weight
        if router is not self._known[0]:
            known = None if router.is_meta else fingerprint_of(router.detach().float().cpu().numpy())
            self._known = router, known
        return self._known[1]

    def compile_decode(self) -> None:
        """Decode on a CPU by [token.c][minimax_torch.kernels.token], one call a layer, wherever it can.

        It is asked for, never taken by itself: a compiler is run, which takes seconds, and a file is left in the user's
        cache folder. ``torch.compile`` takes a model as well; it breaks at what is asked of the host, compiles again
        for other lengths, and rounds the slopes to float32.

        Raises RuntimeError, one sentence long, where there is no C compiler.
        """
        body: Any = getattr(self, "model", self)
        body.decoder = Decoder(body.layers)

    def gradient_checkpointing_enable(self) -> None:
        """Keep each layer's input alone for the backward, and compute the layer again there: less memory, more time.

        Whatever the forward ran under (`ops.using`, hooks) must be there in the backward too.
        """
        getattr(self, "model", self).checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Remember everything again."""
        getattr(self, "model", self).checkpointing = False

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @classmethod
    def from_reference(cls, model: reference.MiniMaxModel, dtype: torch.dtype | None = None, device=None, **kwargs):
        """The twin of a NumPy model: the same weights, copied, and nothing by chance until ``train()`` is called."""
        if model.head != cls.head:
            raise ValueError(f"The model is a {model.head}; its twin is minimax_torch.{model.head}.")
        twin = cls(model.config, seed=None, **kwargs)
        weights = {
            name: torch.tensor(x) if isinstance(x, np.ndarray) else Quantized.from_reference(x)
            for name, x in model.weights.items()
        }
        twin._take(weights, dtype, check_device(device))
        return twin.eval()

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        attn_implementation: str = "sdpa",
        *,
        quantization: str | None = None,
        lm_head_dtype: torch.dtype | None = None,
        stream: bool = False,
    ):
        """Twin of [from_pretrained][minimax_numpy.model.MiniMaxModel.from_pretrained]; None keeps every stored type."""
        check_kind(quantization, stream)
        for asked in filter(None, (dtype, lm_head_dtype)):
            check_dtype(asked)
        device = check_device(device)
        config = MiniMaxConfig.from_pretrained(path)
        check_lm_head(cls.head, config, lm_head_dtype, stream)
        model = cls(config, seed=None, attn_implementation=attn_implementation)
        if stream:
            model._stream(Streamed(path, config, cls.head, dtype, device=device))
            return model.eval()
        model._take(load_weights(path, config, cls.head, dtype, quantization, lm_head_dtype, device), None, device)
        return model.eval()

    def save_pretrained(self, path: str | os.PathLike, max_shard_bytes: int = 5 * 10**9) -> None:
        """Twin of [save_pretrained][minimax_numpy.model.MiniMaxModel.save_pretrained]."""
        check_held(self.weights)
        weights = self.weights.items()
        arrays = {name: x if isinstance(x, Quantized) else to_bits(x) for name, x in weights}
        save_checkpoint(path, self.config, self.head, arrays, max_shard_bytes)


class MiniMaxModel(Pretrained):
    """Twin of [MiniMaxModel][minimax_numpy.model.MiniMaxModel]."""

    head = "MiniMaxModel"

    def _build(self, config: MiniMaxConfig, attn_implementation: str) -> None:
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = [DecoderLayer(config, i, attn_implementation) for i in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: TokenIds | None = None,
        attention_mask: Int[Tensor, "B T"] | Bool[Tensor, "B T"] | None = None,
        *,
        position_ids: Positions | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        inputs_embeds: Hidden | None = None,
        cu_seqlens: Int[Tensor, "N_plus_1"] | None = None,
        output_hidden_states: bool = False,
        output_router_logits: bool = False,
    ) -> ModelOutput:
        """Twin of the call of [MiniMaxModel][minimax_numpy.model.MiniMaxModel]."""
        check_inputs(self.config, input_ids, attention_mask, position_ids, inputs_embeds, cu_seqlens)
        ids = None if input_ids is None else input_ids.long()
        x = self.embed_tokens(ids) if inputs_embeds is None else inputs_embeds  # (B, T, D)
        mask = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
        if cache is not None:
            check_cache(self.config, cache, x, cu_seqlens)
        memory = cache or Cache(self.config, len(x) if cu_seqlens is None else len(cu_seqlens) - 1, x.device)
        if cache is not None or use_cache:
            memory.belong_to(self.fingerprint)
        step, lengths = plan_step(self.config, x.shape[:2], mask, position_ids, memory.lengths, cu_seqlens)

        hidden_states, router_logits = [x] if output_hidden_states else [], []
        decoder = self.decoder if self.decoder is not None and self.decoder.takes(x, step) else None
        norms: list[Any] = [*(layer.input_layernorm for layer in self.layers), self.norm]
        normed = norms[0](x) if fused.takes(self.layers, x) else None
        room = blocks.Room(x) if blocks.takes(self.layers, x, step) else None
        with memory.advancing(lengths, x.dtype):
            for i, (layer, layer_memory) in enumerate(zip(self.layers, memory.layers, strict=True)):
                if normed is not None:
                    attend = partial(fused.attention, step=step, memory=layer_memory)
                    x, normed, logits = fused.decoder_layer(layer, x, normed, norms[i + 1], attend)
                elif decoder is not None:
                    x, logits = decoder(i, x, step, layer_memory)
                elif room is not None:
                    into = x if i and not output_hidden_states else torch.empty_like(x)  # what others hold stays
                    x, logits = blocks.decoder_layer(layer, x, into, step, layer_memory, room)
                elif self.checkpointing and torch.is_grad_enabled():
                    x, logits, memory.layers[i] = checkpoint(anew, layer, x, step, layer_memory, use_reentrant=False)
                else:
                    x, logits = layer(x, step, layer_memory)
                hidden_states += [x] if output_hidden_states else []
                router_logits.append(logits)
        x = self.norm(x) if normed is None else normed
        return ModelOutput(
            cache=memory if use_cache or cache is not None else None,
            hidden_states=[*hidden_states, x] if output_hidden_states else None,
            router_logits=router_logits if output_router_logits else None,
            last_hidden_state=x,
        )


class MiniMaxForCausalLM(Pretrained, Generates):
    """Twin of [MiniMaxForCausalLM][minimax_numpy.model.MiniMaxForCausalLM]."""

    head = "MiniMaxForCausalLM"

    def _build(self, config: MiniMaxConfig, attn_implementation: str) -> None:
        self.model = MiniMaxModel(config, None, attn_implementation=attn_implementation)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def _take(self, weights: dict[str, Any], dtype: torch.dtype | None, device: torch.device) -> None:
        if self.config.tie_word_embeddings:
            weights = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}
        super()._take(weights, dtype, device)
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def _stream(self, weights: Streamed) -> None:
        super()._stream(weights)
        if self.config.tie_word_embeddings:
            del self.lm_head._parameters["weight"]
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def weights(self) -> Mapping[str, Any]:
        """Name → tensor, named as in ``config.parameter_shapes()``; a tied head is not counted again."""
        if self.streamed is not None:
            return self.streamed
        tied = {"lm_head.weight"} if self.config.tie_word_embeddings else set()
        return {name: x for name, x in super().weights.items() if name not in tied}

    def forward(self, input_ids=None, attention_mask=None, *, labels=None, logits_to_keep: int = 0, **inputs):
        """Twin of the call of [MiniMaxForCausalLM][minimax_numpy.model.MiniMaxForCausalLM]."""
        check_labels(self.head, self.config, labels, input_ids, **inputs)
        check_kept(logits_to_keep, labels)
        out = self.model(input_ids, attention_mask, **inputs)
        x = out.last_hidden_state[:, -logits_to_keep:] if logits_to_keep else out.last_hidden_state
        out.logits = self.lm_head(x.to(torch.promote_types(x.dtype, self.lm_head.weight.dtype)))  # (B, T or n, V)
        there = out.logits.device  # of a model over several devices, the last
        mask = None if attention_mask is None else attention_mask.to(there, torch.bool)
        if labels is not None:
            out.loss = ops.causal_loss(out.logits, within_documents(labels, inputs.get("cu_seqlens")).to(there), mask)
        if out.router_logits is not None:
            out.aux_loss = ops.load_balancing_loss(
                [x.to(there) for x in out.router_logits], self.config.num_experts_per_tok, mask
            )
            out.loss = None if out.loss is None else out.loss + self.config.router_aux_loss_coef * out.aux_loss
        return out

    def empty_cache(self, rows: int) -> Cache:
        """A cache of this model that has seen nothing."""
        return Cache(self.config, rows, self.device)

    @torch.no_grad()
    def show(self, ids: np.ndarray, mask: np.ndarray, cache: Cache) -> Float[np.ndarray, "B V"]:
        """Show the model some tokens, given as arrays; logits after the last column, in float64."""
        tokens, real = torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)
        return self(tokens, real, cache=cache, logits_to_keep=1).logits[:, -1].double().cpu().numpy()

    def as_given(self, x: np.ndarray) -> Tensor:
        """An array as this package has it."""
        return torch.from_numpy(x).to(self.device)


class MiniMaxForSequenceClassification(Pretrained):
    """Twin of [MiniMaxForSequenceClassification][minimax_numpy.model.MiniMaxForSequenceClassification]."""

    head = "MiniMaxForSequenceClassification"

    def _build(self, config: MiniMaxConfig, attn_implementation: str) -> None:
        self.model = MiniMaxModel(config, None, attn_implementation=attn_implementation)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)

    def forward(self, input_ids=None, attention_mask=None, *, labels=None, **inputs):
        """Twin of the [reference's call][minimax_numpy.model.MiniMaxForSequenceClassification]."""
        check_labels(self.head, self.config, labels, input_ids, **inputs)
        out = self.model(input_ids, attention_mask, **inputs)
        x = out.last_hidden_state
        row, last = last_tokens(self.config, x.shape[:2], input_ids, attention_mask, inputs.get("cu_seqlens"))
        out.logits = self.score(x[row.to(x.device), last.to(x.device)])  # (rows, labels)
        out.loss = None if labels is None else ops.classification_loss(out.logits, labels.to(out.logits.device))
        return out


class MiniMaxForTokenClassification(Pretrained):
    """Twin of [MiniMaxForTokenClassification][minimax_numpy.model.MiniMaxForTokenClassification]."""

    head = "MiniMaxForTokenClassification"

    def _build(self, config: MiniMaxConfig, attn_implementation: str) -> None:
        self.model = MiniMaxModel(config, None, attn_implementation=attn_implementation)
        self.score = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, input_ids=None, attention_mask=None, *, labels=None, **inputs):
        """Twin of the call of [MiniMaxForTokenClassification][minimax_numpy.model.MiniMaxForTokenClassification]."""
        check_labels(self.head, self.config, labels, input_ids, **inputs)
        out = self.model(input_ids, attention_mask, **inputs)
        out.logits = self.score(out.last_hidden_state)  # (B, T, labels)
        out.loss = None if labels is None else ops.classification_loss(out.logits, labels.to(out.logits.device))
        return out


class MiniMaxForQuestionAnswering(Pretrained):
    """Twin of [MiniMaxForQuestionAnswering][minimax_numpy.model.MiniMaxForQuestionAnswering]."""

    head = "MiniMaxForQuestionAnswering"

    def _build(self, config: MiniMaxConfig, attn_implementation: str) -> None:
        self.model = MiniMaxModel(config, None, attn_implementation=attn_implementation)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)

    def forward(self, input_ids=None, attention_mask=None, *, labels=None, **inputs):
        """Twin of the call of [MiniMaxForQuestionAnswering][minimax_numpy.model.MiniMaxForQuestionAnswering]."""
        check_labels(self.head, self.config, labels, input_ids, **inputs)
        out = self.model(input_ids, attention_mask, **inputs)
        out.logits = self.qa_outputs(out.last_hidden_state)  # (B, T, 2)
        if labels is not None:  # each end is a choice among the T positions
            out.loss = ops.cross_entropy(out.logits.transpose(1, 2), labels.to(out.logits.device))
        return out


def anew(layer: nn.Module, x: Hidden, step: Step, memory: Any) -> tuple[Hidden, Tensor, Any]:
    """A layer that leaves the memory it was given as it was, so that it can be computed again; and the new memory."""
    memory = memory.fork()
    x, logits = layer(x, step, memory)
    return x, logits, memory


def plan_step(config, shape, mask, position_ids, lengths, cu_seqlens):
    """Twin of [plan_step][minimax_numpy.model.plan_step]."""
    rows = None
    if cu_seqlens is not None:
        rows, mask = ops.document_rows(cu_seqlens.to(lengths.device))
        shape = rows.shape
    real = torch.ones(1, shape[1], dtype=torch.int64, device=lengths.device) if mask is None else mask.long()
    slots = real.cumsum(dim=1) - real + lengths[:, None]  # (B, T)
    after = lengths + real.sum(dim=1)
    several_in_window = config.sliding_window and shape[1] > 1  # one alone sees all that a window's buffer holds
    visible = None
    if mask is not None or several_in_window or bool((after != after[0]).any()):
        visible = ops.visible_keys(slots, key_positions(config, slots, mask, lengths, after), config.sliding_window)
    positions = slots if rows is None else slots[mask][None]
    return Step(positions if position_ids is None else position_ids, slots, mask, visible, rows), after


def key_positions(config, slots, mask, before, after):
    """Twin of [key_positions][minimax_numpy.model.key_positions]."""
    window = config.sliding_window
    if window is None:
        return torch.arange(int(after.max()), device=after.device)[None]
    if slots.shape[1] == 1:
        return held_positions(after, window)
    new = slots if mask is None else torch.where(mask, slots, -1)
    return torch.cat([held_positions(before, window), new], dim=1)


def within_documents(labels: Int[Tensor, "B T"], cu_seqlens: Int[Tensor, "N_plus_1"] | None) -> Int[Tensor, "B T"]:
    """Twin of [within_documents][minimax_numpy.model.within_documents]."""
    if cu_seqlens is None:
        return labels
    labels = labels.clone()
    labels[:, cu_seqlens[:-1].long()] = ops.losses.IGNORED
    return labels


def last_tokens(config, shape, input_ids, attention_mask, cu_seqlens) -> tuple[Tensor, Tensor]:
    """Twin of [last_tokens][minimax_numpy.model.last_tokens], which it asks."""
    asked = (None if x is None else x.cpu().numpy() for x in (input_ids, attention_mask, cu_seqlens))
    row, last = reference.last_tokens(config, shape, *asked)
    return torch.from_numpy(row), torch.from_numpy(np.asarray(last))


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """Twin of [check_dtype][minimax_numpy.model.check_dtype], which has no bfloat16."""
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype is {dtype}; torch models are {', '.join(DTYPES)}.")
    return dtype


def check_device(device: torch.device | str | None) -> torch.device:
    """The device of that name; refuses one that is not there."""
    try:
        device = torch.device(device or "cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"There is no device {str(device)!r} on this machine; 'cpu' is always there.") from None
    return device


def load_weights(
    path: str | os.PathLike,
    config: MiniMaxConfig,
    head: str,
    dtype: torch.dtype | None,
    quantization: str | None,
    lm_head_dtype: torch.dtype | None,
    device: torch.device,
) -> dict[str, Any]:
    """Twin of [load_weights][minimax_numpy.checkpoint.load_weights], onto a device."""
    checkpoint = Checkpoint(path)
    plan = plan_loading(checkpoint, config, head)
    empty = partial(torch.empty, device=device)

    def read(disk_name: str) -> Tensor:
        return read_tensor(checkpoint, disk_name).to(device)

    weights: dict[str, Any] = {}
    for name, shape in config.parameter_shapes(head).items():
        if quantization and is_quantized(name):
            for place, parts in by_matrix(plan[name]):
                q = quantize(read_matrix(parts, shape[1:], read, empty), quantization, dtype)
                if place == ():
                    weights[name] = q
                else:
                    weights.setdefault(name, Quantized(quantization, shape, q.dtype, device=device))[place[0]] = q
            continue
        least = lm_head_dtype if name == "lm_head.weight" else torch.float32 if is_router(name) else None
        for disk_name, where in plan[name]:
            x = read(disk_name)
            kept = x.dtype if dtype is None else dtype
            x = x.to(kept if least is None else torch.promote_types(kept, least))
            if where == ():
                weights[name] = x
            else:
                weights.setdefault(name, x.new_empty(shape))[where] = x
    return weights


def read_tensor(checkpoint: Checkpoint, disk_name: str) -> Tensor:
    """Read one tensor in its stored type. Raises ValueError where a number is not finite."""
    bits = checkpoint.bits(disk_name)
    x = torch.from_numpy(bits)
    x = x.view(torch.bfloat16) if bits.dtype == np.uint16 else x
    if not all_finite(x):
        checkpoint.read(disk_name)  # says which and how many
    return x
