"""How exact and how fast a kernel is on this machine's GPU: `python -m minimax_torch.kernels.measure`.

One sequence of 8,192 tokens, 64 heads of 128 channels in bfloat16, slopes of layer 3 of 80: the twin's op in chunks of
256 and the kernel with each way to multiply, each with its time (the median of what fits in a tenth of a second) and
the relative error of the state, which is float32, against float64.
"""

import torch
import triton
from minimax_numpy.check import check_op

from .. import ops
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


def on_gpu(function):
    """A function that is handed tensors of the CPU."""

    def moved(q, k, v, slopes, state=None):
        out, state = function(*(x if x is None else x.cuda() for x in (q, k, v, slopes, state)))
        return out.cpu(), state.cpu()

    return moved


if __name__ == "__main__":
    main()
