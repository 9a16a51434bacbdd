"""`minimax-twin bench models`: prefill, decode and a training step of whole models, beside every rival there is."""

import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from minimax_numpy.config import LIGHTNING, SOFTMAX, MiniMaxConfig
from minimax_numpy.counts import count
from torch import Tensor

from .. import ops
from ..model import MiniMaxForCausalLM
from . import MEDIUM
from .contest import Ceilings, Row, ceilings, compete, finish, lengths_of, noting, off, reading, table

NEW = 16  # tokens decoded a call
SMALL = dataclasses.replace(
    MEDIUM, layer_types=(LIGHTNING, SOFTMAX), vocab_size=64, hidden_size=32, num_attention_heads=2,
    num_key_value_heads=2, head_dim=16, rotary_dim=16, intermediate_size=32, num_local_experts=4,
)  # fmt: skip


class Ours:
    """The twin, in some form."""

    def __init__(
        self,
        name: str,
        model: MiniMaxForCausalLM,
        using: dict[str, Callable] | None = None,
        checkpointing: bool = False,
    ):
        self.name, self.model, self.using, self.checkpointing = name, model, using, checkpointing

    def form(self):
        """Whatever ops it runs on."""
        return nullcontext() if self.using is None else ops.using(**self.using)

    @torch.no_grad()
    def prefill(self, ids: Tensor) -> Tensor:
        with self.form():
            return self.model(ids, logits_to_keep=1).logits

    @torch.no_grad()
    def read(self, ids: Tensor) -> Any:
        """Read a prompt to continue from."""
        return self.model(ids, use_cache=True, logits_to_keep=1).cache

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


class Transformers:
    """transformers on the same weights, as it comes."""

    name = "transformers"

    def __init__(self, folder: str):
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.model = transformers.MiniMaxForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def prefill(self, ids: Tensor) -> Tensor:
        return self.model(ids, logits_to_keep=1, use_cache=False).logits

    @torch.no_grad()
    def read(self, ids: Tensor) -> Any:
        out = self.model(ids, use_cache=True, logits_to_keep=1)
        return out.past_key_values, ids.shape[1]

    @torch.no_grad()
    def decode(self, cache: Any, ids: Tensor) -> tuple[Tensor, Any]:
        past, seen = cache
        for t in range(ids.shape[1]):
            where = torch.full((len(ids), 1), seen + t)  # left out, every decoded token is at position 0
            out = self.model(ids[:, t : t + 1], past_key_values=past, use_cache=True, position_ids=where)
        return out.logits, (past, seen + ids.shape[1])

    def train(self, ids: Tensor) -> dict[str, Tensor]:
        self.model.zero_grad()
        self.model(ids, labels=ids, use_cache=False).loss.backward()
        return {name: x.grad for name, x in self.model.named_parameters() if x.grad is not None}


def masked_experts(x, weights, indices, gate_up, down, hidden_act="silu"):
    """The experts as the reference writes them: for each, the tokens that chose it, found by a mask."""
    flat, out = x.reshape(-1, x.shape[-1]), torch.zeros_like(x.reshape(-1, x.shape[-1]))
    share, chosen = weights.reshape(len(flat), -1), indices.reshape(len(flat), -1)
    for e in range(len(gate_up)):
        token, place = (chosen == e).nonzero(as_tuple=True)
        if len(token):
            said = ops.swiglu(flat[token], gate_up[e], down[e], hidden_act)
            out = out.index_add(0, token, share[token, place, None] * said)
    return out.reshape(x.shape)


def recurrent(q, k, v, slopes, state=None, *, chunk=256, mask=None):
    """Lightning attention token by token."""
    return ops.lightning_attention_recurrent(q, k, v, slopes, state, mask=mask)


EAGER: dict[str, Callable] = {"lightning_attention_chunked": recurrent, "mix_experts": masked_experts}
LONGEST_EAGER = 4096


def models(options: Any) -> int:
    """Run the contests and print them."""
    config = SMALL if options.small else MEDIUM
    lengths = lengths_of(options, (64, 128) if options.small else (1024, 4096, 16_384))
    found = ceilings(256, 4, 3) if options.small else ceilings()
    c = config
    print(
        f"float32, {torch.get_num_threads()} threads; {c.num_hidden_layers} layers, D {c.hidden_size}, "
        f"{c.num_attention_heads} × {c.head_dim} heads, {c.num_local_experts} experts of {c.intermediate_size}\n"
        f"this machine: {found}"
    )
    model = MiniMaxForCausalLM(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        exact = Ours("float64", MiniMaxForCausalLM.from_pretrained(folder, torch.float64))
        rivals: list[Any] = [Ours("ours", model)]
        absent = {"fla": "absent: it has the op, not the model; bench ops names it"}
        try:
            rivals.append(Transformers(folder))
        except ImportError as error:
            absent["transformers"] = f"absent: {error}"
        decoders = rivals + [Ours("ours, int8", MiniMaxForCausalLM.from_pretrained(folder, quantization="int8"))]
        compiled = [Ours(f"{name}, compiled", MiniMaxForCausalLM.from_pretrained(folder, quantization=kind))
                    for name, kind in (("ours", None), ("ours, int8", "int8"))]  # fmt: skip
    rivals.append(Ours("ours, eager form", model, EAGER))
    try:
        for contestant in compiled:
            contestant.model.compile_decode()
        decoders = [compiled[0], *decoders, compiled[1]]
    except RuntimeError as error:
        absent["ours, compiled"] = f"absent: {error}"
    ids = torch.randint(3, config.vocab_size, (8, max(lengths)), generator=torch.Generator().manual_seed(0))
    rows: list[Row] = []

    def tell(contest: str, new: list[Row], length: int, batch: int, first: str) -> None:
        rows.extend(new + [Row(contest, name, length, batch, note=why) for name, why in absent.items()])
        print(table([r for r in rows if (r.contest, r.length, r.batch) == (contest, length, batch)], first), flush=True)

    for length in lengths:
        tell("prefill", prefill(rivals, exact, ids[:1, :length], config, found, options.repeat), length, 1, "ours")
    for batch in (1, 8):
        new = decode([*decoders, rivals[-1]], exact, ids[:batch, : lengths[0] + NEW], config, options.repeat)
        tell("decode", new, lengths[0], batch, new[0].contestant)
    length = lengths[min(1, len(lengths) - 1)]
    learners = [*rivals, Ours("ours, checkpointed", model, checkpointing=True)]
    tell("training step", train(learners, exact, ids[:1, :length], config, found, options.repeat), length, 1, "ours")
    return finish(rows, found, options, {"config": {"hidden_size": c.hidden_size, "layers": c.num_hidden_layers}})


def too_long(contestant: Any, row: Row) -> bool:
    """Whether a contestant is left out, which its row then says."""
    if getattr(contestant, "using", None) is not None and row.length > LONGEST_EAGER:
        row.note = f"not run beyond {LONGEST_EAGER:,} tokens: a step of Python for each"
    return row.note is not None


def prefill(contestants, exact: Ours, ids: Tensor, config: MiniMaxConfig, found: Ceilings, repeat: int) -> list[Row]:
    """A prompt, and the logits of its last token."""
    T = ids.shape[1]
    floor = flops(config, T) / found.matmul
    want, rows, runs = exact.prefill(ids), [], []
    for contestant in contestants:
        row = Row("prefill", contestant.name, T, floor=floor)
        rows.append(row)
        if not too_long(contestant, row):
            with noting(row):
                row.error = off(contestant.prefill(ids), want)
                runs.append((row, lambda c=contestant: c.prefill(ids)))
    compete([row for row, _ in runs], [run for _, run in runs], repeat)
    return rows


def decode(contestants, exact: Ours, ids: Tensor, config: MiniMaxConfig, repeat: int) -> list[Row]:
    """`NEW` tokens one by one after a prompt; the time is of one token. int8's error is that of its codes."""
    prompt, new = ids[:, :-NEW], ids[:, -NEW:]
    B, T = prompt.shape
    want, _ = exact.decode(exact.read(prompt), new)
    rows, runs = [], []
    for contestant in contestants:
        narrow = "int8" in contestant.name
        row = Row("decode", contestant.name, T, B, floor=reading(int(bytes_read(config, B, T, narrow))))
        rows.append(row)
        with noting(row):
            held = [contestant.read(prompt)]
            logits, held[0] = contestant.decode(held[0], new)
            row.error = off(logits, want)

            def run(c=contestant, held=held):  # the text grows on, for all alike
                held[0] = c.decode(held[0], new)[1]

            runs.append((row, run))
    compete([row for row, _ in runs], [run for _, run in runs], 2 * repeat, NEW)
    return rows


def train(contestants, exact: Ours, ids: Tensor, config: MiniMaxConfig, found: Ceilings, repeat: int) -> list[Row]:
    """Forward and backward; the error is that of all gradients together."""
    T = ids.shape[1]
    floor = 3 * (flops(config, T) + 2 * (T - 1) * config.hidden_size * config.vocab_size) / found.matmul
    want = exact.train(ids)
    rows, runs = [], []
    for contestant in contestants:
        row = Row("training step", contestant.name, T, floor=floor)
        rows.append(row)
        if getattr(contestant, "using", None) is not None and T > 512:
            row.note = "not run beyond 512 tokens: autograd would keep a state a token"
            continue
        with noting(row):
            got = contestant.train(ids)
            names = [name for name in want if name in got]
            row.error = off([got[name] for name in names], [want[name] for name in names])
            del got
            runs.append((row, lambda c=contestant: c.train(ids)))
    exact.model.zero_grad()
    compete([row for row, _ in runs], [run for _, run in runs], repeat)
    for contestant in contestants:
        contestant.model.zero_grad()
    return rows


def flops(config: MiniMaxConfig, length: int) -> int:
    """The least arithmetic of a prefill whose last token's logits are wanted: cores as states, half of a square."""
    c = count(config, (length + 1) // 2)  # the mean number of keys that a query sees
    head = 2 * (c.head or c.embedding)
    return length * (c.flops_per_token - head) + head


def bytes_read(config: MiniMaxConfig, batch: int, length: int, int8: bool = False) -> float:
    """Bytes of one decode step: every weight that some row needs once, states read and written, keys and values."""
    c = count(config)
    E, L = config.num_local_experts, config.num_hidden_layers
    hit = E * (1 - (1 - config.num_experts_per_tok / E) ** batch)  # experts, where each is as likely
    others = c.activated - L * config.num_experts_per_tok * c.expert
    kinds = config.layer_types
    narrow = L * hit * c.expert + c.lightning_layer * kinds.count(LIGHTNING) + c.softmax_layer * kinds.count(SOFTMAX)
    weights = 4 * (others + L * hit * c.expert + (c.head or c.embedding)) - (3 * narrow if int8 else 0)
    return weights + batch * (2 * c.state_bytes + 2 * c.kv_bytes_per_token * length)


def has_fla() -> bool:
    """Whether flash-linear-attention is installed."""
    return importlib.util.find_spec("fla") is not None
