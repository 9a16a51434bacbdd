"""`minimax-twin bench models` and `layers`: prefill, decode and a training step, beside every rival there is.

All contestants share one set of random weights. ``layers`` are models of one layer, lightning or softmax, attention
and experts: on a GPU of the true size.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from minimax_numpy.config import LIGHTNING, SOFTMAX, MiniMaxConfig
from minimax_numpy.counts import count
from torch import Tensor

from ..kernels import choose
from ..model import MiniMaxForCausalLM
from . import MEDIUM
from .contest import Machine, Row, compete, fits, lengths_of, machine_of, noting, off, shape_of
from .contestants import PIECE, Ours, Slotted, Transformers, built, eager, with_weights
from .tell import finish, table

NEW = 16  # tokens decoded a call
LONGEST_EXACT = 16_384  # tokens that float64 is asked about
SMALL = dataclasses.replace(
    MEDIUM, layer_types=(LIGHTNING, SOFTMAX), vocab_size=64, hidden_size=32, num_attention_heads=2,
    num_key_value_heads=2, head_dim=16, rotary_dim=16, intermediate_size=32, num_local_experts=4,
)  # fmt: skip
TRUE = dataclasses.replace(MiniMaxConfig.text_01(), vocab_size=1024, slope_rule="transformers")


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
        if not fits(row, machine):
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
    plainer = [Ours("ours, as written", model, choose.plain), Ours("ours, eager form", model, eager)]
    return [Ours("ours", model), *transformers_on(model, machine, absent), *plainer]


def transformers_on(model: MiniMaxForCausalLM, machine: Machine, absent: dict[str, str]) -> list[Any]:
    """The rival as it comes, and on a GPU with its eager experts, too."""
    row, found = Row("", "transformers", 0), list[Any]()
    with noting(row, machine):
        found.append(Transformers(model))
        if machine.on_gpu:
            found.append(Transformers(model, "eager"))
    if row.note:
        absent["transformers"] = row.note
    return found


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


def left_out(contestant: Any, row: Row, longest: int, machine: Machine) -> bool:
    """Whether a contestant is not run, which its row then says; the eager form takes a step of Python a token."""
    if getattr(contestant, "form", None) is eager and row.length > longest:
        row.note = f"not run beyond {longest:,} tokens: a step of Python for each"
    if row.flops / machine.matmul > 15 * machine.patience:
        row.note = f"not run: at the machine's own rate it takes {row.flops / machine.matmul:.0f} s"
    return row.note is not None


def prefill(found: Sequence[Any], exact: Ours | None, ids: Tensor, machine: Machine, repeat: int) -> list[Row]:
    """A prompt, and the logits of its last token."""
    T, rows, runs, want = ids.shape[1], [], [], None
    if exact is not None and T <= LONGEST_EXACT:
        want = exact.prefill(ids)
    config = next(c.model.config for c in found if isinstance(c, Ours))
    for contestant in found:
        row = Row("prefill", contestant.name, T, flops=flops(config, T))
        row.needed = working(config, T, machine.dtype.itemsize, isinstance(contestant, Ours))
        rows.append(row)
        if left_out(contestant, row, 2048 if machine.on_gpu else 4096, machine) or not fits(row, machine):
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
        row = Row("decode", contestant.name, T, B, nbytes=nbytes)
        row.needed = remembered(config, B, T, machine.dtype.itemsize)
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
    least = 3 * (flops(config, T) + 2 * (T - 1) * config.hidden_size * config.vocab_size)
    want = exact.train(ids)
    rows, runs = [], []
    for contestant in found:
        row = Row("training step", contestant.name, T, flops=least)
        rows.append(row)
        if left_out(contestant, row, 512, machine) or not fits(row, machine):  # autograd would keep a state a token
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


def bytes_read(config: MiniMaxConfig, batch: int, length: int, size: int = 4, int8: bool = False) -> int:
    """Bytes of one decode step: every weight that some row needs once, states read and written, keys and values."""
    c = count(config)
    E, L = config.num_local_experts, config.num_hidden_layers
    hit = E * (1 - (1 - config.num_experts_per_tok / E) ** batch)  # experts, where each is as likely
    others = c.activated - L * config.num_experts_per_tok * c.expert
    kinds = config.layer_types
    narrow = L * hit * c.expert + c.lightning_layer * kinds.count(LIGHTNING) + c.softmax_layer * kinds.count(SOFTMAX)
    weights = size * (others + L * hit * c.expert + (c.head or c.embedding)) - (3 * narrow if int8 else 0)
    return int(weights + batch * (2 * c.state_bytes + size / 2 * c.kv_bytes_per_token * length))


def remembered(config: MiniMaxConfig, batch: int, length: int, size: int) -> int:
    """Bytes of states, keys and values."""
    c = count(config)
    return batch * (c.state_bytes + size * c.kv_bytes_per_token * length // 2)


def working(config: MiniMaxConfig, length: int, size: int, pieces: bool) -> int:
    """About the bytes that a prefill works in: the widest of what a token is turned into, in a piece; and keys."""
    token = 6 * config.hidden_size + 8 * config.num_attention_heads * config.head_dim
    return size * token * (min(length, PIECE) if pieces else length) + remembered(config, 1, length, size)
