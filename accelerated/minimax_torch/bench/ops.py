"""`minimax-twin bench ops`: lightning attention beside softmax attention, its rivals and its own other forms; experts.

On a GPU the shape is the true one: 64 heads of 128 channels, slopes of layer 3 of 80. Floors are the least traffic:
q, k, v read and o written once (4 *units* of T · H · d numbers), with the backward 7 more; a decode step reads and
writes the state. Errors are against float64, some heads at a time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops as twin
from ..kernels import choose, chunks
from .contest import Machine, Row, compete, fits, has_fla, lengths_of, machine_of, noting, off
from .models import masked_experts
from .tell import finish, table

FORWARD, BOTH = "forward", "forward + backward"


class Shape(NamedTuple):
    """Heads, channels of one, and the layer whose slopes they have, of how many."""

    heads: int
    width: int
    layer: int
    layers: int

    def slopes(self, machine: Machine) -> Tensor:
        return twin.decay_slopes(self.heads, self.layer, self.layers).to(machine.device)


def ops(options: Any) -> int:
    """Run the contests and print them."""
    machine = machine_of(options)
    gpu, small = machine.on_gpu, options.small
    shape = Shape(64, 128, 3, 80) if gpu and not small else Shape(2, 16 if small else 64, 1, 8)
    usual = (64, 128) if small else (2048, 8192, 32_768, 131_072, 524_288, 1_048_576)
    lengths = lengths_of(options, usual if gpu or small else (4096, 16_384, 65_536, 262_144, 1_048_576))
    print(f"{machine}\n{shape.heads} heads of {shape.width}, slopes of layer {shape.layer} of {shape.layers}")
    rows: list[Row] = []

    def tell(new: list[Row], first: str) -> None:
        rows.extend(new)
        print(table(new, first), flush=True)

    for contest in (FORWARD, BOTH):
        known: dict[str, Row] = {}
        for length in lengths:
            new = attention(machine, shape, contest, length, options.repeat, known)
            tell(new, "lightning")
            known |= {row.contestant: row for row in new}
    for batch in (1, 8) if small else (1, 8, 32, 64, 256) if gpu else (1,):
        for length in lengths if batch == 1 else lengths[:1]:
            tell(one_token(machine, shape, length, batch, options.repeat), "lightning")
    sizes = (32, 32, 4) if small else (6144, 9216, 8) if gpu else (512, 1024, 8)
    for contest in (f"experts, {FORWARD}", f"experts, {BOTH}"):
        for tokens in (1, 8, 64) if small else (1, 8, 1024, 4096, 16_384) if gpu else (1, 8, 1024, 4096):
            tell(experts(machine, contest, tokens, *sizes, options.repeat), "sorted")
    each = [
        (r.length, r.seconds / r.length)
        for r in rows
        if (r.contest, r.contestant) == (FORWARD, "lightning") and r.seconds
    ]
    if len(each) > 1:
        times = [time for _, time in each]
        print(f"\nlightning, time a token from {each[0][0]:,} to {each[-1][0]:,}: {min(times) * 1e6:.3g} to "
              f"{max(times) * 1e6:.3g} µs, {max(times) / min(times) - 1:.0%} apart")  # fmt: skip
    return finish(rows, machine, options, "lightning", heads=shape.heads, width=shape.width)


# --- A whole sequence -----------------------------------------------------------------------------------------------


def drawn(machine: Machine, shape: Shape, length: int, batch: int = 1, many: int = 3) -> list[Tensor]:
    """q, k, v as a projection leaves them, (B, T, H, d) seen as (B, H, T, d), after SiLU; fourth, a gradient of out."""
    made, size = machine.generator(), (batch, length, shape.heads, shape.width)
    found = []
    for i in range(many):
        x = torch.empty(size, dtype=machine.dtype, device=machine.device).normal_(generator=made)
        found.append((x if i == 3 else F.silu(x, inplace=True)).transpose(1, 2))
    return found


def chunked(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """As a layer calls it."""
    return twin.lightning_attention_chunked(q, k, v, slopes)


def as_written(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """The op's own body."""
    with choose.plain():
        return twin.lightning_attention_chunked(q, k, v, slopes)


def fla(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """The rival, which has its heads after its tokens."""
    from fla.ops.simple_gla import chunk_simple_gla

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, state = chunk_simple_gla(q, k, v, g_gamma=-slopes.float(), scale=1.0, output_final_state=True)
    return out.transpose(1, 2), state


def softmax(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> tuple[Tensor]:
    """The yardstick: causal softmax attention, fused."""
    return (F.scaled_dot_product_attention(q, k, v, is_causal=True),)


class Form(NamedTuple):
    """A way to compute attention, and the longest text that it is shown on a CPU and on a GPU: 0, none."""

    call: Callable
    cpu: int = 1 << 40
    gpu: int = 1 << 40
    power: int = 1  # of the length, in time


FORMS = {
    "lightning": Form(chunked),
    "lightning, plain PyTorch": Form(chunks.lightning_attention, cpu=0),  # which on a CPU is what is chosen
    "lightning, as written": Form(as_written, 1 << 18, 1 << 17),
    "lightning, recurrent": Form(twin.lightning_attention_recurrent, 16_384, 2048),
    "lightning, direct": Form(twin.lightning_attention_direct, 4096, 2048, 2),
    "fla": Form(fla),
    "softmax, SDPA": Form(softmax, 1 << 18, power=2),
}


def attention(
    machine: Machine, shape: Shape, contest: str, length: int, repeat: int, known: dict[str, Row]
) -> list[Row]:
    """Every form at one length; ``known`` are the rows of the length before."""
    backward = contest == BOTH
    unit = length * shape.heads * shape.width * machine.dtype.itemsize
    rows, runs = list[Row](), []
    inputs: list[Tensor] = []
    for name, form in FORMS.items():
        longest = form.gpu if machine.on_gpu else form.cpu
        if longest == 0:
            continue
        row = Row(contest, name, length, floor=machine.moving((11 if backward else 4) * unit))
        row.needed = (8 if backward else 5) * unit if machine.on_gpu else 0
        rows.append(row)
        last = known.get(name)
        if length > longest:
            row.note = f"not run beyond {longest:,} tokens"
        elif form.call is fla and (why := no_fla(machine)):
            row.note = why
        elif last and last.seconds and last.seconds * (length / last.length) ** form.power > 2 * machine.patience:
            row.note = "not run: it would take too long"
        elif fits(row, machine) and not inputs:
            with noting(row, machine):
                inputs = drawn(machine, shape, length, many=4 if backward else 3)
        if row.note is None and inputs:
            run = partial(step, form.call, inputs, shape.slopes(machine), backward)
            with noting(row, machine):
                if form.call is not softmax:
                    judge(row, run, inputs, shape.slopes(machine), backward)
                runs.append((row, run))
    compete([row for row, _ in runs], [run for _, run in runs], repeat, machine)
    return rows


def step(form: Callable, inputs: Sequence[Tensor], slopes: Tensor, backward: bool) -> list[Tensor]:
    """What a form gives, out and state; or the gradients of q, k, v, where one of out flows back."""
    qkv = [x.detach().requires_grad_(backward) for x in inputs[:3]]
    with torch.set_grad_enabled(backward):
        found = form(*qkv, slopes)
        return list(torch.autograd.grad(found[0], qkv, inputs[3])) if backward else list(found)


def judge(row: Row, run: Callable, inputs: Sequence[Tensor], slopes: Tensor, backward: bool) -> None:
    """How far off it is, and whether it gives the same bits twice."""
    got = run()
    row.same = all(torch.equal(a, b) for a, b in zip(got, run(), strict=True))
    squares = torch.zeros(len(got), 2, dtype=torch.float64)
    together = 8 if row.length <= 1 << 18 else 2  # heads: float64 takes much memory
    for h in range(0, inputs[0].shape[1], together):
        part = slice(h, h + together)
        exact = step(chunked, [x[:, part].double() for x in inputs], slopes[part], backward)
        for i, want in enumerate(exact):
            difference = (got[i][:, part].double() - want).square().sum()
            squares[i] += torch.stack([difference, want.square().sum()]).cpu()
    if backward:
        row.error = float((squares[:, 0].sum() / squares[:, 1].sum()).sqrt())
    else:
        row.error, row.state_error = (squares[:, 0] / squares[:, 1]).sqrt().tolist()


def no_fla(machine: Machine) -> str | None:
    """Why fla is not timed here, if so."""
    if not has_fla():
        return "absent: pip install fla-core brings it"
    return None if machine.on_gpu else "absent: its kernels need a GPU"


# --- A token more ---------------------------------------------------------------------------------------------------


def one_token(machine: Machine, shape: Shape, length: int, batch: int, repeat: int) -> list[Row]:
    """A token after that many: a state of one size, or all keys and values.

    Layers take their turn, each with a state of its own, so that a GPU's L2 cache does not hold them; there they are
    one CUDA graph.
    """
    H, d, layers = shape.heads, shape.width, max(4, 64 // batch) if machine.on_gpu else 16
    kept = 2 * batch * H * d * length * machine.dtype.itemsize
    states = 4 * batch * H * d * d
    lightning, rival = (
        Row("decode", name, length, batch, floor=machine.moving(2 * states), needed=3 * layers * states)
        for name in ("lightning", "fla")
    )
    attend = Row("decode", "softmax, SDPA", length, batch, floor=machine.moving(kept), needed=kept)
    rival.note = no_fla(machine)
    runs = []
    slopes, (q, k, v) = shape.slopes(machine), drawn(machine, shape, 1, batch)
    for row, form in ((lightning, in_place), (rival, fla_step)):
        with noting(row, machine), torch.no_grad():
            if fits(row, machine):
                held = torch.empty(layers, batch, H, d, d, device=machine.device).normal_(
                    generator=machine.generator(1)
                )
                judge_step(row, partial(form, q, k, v, slopes), (q, k, v), slopes, held[0])
                steps = partial(each_of, partial(form, q, k, v, slopes), held)
                runs.append((row, in_graph(machine, steps)))
    with noting(attend, machine):
        if fits(attend, machine):
            keys = torch.empty(2, batch, H, length, d, dtype=machine.dtype, device=machine.device)
            keys.normal_(generator=machine.generator(2))
            last = keys[0, :, :, -1:]
            run = in_graph(machine, lambda: [F.scaled_dot_product_attention(last, *keys) for _ in range(layers)])
            runs.append((attend, run))
    compete([row for row, _ in runs], [run for _, run in runs], repeat, machine, layers)
    return [lightning, rival, attend]


def each_of(form: Callable, states: Tensor) -> list[Any]:
    """A step of every layer, in turn; all results are kept, so that none is written over the other."""
    return [form(S) for S in states]


def in_place(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """A step whose state is written over, by the kernel where there is one."""
    kernel: Any = choose.lightning(q, k, v, state, 1)
    if q.is_cuda and getattr(kernel, "__name__", "") == "lightning_step":
        return kernel(q, k, v, slopes, state, into=state)
    out, new = twin.lightning_attention_chunked(q, k, v, slopes, state)
    return out, state.copy_(new)


def fla_step(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The rival's step; its state is a new one."""
    from fla.ops.simple_gla import fused_recurrent_simple_gla

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, state = fused_recurrent_simple_gla(
        q, k, v, g_gamma=-slopes.float(), scale=1.0, initial_state=state, output_final_state=True
    )
    return out.transpose(1, 2), state


def judge_step(row: Row, form: Callable, qkv: Sequence[Tensor], slopes: Tensor, state: Tensor) -> None:
    """How far off a step is, and whether it gives the same bits twice."""
    q, k, v = (x.double() for x in qkv)
    want = twin.lightning_attention_recurrent(q, k, v, slopes, state.double())
    got, again = form(state.clone()), form(state.clone())
    row.error, row.state_error = (off(x, y) for x, y in zip(got, want, strict=True))
    row.same = all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


def in_graph(machine: Machine, run: Callable[[], Any]) -> Callable[[], Any]:
    """The same work recorded once, where the device can."""
    run = torch.no_grad()(run)
    if not machine.on_gpu:
        return run
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


# --- Experts --------------------------------------------------------------------------------------------------------


def experts(machine: Machine, contest: str, tokens: int, D: int, width: int, E: int, repeat: int) -> list[Row]:
    """Tokens through the experts, two of them each: sorted by token once, or found by a mask for each expert."""
    backward, K, size = BOTH in contest, 2, machine.dtype.itemsize
    made, device, numbers = machine.generator(), machine.device, 3 * E * D * width
    forms: dict[str, Callable] = {"sorted": twin.mix_experts, "a mask an expert": masked_experts}
    needed = numbers * (60 if backward else 20) if machine.on_gpu else 0  # most of it for float64
    rows = [Row(contest, name, tokens, needed=needed) for name in forms]
    if not all([fits(row, machine) for row in rows]):
        return rows
    x, weight = (torch.randn(1, tokens, D, generator=made, device=device).to(machine.dtype) for _ in range(2))
    shapes = ((E, 2 * width, D), (E, D, width))
    stacks = [torch.randn(s, generator=made, device=device).mul_(D**-0.5).to(machine.dtype) for s in shapes]
    weights, indices = twin.route(torch.randn(1, tokens, E, generator=made, device=device), K)

    def run(form: Callable, *asked: Tensor) -> list[Tensor]:
        asked = tuple(y.detach().requires_grad_(backward) for y in asked)
        with torch.set_grad_enabled(backward):
            out = form(asked[0], weights.to(asked[0].dtype), indices, *asked[1:])
            return list(torch.autograd.grad(out, asked, weight.to(out.dtype))) if backward else [out]

    least = machine.moving(len(indices.unique()) * numbers // E * size)
    want = run(twin.mix_experts, *(y.double() for y in (x, *stacks)))
    runs = [partial(run, form, x, *stacks) for form in forms.values()]
    for row, go in zip(rows, runs, strict=True):
        row.floor = (3 if backward else 1) * max(6 * tokens * K * D * width / machine.matmul, least)
        with noting(row, machine):
            row.error = off(go(), want)
    del want
    compete(rows, runs, repeat, machine)
    return rows
