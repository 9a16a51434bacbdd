"""`minimax-twin bench ops`: lightning attention beside softmax attention and its own other forms, and the experts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops as twin
from .contest import Row, ceilings, compete, finish, lengths_of, noting, off, reading, table
from .models import has_fla, masked_experts

HEADS, WIDTH = 2, 64
PATIENCE = 20.0  # seconds that one call of a rival may take, by its last length's time


def ops(options: Any) -> int:
    """Run the contests and print them."""
    lengths = lengths_of(options, (64, 128) if options.small else (4096, 16_384, 65_536, 262_144, 1_048_576))
    found = ceilings(256, 4, 3) if options.small else ceilings()
    print(f"float32, {torch.get_num_threads()} threads; {HEADS} heads of {WIDTH}, one sequence\nthis machine: {found}")
    rows: list[Row] = []
    for contest in ("forward", "forward + backward"):
        growth: dict[str, float] = {}
        for length in lengths:
            new = attention(contest, length, options.repeat, growth)
            rows += new
            print(table(new, "lightning"), flush=True)
            growth |= {row.contestant: row.seconds for row in new if row.seconds}
    for length in lengths:
        new = one_token(length, options.repeat)
        rows += new
        print(table(new, "lightning"), flush=True)
    sizes = (32, 32, 4, 2, (1, 8, 64)) if options.small else (512, 1024, 8, 2, (1, 8, 1024, 4096))
    for contest in ("experts, forward", "experts, forward + backward"):
        for tokens in sizes[-1]:
            new = experts(contest, tokens, *sizes[:-1], found, options.repeat)
            rows += new
            print(table(new, "sorted"), flush=True)
    mine = [r for r in rows if (r.contest, r.contestant) == ("forward", "lightning") and r.seconds]
    if len(mine) > 1:
        each = [r.seconds / r.length for r in mine if r.seconds]
        print(f"\nlightning, time a token from {mine[0].length:,} to {mine[-1].length:,}: "
              f"{min(each) * 1e6:.2f} to {max(each) * 1e6:.2f} µs, {max(each) / min(each) - 1:.0%} apart")  # fmt: skip
    return finish(rows, found, options, {"heads": HEADS, "width": WIDTH})


def drawn(length: int, gradients: bool = False) -> list[Tensor]:
    """q, k, v (1, H, T, d), as after SiLU."""
    made = torch.Generator().manual_seed(0)
    return [F.silu(torch.randn(1, HEADS, length, WIDTH, generator=made)).requires_grad_(gradients) for _ in range(3)]


def softmax(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> tuple[Tensor, None]:
    """The yardstick: causal softmax attention, fused."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True), None


def chunked(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """As a layer calls it."""
    return twin.lightning_attention_chunked(q, k, v, slopes)


FORMS: dict[str, tuple[Callable, int]] = {  # each, and the longest text that it is shown: what it keeps is large
    "lightning": (chunked, 1 << 40),
    "lightning, recurrent": (twin.lightning_attention_recurrent, 16_384),
    "lightning, direct": (twin.lightning_attention_direct, 4096),
    "softmax, SDPA": (softmax, 1 << 18),
}


def attention(contest: str, length: int, repeat: int, before: dict[str, float]) -> list[Row]:
    """Every form at one length. The floor is q, k, v read and o written once; back, those and five more."""
    backward = contest != "forward"
    inputs, slopes = drawn(length, backward), twin.decay_slopes(HEADS, 1, 8)
    weight = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    units = 11 if backward else 4
    rows, runs = [], []
    want = None
    if length <= 65_536:
        wide = [x.detach().double().requires_grad_(backward) for x in inputs]
        want = step(partial(chunked, slopes=slopes), wide, weight.double(), backward)
    for name, (form, longest) in FORMS.items():
        row = Row(contest, name, length, floor=reading(units * inputs[0].nbytes))
        rows.append(row)
        expected = before.get(name, 0) * 16  # a square, four times as long
        if length > longest or (form is softmax and expected > PATIENCE):
            row.note = "not run: too long or too large at this length"
            continue
        run = partial(step, partial(form, slopes=slopes), inputs, weight, backward)
        with noting(row):
            if want is not None and form is not softmax:
                row.error = off(run(), want)
            runs.append((row, run))
    compete([row for row, _ in runs], [run for _, run in runs], repeat)
    return [*rows, Row(contest, "fla", length, note=no_fla())]


def step(form: Callable, inputs: list[Tensor], weight: Tensor, backward: bool) -> list[Tensor]:
    """What a form gives, or the gradients of a weighted sum of it."""
    with torch.set_grad_enabled(backward):
        out, _ = form(*inputs)
        return list(torch.autograd.grad((out * weight).sum(), inputs)) if backward else [out]


def one_token(length: int, repeat: int) -> list[Row]:
    """A token after that many: a state of one size, or all keys and values."""
    q, k, v = drawn(length)
    slopes = twin.decay_slopes(HEADS, 1, 8)
    with torch.no_grad():
        state = chunked(q, k, v, slopes)[1]
    last = [x[:, :, -1:] for x in (q, k, v)]
    rows = [
        Row("decode", "lightning", length, floor=reading(2 * state.nbytes)),
        Row("decode", "softmax, SDPA", length, floor=reading(2 * k.nbytes)),
    ]

    @torch.no_grad()
    def lightning() -> None:
        for _ in range(50):
            twin.lightning_attention_chunked(last[0], last[1], last[2], slopes, state)

    @torch.no_grad()
    def attend() -> None:
        for _ in range(50):
            F.scaled_dot_product_attention(last[0], k, v)

    compete(rows, [lightning, attend], repeat, tokens=50)
    return rows


def experts(contest: str, tokens: int, D: int, width: int, E: int, K: int, found, repeat: int) -> list[Row]:
    """Tokens through the experts, sorted by token once, or found by a mask for each expert."""
    backward = "backward" in contest
    made = torch.Generator().manual_seed(0)
    x = torch.randn(1, tokens, D, generator=made)
    up, down = (torch.randn(s, generator=made) * D**-0.5 for s in ((E, 2 * width, D), (E, D, width)))
    weights, indices = twin.route(torch.randn(1, tokens, E, generator=made), K)
    weight = torch.randn(x.shape, generator=made)
    asked = [y.requires_grad_(backward) for y in (x, up, down)]
    arithmetic = (3 if backward else 1) * 6 * tokens * K * D * width / found.matmul
    hit = len(indices.unique())
    floor = max(arithmetic, (3 if backward else 1) * reading(hit * 3 * D * width * 4))

    def run(form: Callable, *y: Tensor) -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            out = form(y[0], weights.to(y[0].dtype), indices, y[1], y[2])
            return list(torch.autograd.grad((out * weight).sum(), y)) if backward else [out]

    want = run(twin.mix_experts, *(y.detach().double().requires_grad_(backward) for y in asked))
    forms = {"sorted": twin.mix_experts, "a mask an expert": masked_experts}
    rows = [Row(contest, name, tokens, floor=floor) for name in forms]
    runs = [partial(run, form, *asked) for form in forms.values()]
    for row, go in zip(rows, runs, strict=True):
        row.error = off(go(), want)
    compete(rows, runs, repeat)
    return rows


def no_fla() -> str:
    """Why fla is not timed here."""
    if not has_fla():
        return "absent: pip install flash-linear-attention brings it"
    return "absent: its kernels need a GPU"
