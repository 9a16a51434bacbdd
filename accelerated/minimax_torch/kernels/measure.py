"""How exact and how fast a kernel is on this machine's GPU: `python -m minimax_torch.kernels.measure`.

One sequence of 8,192 tokens, 64 heads of 128 channels in bfloat16, slopes of layer 3 of 80: the twin's op in chunks of
256 and the kernel with each way to multiply, each with its time (the median of what fits in a tenth of a second) and
the relative error of the state, which is float32, against float64. Then the segments, forward and with the backward,
beside fla's `chunk_simple_gla` where that is installed, and the time in which the least that must be moved is copied.
"""

import importlib.util
from typing import Any

import torch
import triton
from minimax_numpy.check import check_op

from .. import ops
from . import segments
from .lightning import PRECISIONS, lightning_attention


def main() -> None:
    """Print the table."""
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU here; on the CPU the interpreter shows what a kernel computes, not how fast.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}")
    x = torch.Generator("cuda").manual_seed(0)
    q, k, v = (torch.randn(1, 64, 8192, 128, generator=x, device="cuda") for _ in range(3))
    q, k, v = (ops.silu(x).bfloat16() for x in (q, k, v))
    slopes = ops.decay_slopes(64, 3, 80).cuda()
    exact = ops.lightning_attention_chunked(q.double(), k.double(), v.double(), slopes)[1]
    ways = {"op": lambda *x: ops.lightning_attention_chunked(*x, chunk=256)}
    ways |= {name: lambda *x, name=name: lightning_attention(*x, precision=name) for name in PRECISIONS}
    print(f"{'':8}{'ms':>8}{'error':>10}  check_op, float32")
    for name, way in ways.items():
        error = (way(q, k, v, slopes)[1] - exact).norm() / exact.norm()
        time = triton.testing.do_bench(lambda way=way: way(q, k, v, slopes), rep=100, return_mode="median")
        report = check_op("lightning_attention_chunked", on_gpu(way), dtype="float32")
        print(f"{name:8}{time:8.2f}{error:10.0e}  {'passes' if report.ok else 'is wrong'}")
    beside_fla(q, k, v, slopes, exact)


def beside_fla(q, k, v, slopes, exact) -> None:
    """Print the segments' times and errors beside fla's, and the floor: 4 units forward, 11 with the backward."""
    unit = torch.empty_like(q)
    floor = triton.testing.do_bench(lambda: unit.copy_(q), return_mode="median") / 2  # a copy moves two units
    print(f"\n{'':10}{'forward':>10}{'and back':>10}{'error':>10}\n{'floor':10}{4 * floor:10.3f}{11 * floor:10.3f}")
    ways: dict[str, Any] = {"segments": lambda q, k, v: segments.lightning_attention(q, k, v, slopes)}
    if importlib.util.find_spec("fla") is None:
        print("fla       is not installed: pip install fla-core")
    else:
        from fla.ops.simple_gla import chunk_simple_gla

        ways["fla"] = lambda *x: chunk_simple_gla(
            *(y.transpose(1, 2) for y in x), g_gamma=-slopes.float(), scale=1.0, output_final_state=True
        )
    for name, way in ways.items():
        x = [y.detach().requires_grad_() for y in (q, k, v)]

        def forward(way=way):
            with torch.no_grad():
                return way(q, k, v)

        def both(way=way, x=x):
            out = way(*x)[0]
            torch.autograd.grad(out, x, torch.ones_like(out))

        error = (forward()[1] - exact).norm() / exact.norm()
        times = (triton.testing.do_bench(f, rep=100, return_mode="median") for f in (forward, both))
        print(f"{name:10}{''.join(f'{time:10.3f}' for time in times)}{error:10.0e}")


def on_gpu(function):
    """A function that is handed tensors of the CPU."""

    def moved(q, k, v, slopes, state=None):
        out, state = function(*(x if x is None else x.cuda() for x in (q, k, v, slopes, state)))
        return out.cpu(), state.cpu()

    return moved


if __name__ == "__main__":
    main()
