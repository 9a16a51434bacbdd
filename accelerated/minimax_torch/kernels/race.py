"""How close to the GPU's floor the fast kernels come, beside fla's: `python -m minimax_torch.kernels.race`.

First the ceilings of this card (copy bandwidth, bfloat16 matmul). Then, for one sequence of 64 heads of 128 channels in
bfloat16, slopes of layer 3 of 80: forward over a few ways to cut it, forward and backward, and decode. A floor is the
least traffic over the copy bandwidth: forward q, k, v in and out out (4 units), backward 7 more, decode the state in
and out. Times are medians. Errors are relative, against float64; *out* before it is rounded to bfloat16, which alone
costs 1.7e-3. A way whose error is out of bounds is said to be wrong and is not timed.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import triton
from torch import Tensor

from .. import ops
from .chunks import Chunked
from .decode import lightning_step
from .segments import Segmented, Tiles, Walks, lightning_attention, tiles_for

WIDE = Tiles(warps=8, columns=128)
FORWARD = {
    "E64 2+2": Tiles(),
    "E64 1+2": Tiles(read=1),
    "E64 1+1": Tiles(read=1, written=1),
    "E64 1+2 s3": Tiles(read=1, stages=3),
    "E64 2+2 w8": Tiles(warps=8),
    "E32 2+2": Tiles(columns=32),
    "E32 1+2": Tiles(columns=32, read=1),
    "E128 1+2 w8 s3": WIDE._replace(read=1, stages=3),
    "E64 C128 1+2 w8": Tiles(chunk=128, warps=8, read=1),
}
BOTH = ("E64 2+2", "E64 1+2", "E32 1+2", "E64 C128 1+2 w8")
BATCHES = (1, 8, 32, 64, 256)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--only", nargs="+", choices=["forward", "backward", "decode", "float32"])
    parser.add_argument("--json", type=Path, help="write every line's numbers here, too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU here; tests/equivalence/test_segments.py shows what the kernels compute.")
    parts = options.only or ["forward", "backward", "decode", "float32"]
    lines: list[dict] = []
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}")
    copy, matmul = ceilings()
    print(f"copy {copy / 1e12:.2f} TB/s, matmul {matmul / 1e12:.0f} TFLOP/s")
    lines.append({"card": torch.cuda.get_device_name(), "copy": copy, "matmul": matmul})
    for T in options.lengths:
        if "forward" in parts:
            lines += forward(T, copy)
        if "backward" in parts:
            lines += backward(T, copy)
    if "decode" in parts:
        lines += decode(copy)
    if "float32" in parts:
        lines += float32()
    if options.json:
        options.json.write_text(json.dumps(lines, indent=1), encoding="utf-8")


def ceilings() -> tuple[float, float]:
    """Bytes a second of a large copy, read and written; operations a second of a large bfloat16 product."""
    x, y = torch.empty(2, 2**30, dtype=torch.uint8, device="cuda").random_()
    a, b = torch.randn(2, 8192, 8192, device="cuda").bfloat16()
    return 2 * x.numel() / seconds(lambda: y.copy_(x)), 2 * 8192**3 / seconds(lambda: a @ b)


def seconds(function: Callable, rep: int = 60) -> float:
    """Median time of a call."""
    return triton.testing.do_bench(function, warmup=15, rep=rep, return_mode="median") / 1e3


def drawn(T: int, B: int = 1, dtype: torch.dtype = torch.bfloat16) -> tuple[list[Tensor], Tensor, Tensor]:
    """q, k, v as the projection leaves them, (B, T, H, d) seen as (B, H, T, d); slopes; and a gradient."""
    x = torch.Generator("cuda").manual_seed(0)
    q, k, v, do = (torch.randn(B, T, 64, 128, generator=x, device="cuda").transpose(1, 2) for _ in range(4))
    qkv = [ops.silu(x).to(dtype) for x in (q, k, v)]
    return qkv, ops.decay_slopes(64, 3, 80, device=torch.device("cuda")), do.to(dtype)


def distance(got: Tensor, want: Tensor) -> float:
    """Relative error, in float64, a head at a time."""
    pairs = list(zip(got.unbind(1), want.unbind(1), strict=True))
    return float((sum((a.double() - b).square().sum() for a, b in pairs) / want.square().sum()).sqrt())


def exact(qkv: list[Tensor], slopes: Tensor, do: Tensor | None = None) -> list[Tensor]:
    """Out, state and, where something flows back, gradients in float64; eight heads at a time, for the memory."""
    found = []
    for h in range(0, 64, 8):
        inputs = [x[:, h : h + 8].double().requires_grad_(do is not None) for x in qkv]
        B, H, _, d = inputs[0].shape
        start = torch.zeros(B, H, d, d, dtype=torch.float64, device="cuda")
        part = list(Chunked.apply(*inputs, start, slopes[h : h + 8], None, 128))
        if do is not None:
            part = [x.detach() for x in part] + list(torch.autograd.grad(part[0], inputs, do[:, h : h + 8].double()))
        found.append(part)
    return [torch.cat(parts, dim=1) for parts in zip(*found, strict=True)]


def unrounded(qkv: list[Tensor], slopes: Tensor, tiles: Tiles) -> tuple[Tensor, Tensor | None]:
    """Out as the kernel has it before the last rounding, and the state."""
    q, k, v = qkv
    walks = Walks(q, v, slopes, None, tiles)
    walks.stored = walks.returned = torch.float32
    before = walks.begins(k, v, None)
    return walks.walk(q, k, v, before)


def forward(T: int, copy: float) -> list[dict]:
    """Every way, in one pass, as the kernels choose, and in shorter segments."""
    qkv, slopes, _ = drawn(T)
    floor = 4 * qkv[0].numel() * 2 / copy
    want = exact(qkv, slopes)
    print(f"\nforward, T = {T}: floor {floor * 1e3:.3f} ms")
    print(f"{'':18}{'segment':>9}{'ms':>9}{'x floor':>9}{'out':>9}{'state':>9}  compiled in")
    lines = []
    for name, tiles in FORWARD.items():
        for segment in dict.fromkeys((T, T // 2, T // 4, 2048)):
            cut = tiles._replace(segment=segment)
            line = {"what": "forward", "T": T, "way": name, "segment": segment}
            lines.append(measured(line, floor, lambda cut=cut: unrounded(qkv, slopes, cut), want,
                                  lambda cut=cut: Segmented.apply(*qkv, None, slopes, None, cut)))  # fmt: skip
    line = {"what": "forward", "T": T, "way": "as chosen", "segment": None}
    auto = tiles_for(qkv[0], qkv[2])
    lines.append(measured(line, floor, lambda: unrounded(qkv, slopes, auto), want,
                          lambda: chosen(slopes, *qkv)))  # fmt: skip
    if rival := fla():
        line = {"what": "forward", "T": T, "way": "fla simple_gla", "segment": None}
        lines.append(measured(line, floor, lambda: rival(qkv, slopes), want))
    first, second = chosen(slopes, *qkv), chosen(slopes, *qkv)
    print("the same bits twice:", all(torch.equal(a, b) for a, b in zip(first, second, strict=True)))
    return lines


@torch.no_grad()
def measured(line: dict, floor: float, answer: Callable, want: list[Tensor], timed: Callable | None = None) -> dict:
    """Check, then time, then print; what fails says so."""
    began = time.perf_counter()
    try:
        errors = [distance(a, b) for a, b in zip(answer(), want, strict=False)]
        torch.cuda.synchronize()
        line |= {"out": errors[0], "state": errors[1]}
        if not max(errors) < 2e-2:
            print(f"{line['way']:18}{line['segment'] or '':>9}  is wrong: {errors}")
            return line | {"wrong": True}
        (timed or answer)()
        torch.cuda.synchronize()
        compiled = time.perf_counter() - began
        line["seconds"] = seconds(timed or answer)
    except Exception as error:  # a way that does not compile or fit is a line, not the end
        print(f"{line['way']:18}{line['segment'] or '':>9}  fails: {str(error).splitlines()[0][:80]}")
        return line | {"fails": str(error)[:400]}
    ratio = line["seconds"] / floor
    print(f"{line['way']:18}{line['segment'] or '':>9}{line['seconds'] * 1e3:9.3f}{ratio:9.2f}"
          f"{errors[0]:9.1e}{errors[1]:9.1e}{compiled:9.1f} s", flush=True)  # fmt: skip
    return line | {"floors": ratio}


def chosen(slopes: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Out and state, cut as the kernels choose."""
    return lightning_attention(q, k, v, slopes)


def segmented(slopes: Tensor, tiles: Tiles, *qkv: Tensor) -> Tensor:
    """Out, cut in a given way."""
    return Segmented.apply(*qkv, None, slopes, None, tiles)[0]


def backward(T: int, copy: float) -> list[dict]:
    """Forward and backward together, and how far off each gradient is."""
    qkv, slopes, do = drawn(T)
    floor = 11 * qkv[0].numel() * 2 / copy
    _, _, *want = exact(qkv, slopes, do)
    print(f"\nforward and backward, T = {T}: floor {floor * 1e3:.3f} ms")
    print(f"{'':18}{'segment':>9}{'ms':>9}{'x floor':>9}{'dq':>9}{'dk':>9}{'dv':>9}  peak above inputs")
    ways: dict[tuple[str, int | None], Callable] = {
        (name, segment): partial(segmented, slopes, FORWARD[name]._replace(segment=segment))
        for name in BOTH
        for segment in (T, T // 2)
    }
    ways["as chosen", None] = lambda *x: chosen(slopes, *x)[0]
    if rival := fla():
        ways["fla simple_gla", None] = lambda *x: rival(x, slopes)[0]
    lines = []
    for (name, segment), way in ways.items():
        inputs = [x.detach().requires_grad_() for x in qkv]
        line: dict = {"what": "forward and backward", "T": T, "way": name, "segment": segment}
        try:
            run = lambda way=way, inputs=inputs: torch.autograd.grad(way(*inputs), inputs, do)  # noqa: E731
            errors = [distance(a, b) for a, b in zip(run(), want, strict=True)]
            if not max(errors) < 2e-2:
                print(f"{name:18}{segment or '':>9}  is wrong: {errors}")
                continue
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            run()
            peak = torch.cuda.max_memory_allocated() - held
            line |= {"seconds": seconds(run), "dq": errors[0], "dk": errors[1], "dv": errors[2], "peak": peak}
        except Exception as error:
            print(f"{name:18}{segment or '':>9}  fails: {str(error).splitlines()[0][:80]}")
            continue
        line["floors"] = line["seconds"] / floor
        print(f"{name:18}{segment or '':>9}{line['seconds'] * 1e3:9.3f}{line['floors']:9.2f}"
              f"{errors[0]:9.1e}{errors[1]:9.1e}{errors[2]:9.1e}{peak / 2**30:9.2f} GiB", flush=True)  # fmt: skip
        lines.append(line)
    return lines


def decode(copy: float) -> list[dict]:
    """One token more, the state written over itself, inside a CUDA graph that takes many layers in turn."""
    print("\ndecode, a layer's step inside a graph")
    print(f"{'batch':>7}{'columns':>9}{'warps':>7}{'us':>9}{'x floor':>9}{'error':>9}")
    lines = []
    for B in BATCHES:
        (q, k, v), slopes, _ = drawn(1, B)
        layers = max(2, 64 // B)  # their states together are far larger than the cache
        states = torch.randn(layers, B, 64, 128, 128, device="cuda")
        floor = 2 * states[0].numel() * 4 / copy
        want = ops.lightning_attention_recurrent(q.double(), k.double(), v.double(), slopes, states[0].double())
        for columns, warps in ((16, 4), (32, 4), (32, 8), (64, 4)):
            step = partial(lightning_step, q, k, v, slopes, columns=columns, warps=warps)
            error = distance(step(states[0])[1], want[1])
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for S in states:
                    step(S, into=S)
            took = seconds(graph.replay) / layers
            lines.append({"what": "decode", "B": B, "columns": columns, "warps": warps, "seconds": took,
                          "floors": took / floor, "state": error})  # fmt: skip
            print(f"{B:7}{columns:9}{warps:7}{took * 1e6:9.1f}{took / floor:9.2f}{error:9.1e}", flush=True)
            del graph
        del states, want
    return lines


def float32() -> list[dict]:
    """In float32: three TF32 products each, beside the same chunks in plain PyTorch."""
    qkv, slopes, _ = drawn(8192, dtype=torch.float32)
    want = exact(qkv, slopes)
    floor = float("nan")
    print("\nforward in float32, T = 8192")
    plain = lambda: Chunked.apply(  # noqa: E731
        *qkv, torch.zeros(1, 64, 128, 128, device="cuda"), slopes, None, 128
    )
    auto = tiles_for(qkv[0], qkv[2])
    ways = {
        "as chosen": lambda: chosen(slopes, *qkv),
        "4 segments": lambda: Segmented.apply(*qkv, None, slopes, None, auto._replace(segment=2048)),
        "C32 E32": lambda: Segmented.apply(*qkv, None, slopes, None, auto._replace(chunk=32)),
        "plain PyTorch": plain,
    }
    base = {"what": "float32", "T": 8192, "segment": None}
    return [measured(base | {"way": name}, floor, way, want) for name, way in ways.items()]


def fla() -> Callable | None:
    """The rival, on our arrays; None where it is not installed."""
    try:
        from fla.ops.simple_gla import chunk_simple_gla
    except Exception as error:
        print(f"fla is not here: {str(error).splitlines()[0][:100]}")
        return None

    def run(qkv, slopes: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (x.transpose(1, 2) for x in qkv)
        out, state = chunk_simple_gla(q, k, v, g_gamma=-slopes.float(), scale=1.0, output_final_state=True)
        return out.transpose(1, 2), state

    return run


if __name__ == "__main__":
    main()
