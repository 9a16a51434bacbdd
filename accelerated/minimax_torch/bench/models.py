"""`minimax-twin bench models` and `layers`: prefill, decode and a training step, beside every rival there is.

All contestants share one set of random weights. ``layers`` are models of one layer, lightning or softmax, attention
and experts: on a GPU of the true size.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from minimax_numpy.cache import LightningMemory
from minimax_numpy.config import LIGHTNING, SOFTMAX, MiniMaxConfig
from minimax_numpy.counts import count
from torch import Tensor

from .. import ops
from ..kernels import choose
from ..model import MiniMaxForCausalLM
from . import MEDIUM
from .contest import Machine, Row, compete, fits, lengths_of, machine_of, noting, off, shape_of
from .tell import finish, table

NEW = 16  # tokens decoded a call
PIECE = 32_768  # tokens that a prefill reads a call, where it is long
LONGEST_EXACT = 16_384  # tokens that float64 is asked about
SMALL = dataclasses.replace(
    MEDIUM, layer_types=(LIGHTNING, SOFTMAX), vocab_size=64, hidden_size=32, num_attention_heads=2,
    num_key_value_heads=2, head_dim=16, rotary_dim=16, intermediate_size=32, num_local_experts=4,
)  # fmt: skip
TRUE = dataclasses.replace(MiniMaxConfig.text_01(), vocab_size=1024, slope_rule="transformers")


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
            for layer in self.model.model.layers:
                if hasattr(attention := layer.self_attn, "slope_rate"):
                    with like.device:  # versions differ in whether it can be asked for one
                        attention.slope_rate = attention.get_slope_rate()
                    names = ("query_decay", "key_decay", "diagonal_decay")
                    for name, x in zip(names, attention.decay_factors(attention.slope_rate), strict=True):
                        setattr(attention, name, x)
            with torch.device(like.device):
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


# --- What is run ----------------------------------------------------------------------------------------------------


def models(options: Any) -> int:
    """Run the contests and print them."""
    machine, config = machine_of(options), SMALL if options.small else MEDIUM
    lengths = lengths_of(options, (64, 128) if options.small else (1024, 4096, 16_384))
    print(f"{machine}\n{shape_of(config)}")
    model, rows = built(config, machine), list[Row]()
    exact, absent = Ours("float64", with_weights(config, model.weights, machine, torch.float64)), {}
    absent["fla"] = "absent: it has the op, not the model; bench ops names it"
    rivals = contestants(model, machine, absent)
    decoders = [*rivals, Slotted("ours, slots", model)]
    if machine.device.type == "cpu" and machine.dtype == torch.float32:
        decoders = [*narrow_and_compiled(model, absent), *decoders]
    ids = drawn_ids(config, machine, 8, max(lengths))
    for length in lengths:
        tell(rows, prefill(rivals, exact, ids[:1, :length], machine, options.repeat), absent)
    for batch in (1, 8):
        tell(rows, decode(decoders, exact, ids[:batch, : lengths[0] + NEW], machine, options.repeat), absent)
    learners = [*rivals, Ours("ours, checkpointed", model, checkpointing=True)]
    middle = lengths[min(1, len(lengths) - 1)]
    tell(rows, train(learners, exact, ids[:1, :middle], machine, options.repeat), absent)
    return finish(
        rows, machine, options, "ours", config={"hidden_size": config.hidden_size, "layers": len(model.model.layers)}
    )


def layers(options: Any) -> int:
    """One layer at a time, attention and experts: prefill and decode."""
    machine = machine_of(options)
    config = SMALL if options.small else TRUE if machine.on_gpu else MEDIUM
    usual = (2048, 8192, 32_768, 131_072) if machine.on_gpu else (1024, 4096, 16_384)
    lengths = lengths_of(options, (64, 128) if options.small else usual)
    rows: list[Row] = []
    print(f"{machine}\none layer at a time; {shape_of(config).partition(', ')[2]}")
    for kind, told in ((LIGHTNING, "lightning layer"), (SOFTMAX, "softmax layer")):
        one = dataclasses.replace(config, layer_types=(kind,), vocab_size=64)
        row = Row(f"prefill, {told}", "ours", lengths[0], needed=count(one).total * (machine.dtype.itemsize + 8))
        if machine.on_gpu and not fits(row, machine):
            tell(rows, [row], {})
            continue
        model, absent = built(one, machine), dict[str, str]()
        exact = Ours("float64", with_weights(one, model.weights, machine, torch.float64))
        rivals = contestants(model, machine, absent)
        ids = drawn_ids(one, machine, 8, max(lengths) + NEW)
        for length in lengths:
            new = prefill(rivals, exact, ids[:1, :length], machine, options.repeat)
            tell(rows, named(new, told), absent)
        for batch in (1, 8):
            new = decode(
                [*rivals, Slotted("ours, slots", model)],
                exact,
                ids[:batch, : lengths[0] + NEW],
                machine,
                options.repeat,
            )
            tell(rows, named(new, told), absent)
        del model, exact, rivals
    return finish(rows, machine, options, "ours")


def named(rows: list[Row], told: str) -> list[Row]:
    """The same rows, of this layer."""
    for row in rows:
        row.contest += f", {told}"
    return rows


def contestants(model: MiniMaxForCausalLM, machine: Machine, absent: dict[str, str]) -> list[Any]:
    """Ours, transformers, and ours in plainer forms; what is not there is put down as absent."""
    found: list[Any] = [Ours("ours", model)]
    try:
        found.append(Transformers(model))
        if machine.on_gpu:
            found.append(Transformers(model, "eager"))
    except ImportError as error:
        absent["transformers"] = f"absent: {error}"
    return [*found, Ours("ours, as written", model, choose.plain), Ours("ours, eager form", model, eager)]


def narrow_and_compiled(model: MiniMaxForCausalLM, absent: dict[str, str]) -> list[Ours]:
    """Other ways to decode on a CPU: by token.c, and with int8 codes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        plain, int8, compiled = (
            MiniMaxForCausalLM.from_pretrained(folder, quantization=kind) for kind in (None, "int8", "int8")
        )
    try:
        plain.compile_decode()
        compiled.compile_decode()
    except RuntimeError as error:
        absent["ours, compiled"] = f"absent: {error}"
        return [Ours("ours, int8", int8)]
    return [Ours("ours, compiled", plain), Ours("ours, int8, compiled", compiled), Ours("ours, int8", int8)]


def drawn_ids(config: MiniMaxConfig, machine: Machine, batch: int, length: int) -> Tensor:
    """Random tokens."""
    return torch.randint(3, config.vocab_size, (batch, length), generator=machine.generator(), device=machine.device)


def tell(rows: list[Row], new: list[Row], absent: dict[str, str]) -> None:
    """Keep and print what was found, with what is absent."""
    new += [Row(new[0].contest, name, new[0].length, new[0].batch, note=why) for name, why in absent.items()]
    rows += new
    print(table(new, "ours"), flush=True)


def left_out(contestant: Any, row: Row, longest: int) -> bool:
    """Whether a contestant is not run, which its row then says: the eager form takes a step of Python a token."""
    if getattr(contestant, "form", None) is eager and row.length > longest:
        row.note = f"not run beyond {longest:,} tokens: a step of Python for each"
    return row.note is not None


def prefill(found: Sequence[Any], exact: Ours | None, ids: Tensor, machine: Machine, repeat: int) -> list[Row]:
    """A prompt, and the logits of its last token."""
    T, rows, runs, want = ids.shape[1], [], [], None
    if exact is not None and T <= LONGEST_EXACT:
        want = exact.prefill(ids)
    config = next(c.model.config for c in found if isinstance(c, Ours))
    for contestant in found:
        row = Row("prefill", contestant.name, T, floor=flops(config, T) / machine.matmul)
        row.needed = working(config, T, machine.dtype.itemsize, isinstance(contestant, Ours)) if machine.on_gpu else 0
        rows.append(row)
        if left_out(contestant, row, 2048 if machine.on_gpu else 4096) or not fits(row, machine):
            continue
        with noting(row, machine):
            if want is not None:
                row.error = off(contestant.prefill(ids), want)
            runs.append((row, lambda c=contestant: c.prefill(ids)))
    compete([row for row, _ in runs], [run for _, run in runs], repeat, machine)
    return rows


def decode(
    found: Sequence[Any], exact: Ours | None, ids: Tensor, machine: Machine, repeat: int, past: int = 0
) -> list[Row]:
    """`NEW` tokens one by one after a prompt; the time is of one token. int8's error is that of its codes.

    Where ``past`` is given, ids are those tokens alone, and what came before them is drawn. On a GPU one contestant is
    done before the next begins, since each remembers that past in a way of its own.
    """
    prompt, new = ids[:, :-NEW], ids[:, -NEW:]
    B, T, room = len(ids), past or prompt.shape[1], NEW * (4 + 2 * repeat)
    config = next(c.model.config for c in found if isinstance(c, Ours))
    want = None if exact is None else exact.decode(exact.read(prompt, room), new)[0]
    rows: list[Row] = []
    runs: list[tuple[Row, Any]] = []
    run: Any
    for contestant in found:
        nbytes = bytes_read(config, B, T, machine.dtype.itemsize, "int8" in contestant.name)
        row = Row("decode", contestant.name, T, B, floor=machine.moving(nbytes))
        row.needed = remembered(config, B, T, machine.dtype.itemsize) if machine.on_gpu else 0
        rows.append(row)
        if not fits(row, machine):
            continue
        with noting(row, machine):
            run = begun(row, contestant, prompt, new, past, room, want)
            runs.append((row, run))
            if machine.on_gpu:
                compete([row], [run], 2 * repeat, machine, NEW, calls=1)
                runs.clear()
        run = None  # and with it what was remembered
    compete([row for row, _ in runs], [run for _, run in runs], 2 * repeat, machine, NEW)
    return rows


def begun(
    row: Row, contestant: Any, prompt: Tensor, new: Tensor, past: int, room: int, want: Tensor | None
) -> Callable[[], None]:
    """A contestant with the past read, or drawn; each call goes on from the last, for all alike."""
    held = [contestant.past(len(new), past, room) if past else contestant.read(prompt, room)]
    logits, held[0] = contestant.decode(held[0], new)
    row.error = None if want is None else off(logits, want)

    def run() -> None:
        held[0] = contestant.decode(held[0], new)[1]

    return run


def train(found: Sequence[Any], exact: Ours, ids: Tensor, machine: Machine, repeat: int) -> list[Row]:
    """Forward and backward; the error is that of all gradients together."""
    T, config = ids.shape[1], exact.model.config
    floor = 3 * (flops(config, T) + 2 * (T - 1) * config.hidden_size * config.vocab_size) / machine.matmul
    want = exact.train(ids)
    rows, runs = [], []
    for contestant in found:
        row = Row("training step", contestant.name, T, floor=floor)
        rows.append(row)
        if left_out(contestant, row, 512):  # autograd would keep a state a token
            continue
        with noting(row, machine):
            got = contestant.train(ids)
            names = [name for name in want if name in got]
            row.error = off([got[name] for name in names], [want[name] for name in names])
            del got
            runs.append((row, lambda c=contestant: c.train(ids)))
    exact.model.zero_grad()
    compete([row for row, _ in runs], [run for _, run in runs], repeat, machine)
    for contestant in found:
        contestant.model.zero_grad()
    return rows


# --- Least work, and memory -----------------------------------------------------------------------------------------


def flops(config: MiniMaxConfig, length: int) -> int:
    """The least arithmetic of a prefill whose last token's logits are wanted: cores as states, half of a square."""
    c = count(config, (length + 1) // 2)  # the mean number of keys that a query sees
    head = 2 * (c.head or c.embedding)
    return length * (c.flops_per_token - head) + head


def bytes_read(config: MiniMaxConfig, batch: int, length: int, size: int = 4, int8: bool = False) -> float:
    """Bytes of one decode step: every weight that some row needs once, states read and written, keys and values."""
    c = count(config)
    E, L = config.num_local_experts, config.num_hidden_layers
    hit = E * (1 - (1 - config.num_experts_per_tok / E) ** batch)  # experts, where each is as likely
    others = c.activated - L * config.num_experts_per_tok * c.expert
    kinds = config.layer_types
    narrow = L * hit * c.expert + c.lightning_layer * kinds.count(LIGHTNING) + c.softmax_layer * kinds.count(SOFTMAX)
    weights = size * (others + L * hit * c.expert + (c.head or c.embedding)) - (3 * narrow if int8 else 0)
    return weights + batch * (2 * c.state_bytes + size / 2 * c.kv_bytes_per_token * length)


def remembered(config: MiniMaxConfig, batch: int, length: int, size: int) -> float:
    """Bytes of states, keys and values."""
    c = count(config)
    return batch * (c.state_bytes + size / 2 * c.kv_bytes_per_token * length)


def working(config: MiniMaxConfig, length: int, size: int, pieces: bool) -> float:
    """About the bytes that a prefill works in: the widest of what a token is turned into, in a piece; and keys."""
    token = 6 * config.hidden_size + 8 * config.num_attention_heads * config.head_dim
    return size * token * (min(length, PIECE) if pieces else length) + remembered(config, 1, length, size)
