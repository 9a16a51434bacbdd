"""What `minimax-twin bench` measures. Ratios are of one run, taken in turn: machines are shared and noisy.

``prefill`` times the NumPy reference beside transformers on the same weights. ``loading`` reads a checkpoint in a
process of its own and compares the peak of its memory with what it keeps.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from minimax_numpy.check.targets import optional
from minimax_numpy.config import HYBRID, MiniMaxConfig
from minimax_numpy.model import MiniMaxForCausalLM
from minimax_numpy.shipped import TINY

MEDIUM = MiniMaxConfig.tiny(
    vocab_size=1024,
    hidden_size=512,
    layer_types=HYBRID,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=64,
    num_local_experts=8,
    intermediate_size=1024,
    rotary_dim=64,
    block_size=256,
    slope_rule="transformers",
    max_position_embeddings=1 << 20,
)
LOAD = """
import sys, {package} as package
def rss():
    with open("/proc/self/status") as f:
        return {{k: int(v.split()[0]) * 1024 for k, v in (l.split(":") for l in f if l.startswith(("VmRSS", "VmHWM")))}}
kind = sys.argv[3] or None
# a small one first: libraries load themselves lazily, too
package.MiniMaxForCausalLM.from_pretrained(sys.argv[2], quantization=kind)
before = rss()["VmRSS"]
model = package.MiniMaxForCausalLM.from_pretrained(sys.argv[1], quantization=kind)
after = rss()
kept = sum(x.nbytes for x in model.weights.values())
largest = max(x.nbytes for x in model.weights.values())
print(kept, largest, after["VmHWM"] - before)
"""


def main(options) -> int:
    """Run a measurement and print it."""
    if options.length < 2 or options.repeat < 1:
        raise ValueError(f"--length is {options.length} and --repeat {options.repeat}; at least 2 tokens and 1 run.")
    return {"prefill": prefill, "loading": loading}[options.what](options)


def prefill(options) -> int:
    """Tokens per second of the reference's prefill, float32, beside transformers' on the same weights."""
    transformers = optional("transformers", "hf")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    reference = MiniMaxForCausalLM(MEDIUM, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        peer = transformers.MiniMaxForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = np.random.default_rng(0).integers(0, MEDIUM.vocab_size, (1, options.length))

    def ours() -> np.ndarray:
        return reference(ids, logits_to_keep=1).logits

    @torch.no_grad()
    def theirs() -> np.ndarray:
        return peer(torch.from_numpy(ids), logits_to_keep=1, use_cache=False).logits.numpy()

    apart = float(np.abs(ours() - theirs()).max() / np.abs(ours()).max())  # also warms both up
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(options.repeat)]
    c = MEDIUM
    print(
        f"prefill of {options.length} tokens, float32, {torch.get_num_threads()} threads; "
        f"{c.num_hidden_layers} layers, D {c.hidden_size}, {c.num_attention_heads} × {c.head_dim} heads, "
        f"{c.num_local_experts} experts of {c.intermediate_size}; logits {apart:.1e} apart"
    )
    for name, column in (("minimax_numpy", 0), ("transformers", 1)):
        times = [pair[column] for pair in pairs]
        print(
            f"{name:<14} {options.length / median(times):8.0f} tokens/s   median of {len(times)}: {median(times):.2f} s"
        )
    print(f"minimax_numpy / transformers, pair by pair: {median(b / a for a, b in pairs):.2f} × its tokens per second")
    return 0


def seconds(function: Callable) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def loading(options) -> int:
    """Peak resident memory of loading a checkpoint, above what is kept, in units of its largest tensor."""
    if not os.path.exists("/proc/self/status"):
        raise OSError("Peak memory is read from /proc/self/status, which this system has not.")
    twin = optional("minimax_torch", "torch")
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(MEDIUM, vocab_size=100_000)  # an embedding that outweighs the libraries' own noise
        model = twin.MiniMaxForCausalLM.from_reference(MiniMaxForCausalLM(config), dtype=torch.bfloat16)
        model.save_pretrained(folder)
        stored = os.path.getsize(os.path.join(folder, "model.safetensors"))
        quantised = f", quantised to {options.quantization}" if options.quantization else ""
        print(
            f"a checkpoint of {stored / 2**20:.0f} MiB in bfloat16, read a tensor at a time{quantised}, "
            "in a process of its own"
        )
        for package in ("minimax_numpy", "minimax_torch"):
            code = LOAD.format(package=package)
            out = subprocess.run(
                [sys.executable, "-c", code, folder, str(TINY), options.quantization or ""],
                check=True,
                capture_output=True,
                text=True,
            )
            kept, largest, peak = map(int, out.stdout.split())
            above, mib = (peak - kept) / largest, 2**20
            print(
                f"{package}: keeps {kept / mib:.0f} MiB, its largest tensor {largest / mib:.0f} MiB; "
                f"peak {peak / mib:.0f} MiB, {above:.2f} × the largest tensor above what is kept"
            )
    return 0
