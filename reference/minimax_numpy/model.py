"""The models: a stack of layers between an embedding and a head.

    x = Embed[ids];  every layer in turn;  logits = RMSNorm(x) · lm_headᵀ

`MiniMaxModel` stops at the last norm; the four others put a head on it. All read and write folders that
transformers reads and writes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from . import ops
from .cache import Cache, fingerprint_of, held_positions
from .checkpoint import load_weights, save_checkpoint
from .config import MiniMaxConfig, is_router
from .generate import Generates
from .inputs import check_cache, check_inputs, check_kept, check_labels, check_lm_head
from .layers import Step, Weights, decoder_layer
from .quantize import check_kind
from .shapes import Hidden, Mask, Positions, TokenIds
from .streaming import Streamed
from .trace import record

DTYPES = {"float16": np.float16, "float32": np.float32, "float64": np.float64}


@dataclass
class ModelOutput:
    """What a call returns; what it did not ask for is None. Arrays, or in the twin tensors and its own cache."""

    logits: Any = None  # (B, T, V); or what the head says of each row or token
    cache: Any = None
    hidden_states: list[Any] | None = None  # (B, T, D) each
    router_logits: list[Any] | None = None  # (B, T, E) each
    loss: Any = None  # ()
    aux_loss: Any = None  # ()
    last_hidden_state: Any = None  # (B, T, D)


class MiniMaxModel:
    """The layers and the last norm, without a head.

    Parameters
    ----------
    config : MiniMaxConfig
    seed : int
        For fresh weights: embeddings N(0, 1), matrices N(0, 1 / fan in), gains 1, biases 0.
    dtype : NumPy dtype
        float16, float32 or float64. Routers are float32 at least.
    weights : mapping, optional
        Take these arrays, named as in ``config.parameter_shapes()``, in place of fresh ones.

    The call takes ``input_ids`` [B, T] or ``inputs_embeds`` [B, T, D], and ``attention_mask`` [B, T], which
    speaks of this call's tokens only; ``cache`` remembers the rest. ``cu_seqlens`` [N + 1] says where packed
    documents start and end, in a single row. Raises ValueError, one sentence long, on input that does not fit.
    """

    head = "MiniMaxModel"
    """The name that config.json calls this model by; a subclass goes by it too."""

    def __init__(self, config: MiniMaxConfig, seed: int = 0, dtype=np.float32, weights: Mapping | None = None):
        self.config, self.dtype = config, check_dtype(dtype)
        self.weights: Mapping[str, Any] = weights or fresh_weights(config, self.head, seed, self.dtype)
        self._known: tuple[Any, int | None] = (None, None)  # the first router, and its fingerprint

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        dtype=None,
        *,
        quantization: str | None = None,
        lm_head_dtype=None,
        stream: bool = False,
    ):
        """Load a folder of safetensors, one tensor at a time.

        ``dtype`` None keeps the stored type where NumPy has it, and takes float32 for bfloat16. With ``quantization``
        "int8", "nf4" or "nf4-double" the matrices of attention and experts are kept in 8 or 4 bits, each quantised
        from the numbers stored as soon as it is read. ``lm_head_dtype`` is the least that the head, and so the logits,
        are kept in. With ``stream`` nothing is loaded: weights are read from the folder as they are used, a block of
        rows at a time, and experts only where a token is sent to them ([streaming][minimax_numpy.streaming]). Raises
        FileNotFoundError or ValueError, naming the tensor or file, where the folder does not hold this model.
        """
        check_kind(quantization, stream)
        dtype, lm_head_dtype = (None if t is None else check_dtype(t) for t in (dtype, lm_head_dtype))
        config = MiniMaxConfig.from_pretrained(path)
        check_lm_head(cls.head, config, lm_head_dtype, stream)
        if stream:
            weights: Mapping[str, Any] = Streamed(path, config, cls.head, dtype)
        else:
            weights = load_weights(path, config, cls.head, dtype, quantization, lm_head_dtype)
        return cls(config, dtype=weights["model.embed_tokens.weight"].dtype, weights=weights)

    @property
    def fingerprint(self) -> int | None:
        """Tells these weights from others, for a cache to remember; None where they are not in memory."""
        router = self.weights["model.layers.0.mlp.gate.weight"] if isinstance(self.weights, dict) else None
        if router is not self._known[0]:
            self._known = router, None if router is None else fingerprint_of(router)
        return self._known[1]

    def save_pretrained(self, path: str | os.PathLike, max_shard_bytes: int = 5 * 10**9) -> None:
        """Write config.json and safetensors that transformers loads; nothing half-written is left behind.

        transformers ignores ``rotary_dim``, ``slope_rule``, ``postnorm`` and a shared expert: it runs the same model
        only where the whole head rotates, slopes follow its rule, and there is neither prenorm nor shared expert.
        Raises ValueError on a quantised model.
        """
        check_held(self.weights)
        save_checkpoint(path, self.config, self.head, self.weights, max_shard_bytes)

    def __call__(
        self,
        input_ids: TokenIds | None = None,
        attention_mask: Int[np.ndarray, "B T"] | Bool[np.ndarray, "B T"] | None = None,
        *,
        position_ids: Positions | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        inputs_embeds: Hidden | None = None,
        cu_seqlens: Int[np.ndarray, "N_plus_1"] | None = None,
        output_hidden_states: bool = False,
        output_router_logits: bool = False,
    ) -> ModelOutput:
        r"""Run the layers: $x = \mathrm{Embed}[\text{ids}]$, every layer in turn, RMSNorm.

        Parameters
        ----------
        input_ids : (B, T)
            Or ``inputs_embeds`` (B, T, D) in their place.
        attention_mask : (B, T), optional
            0 at padding, on any side or within. It speaks of this call's tokens only.
        position_ids : (B, T), optional
            What the rotary turns by; by default each row's real tokens are counted, cached ones included.
        cache : Cache, optional
            Continue from it and advance it in place. ``use_cache`` starts one.
        cu_seqlens : (N + 1,), optional
            Where the N documents packed into a single row start and end; each is blind to the others.
        output_hidden_states, output_router_logits : bool
            Return L + 2 hidden states (embedding, after each layer, after the norm), and L arrays (B, T, E).

        Returns
        -------
        out : ModelOutput
            ``.last_hidden_state`` (B, T, D), ``.cache``, and what was asked for.
        """
        check_inputs(self.config, input_ids, attention_mask, position_ids, inputs_embeds, cu_seqlens)
        w = Weights(self.weights)
        x = w["model.embed_tokens.weight"][input_ids] if inputs_embeds is None else inputs_embeds
        x = record("model.embed_tokens", x)  # (B, T, D)
        mask = None if attention_mask is None or attention_mask.all() else attention_mask.astype(bool)
        if cache is not None:
            check_cache(self.config, cache, x, cu_seqlens)
        memory = cache or Cache(self.config, len(x) if cu_seqlens is None else len(cu_seqlens) - 1)
        if cache is not None or use_cache:
            memory.belong_to(self.fingerprint)
        step, lengths = plan_step(self.config, x.shape[:2], mask, position_ids, memory.lengths, cu_seqlens)

        hidden_states, router_logits = [x], []
        with memory.advancing(lengths, x.dtype):
            for i in range(self.config.num_hidden_layers):
                x, logits = decoder_layer(w / "model.layers" / i, x, self.config, i, step, memory.layers[i])
                hidden_states += [x] if output_hidden_states else []
                router_logits.append(logits)
        x = (w / "model").rms_norm("norm", x, self.config.rms_norm_eps)
        return ModelOutput(
            cache=memory if use_cache or cache is not None else None,
            hidden_states=[*hidden_states, x] if output_hidden_states else None,
            router_logits=router_logits if output_router_logits else None,
            last_hidden_state=x,
        )


class MiniMaxForCausalLM(MiniMaxModel, Generates):
    """The language model: the score of every next token.

    ``labels`` [B, T] are the ids themselves; the loss shifts them. ``logits_to_keep`` n returns the last n
    positions only, 0 all. With ``output_router_logits`` the balance loss is added to the loss.
    """

    head = "MiniMaxForCausalLM"

    def __call__(self, input_ids=None, attention_mask=None, *, labels=None, logits_to_keep: int = 0, **inputs):
        r"""Score the next token: $\mathrm{logits} = \mathrm{RMSNorm}(x)\,W_\text{head}^\top$, (B, T, V).

        ``inputs`` are those of [MiniMaxModel][minimax_numpy.model.MiniMaxModel].
        """
        check_labels(self.head, self.config, labels, input_ids, **inputs)
        check_kept(logits_to_keep, labels)
        out = super().__call__(input_ids, attention_mask, **inputs)
        w, x = Weights(self.weights), out.last_hidden_state
        kept = x[:, -logits_to_keep:] if logits_to_keep else x
        if self.config.tie_word_embeddings:
            out.logits = w.record("lm_head", ops.linear(kept, w["model.embed_tokens.weight"]))
        else:
            out.logits = w.linear("lm_head", kept)  # (B, T or n, V)
        mask = None if attention_mask is None else attention_mask.astype(bool)
        if labels is not None:
            targets = within_documents(labels, inputs.get("cu_seqlens"))
            out.loss = ops.causal_loss(out.logits, targets, mask)
        if out.router_logits is not None:
            aux = ops.load_balancing_loss(out.router_logits, self.config.num_experts_per_tok, mask)
            out.aux_loss = record("aux_loss", aux)
            out.loss = None if out.loss is None else np.asarray(out.loss + self.config.router_aux_loss_coef * aux)
        if out.loss is not None:
            out.loss = record("loss", out.loss)
        return out

    def empty_cache(self, rows: int) -> Cache:
        """A cache of this model that has seen nothing."""
        return Cache(self.config, rows)

    def show(self, ids: TokenIds, mask: Mask, cache: Cache) -> Float[np.ndarray, "B V"]:
        """Show the model some tokens; logits after the last column."""
        return self(ids, mask, cache=cache, logits_to_keep=1).logits[:, -1]

    def as_given(self, x: np.ndarray) -> np.ndarray:
        """An array as this package has it."""
        return x


class MiniMaxForSequenceClassification(MiniMaxModel):
    """One answer a row, read at its rightmost real token; one a document in a packed row."""

    head = "MiniMaxForSequenceClassification"

    def __call__(self, input_ids=None, attention_mask=None, *, labels=None, **inputs):
        """Read one answer a row: logits (B, labels). ``inputs`` are those of `MiniMaxModel`."""
        check_labels(self.head, self.config, labels, input_ids, **inputs)
        out = super().__call__(input_ids, attention_mask, **inputs)
        x = out.last_hidden_state
        row, last = last_tokens(self.config, x.shape[:2], input_ids, attention_mask, inputs.get("cu_seqlens"))
        out.logits = Weights(self.weights).linear("score", x[row, last])  # (rows, labels)
        out.loss = None if labels is None else ops.classification_loss(out.logits, labels)
        return out


class MiniMaxForTokenClassification(MiniMaxModel):
    """One answer a token."""

    head = "MiniMaxForTokenClassification"

    def __call__(self, input_ids=None, attention_mask=None, *, labels=None, **inputs):
        """Read one answer a token: logits (B, T, labels). ``inputs`` are those of `MiniMaxModel`."""
        check_labels(self.head, self.config, labels, input_ids, **inputs)
        out = super().__call__(input_ids, attention_mask, **inputs)
        out.logits = Weights(self.weights).linear("score", out.last_hidden_state)  # (B, T, labels)
        out.loss = None if labels is None else ops.classification_loss(out.logits, labels)
        return out


class MiniMaxForQuestionAnswering(MiniMaxModel):
    """Where an answer starts and where it ends: logits [B, T, 2]. ``labels`` [B, 2] are the two positions."""

    head = "MiniMaxForQuestionAnswering"

    def __call__(self, input_ids=None, attention_mask=None, *, labels=None, **inputs):
        """Read where an answer starts and ends: logits (B, T, 2). ``inputs`` are those of `MiniMaxModel`."""
        check_labels(self.head, self.config, labels, input_ids, **inputs)
        out = super().__call__(input_ids, attention_mask, **inputs)
        out.logits = Weights(self.weights).linear("qa_outputs", out.last_hidden_state)  # (B, T, 2)
        if labels is not None:  # each end is a choice among the T positions
            out.loss = ops.cross_entropy(out.logits.swapaxes(1, 2), labels)
        return out


def check_held(weights: Mapping) -> None:
    """Refuse to save weights that lie in a folder already."""
    if hasattr(weights, "checkpoint"):
        raise ValueError(
            f"The weights are streamed from {weights.checkpoint.path}, which is a saved model; copy that folder."
        )


def fresh_weights(config: MiniMaxConfig, head: str, seed: int, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Random weights, the same numbers for a seed whatever the dtype; routers are float32 at least."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in config.parameter_shapes(head).items():
        if name.endswith(".bias"):
            x = np.zeros(shape, np.float32)
        elif len(shape) == 1:
            x = np.ones(shape, np.float32)
        else:
            fan_in = 1 if name == "model.embed_tokens.weight" else shape[-1]
            x = rng.standard_normal(shape, np.float32) * np.float32(fan_in**-0.5)
        weights[name] = x.astype(np.promote_types(dtype, np.float32) if is_router(name) else dtype)
    return weights


def plan_step(config, shape, mask, position_ids, lengths, cu_seqlens):
    """Count each row's real tokens: their positions, their slots, what each may see, and the new lengths."""
    rows = None
    if cu_seqlens is not None:
        rows, mask = ops.document_rows(cu_seqlens)
        shape = rows.shape
    before = np.arange(shape[1])[None] if mask is None else np.cumsum(mask, axis=1) - mask
    slots = before + lengths[:, None]  # (B, T)
    after = lengths + (shape[1] if mask is None else mask.sum(axis=1))
    several_in_window = config.sliding_window and shape[1] > 1  # one alone sees all that a window's buffer holds
    visible = None
    if mask is not None or several_in_window or (after != after[0]).any():
        visible = ops.visible_keys(slots, key_positions(config, slots, mask, lengths, after), config.sliding_window)
    positions = slots if rows is None else slots[mask][None]
    return Step(positions if position_ids is None else position_ids, slots, mask, visible, rows), after


def key_positions(config, slots, mask, before, after):
    """Position of each key that [append][minimax_numpy.cache.SoftmaxMemory.append] returns, (B or 1, J)."""
    window = config.sliding_window
    if window is None:
        return np.arange(after.max(initial=0))[None]
    if slots.shape[1] == 1:
        return held_positions(after, window)
    new = slots if mask is None else np.where(mask, slots, -1)
    return np.concatenate([held_positions(before, window), new], axis=1)


def within_documents(labels: Int[np.ndarray, "B T"], cu_seqlens: Int[np.ndarray, "N_plus_1"] | None):
    """Labels with the first token of each packed document ignored: no other document foretells it."""
    if cu_seqlens is None:
        return labels
    labels = labels.copy()
    labels[:, cu_seqlens[:-1]] = ops.losses.IGNORED
    return labels


def last_tokens(config, shape, input_ids, attention_mask, cu_seqlens):
    """Row and column of each row's (or document's) rightmost real token."""
    B, T = shape
    if cu_seqlens is not None:
        return np.zeros(len(cu_seqlens) - 1, int), cu_seqlens[1:] - 1
    if attention_mask is not None:
        real = attention_mask.astype(bool)
    elif config.pad_token_id is not None and input_ids is not None:
        real = input_ids != config.pad_token_id
    else:
        real = np.ones((B, T), bool)
    return np.arange(B), np.where(real, np.arange(T), -1).max(axis=1)


def check_dtype(dtype) -> np.dtype:
    """The type of that name; refuses one that is not of the three."""
    dtype = np.dtype(dtype)
    if dtype.name not in DTYPES:
        raise ValueError(f"dtype is {dtype.name!r}; NumPy models are {', '.join(DTYPES)}.")
    return dtype
