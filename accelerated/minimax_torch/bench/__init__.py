"""What `minimax-twin bench` measures. Ratios are of one run, taken in turn: machines are shared and noisy.

``prefill`` times the NumPy reference beside transformers on the same weights. ``loading`` reads a checkpoint in a
process of its own and compares the peak of its memory with what it keeps. ``streaming`` makes a checkpoint, runs it
from disk in such a process, and compares the peak with its largest tensor, and bytes read with bytes foretold.
``decode`` times a token of one layer after texts of three lengths. ``models``, ``layers``, ``ops`` and ``block``, the
real layer, time the twin beside its rivals, after the machine's own ceilings, on a CPU or a GPU: see
[contest][minimax_torch.bench.contest].
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from math import prod
from statistics import median

import numpy as np
import torch
from minimax_numpy.cache import Cache
from minimax_numpy.config import HYBRID, LIGHTNING, SOFTMAX, MiniMaxConfig
from minimax_numpy.counts import binary
from minimax_numpy.extras import optional
from minimax_numpy.layers import Step, Weights, lightning_self_attention, softmax_self_attention
from minimax_numpy.making import make_checkpoint
from minimax_numpy.model import MiniMaxForCausalLM
from minimax_numpy.ops import decay_slopes, lightning_attention_chunked
from minimax_numpy.shipped import TINY

from ..layers import Step as TwinStep
from .contest import seconds

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
PASTS = (1024, 65_536, 1_048_576)  # tokens that decode comes after
RSS = """
def rss():
    with open("/proc/self/status") as f:
        return {k: int(v.split()[0]) * 1024 for k, v in (l.split(":") for l in f if l.startswith(("VmRSS", "VmHWM")))}
"""
LOAD = """
import sys, {package} as package
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
STREAM = """
import sys, numpy as np, {package} as package, minimax_numpy
from minimax_numpy.forecast import forecast
def run(path, length, new, stream):
    model = package.MiniMaxForCausalLM.from_pretrained(path, stream=stream, **types)
    ids = wrap(np.random.default_rng(0).integers(3, model.config.vocab_size, (1, length)))
    list(zip(range(new), model.stream(ids, max_new_tokens=new, eos_token_id=-1)))
    return model
types, wrap = {{"dtype": np.float64}}, np.asarray
if package is not minimax_numpy:
    import torch
    types, wrap = {{"dtype": torch.float64}}, torch.from_numpy
length = int(sys.argv[3])
run(sys.argv[2], length, 2, False)  # a small one first: libraries load themselves lazily, too
before = rss()["VmRSS"]
told = forecast(sys.argv[1], package.MiniMaxConfig.from_pretrained(sys.argv[1]), length, 3)
read = run(sys.argv[1], length, 4, True).weights.checkpoint.bytes_read
print(read, told.read_bytes, rss()["VmHWM"] - before, told.memory_bytes)
"""
SPARSE = dataclasses.replace(
    MEDIUM, layer_types=(LIGHTNING, SOFTMAX), hidden_size=1024, intermediate_size=2048, num_local_experts=16,
    vocab_size=50_000, num_experts_per_tok=2,
)  # fmt: skip


def main(options) -> int:
    """Run a measurement and print it."""
    if options.length < 2 or options.repeat < 1:
        raise ValueError(f"--length is {options.length} and --repeat {options.repeat}; at least 2 tokens and 1 run.")
    if options.what in ("loading", "streaming") and not os.path.exists("/proc/self/status"):
        raise OSError("Peak memory is read from /proc/self/status, which this system has not.")
    from .block import block  # these know MEDIUM, and are known here
    from .models import layers, models
    from .ops import ops as single_ops

    if options.layers is not None and (options.what != "block" or options.layers < 1):
        raise ValueError("--layers N is how many layers bench block builds, at least 1; no other measurement has it.")
    contests: dict[str, Callable] = {"models": models, "layers": layers, "ops": single_ops, "block": block}
    if options.what in contests:
        return contests[options.what](options)
    if options.device != "cpu" or options.dtype or options.json or options.plot:
        raise ValueError(f"--device, --dtype, --json and --plot are for {', '.join(contests)}; not for {options.what}.")
    return {"prefill": prefill, "loading": loading, "decode": decode, "streaming": streaming}[options.what](options)


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


def in_own_process(code: str, *arguments: object) -> list[int]:
    """The numbers that a program prints; it may ask ``rss()`` for its memory, which is its own alone."""
    command = [sys.executable, "-c", RSS + code, *map(str, arguments)]
    return [int(x) for x in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


def loading(options) -> int:
    """Peak resident memory of loading a checkpoint, above what is kept, in units of its largest tensor."""
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
            kept, largest, peak = in_own_process(code, folder, TINY, options.quantization or "")
            above, mib = (peak - kept) / largest, 2**20
            print(
                f"{package}: keeps {kept / mib:.0f} MiB, its largest tensor {largest / mib:.0f} MiB; "
                f"peak {peak / mib:.0f} MiB, {above:.2f} × the largest tensor above what is kept"
            )
    return 0


def streaming(options) -> int:
    """Peak memory of a streamed run in float64, in units of the largest tensor; bytes read, of those foretold."""
    with tempfile.TemporaryDirectory() as folder:
        path, length = os.path.join(folder, "model"), min(options.length, 128)
        stored = make_checkpoint(path, SPARSE)
        largest = max(2 * prod(shape) for name, shape in SPARSE.parameter_shapes().items() if "experts" not in name)
        print(f"a checkpoint of {stored / 2**20:.0f} MiB in bfloat16; {length} tokens and 4 more in float64, from disk")
        for package in ("minimax_numpy", "minimax_torch"):
            code = STREAM.format(package=package)
            start = time.perf_counter()
            read, foretold, peak, bound = in_own_process(code, path, TINY, length)
            mib = 2**20
            print(
                f"{package}: peak {peak / mib:.0f} MiB above its libraries, {peak / largest:.2f} × the largest tensor, "
                f"{peak / stored:.3f} × the checkpoint, {peak / bound:.2f} × the bound; "
                f"read {read / mib:.0f} MiB, {read / foretold:.3f} × what was foretold; "
                f"{time.perf_counter() - start:.1f} s"
            )
    return 0


def decode(options) -> int:
    """Time and memory of a token after 1k, 64k and 1M others: lightning layers of both twins, and a softmax layer.

    The pasts are random: a state is advanced by the op itself, keys and values are put into their slots.
    """
    config = dataclasses.replace(MEDIUM, layer_types=(LIGHTNING, SOFTMAX), num_key_value_heads=1)
    reference = MiniMaxForCausalLM(config, dtype=np.float32)
    w = Weights(reference.weights) / "model.layers"
    layer = optional("minimax_torch", "torch").MiniMaxForCausalLM.from_reference(reference).model.layers[0].self_attn
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 1, config.hidden_size), np.float32)
    caches = {P: past_of(config, P, rng) for P in PASTS}
    runs: dict[tuple, Callable] = {}
    for P, cache in caches.items():
        here = np.array([[P]])
        step, twin_step = Step(here, here), TwinStep(torch.from_numpy(here), torch.from_numpy(here))
        state, memory = cache.layers[0].state, cache.layers[1]
        runs["minimax_numpy", "lightning", P] = partial(
            lightning_self_attention, w / 0 / "self_attn", x, config, 0, step, state
        )
        runs["minimax_torch", "lightning", P] = partial(layer, torch.from_numpy(x), twin_step, torch.from_numpy(state))
        runs["minimax_numpy", "softmax", P] = partial(
            softmax_self_attention, w / 1 / "self_attn", x, config, step, memory
        )
    with torch.no_grad():
        times = in_turn(runs, options.repeat)
    print(
        f"one token of one layer, float32, {torch.get_num_threads()} threads; D {config.hidden_size}, "
        f"{config.num_attention_heads} × {config.head_dim} heads, 1 key head in softmax layers; medians of "
        f"{20 * options.repeat} tokens, taken in turn"
    )
    for package, kind, P in sorted(runs, key=lambda run: (run[1], run[0], run[2])):
        held, first = (caches[p].layers[kind == "softmax"].nbytes for p in (P, PASTS[0]))
        time, least = times[package, kind, P], times[package, kind, PASTS[0]]
        print(
            f"{package}  {kind:<9}  after {P:9,} tokens  {time * 1e6:8.0f} µs ({time / least:7.2f} ×)  "
            f"{binary(held):>9} ({held / first:7.2f} ×)"
        )
    return 0


def past_of(config: MiniMaxConfig, length: int, rng: np.random.Generator) -> Cache:
    """A cache of two layers after that many random tokens."""
    H, G, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    cache, piece = Cache(config, 1), 16_384
    slopes = decay_slopes(H, 0, 2, config.slope_rule)
    for start in range(0, length, piece):
        T = min(piece, length - start)
        q, k, v = (rng.standard_normal((1, H, T, d), np.float32) for _ in range(3))
        cache.layers[0].state = lightning_attention_chunked(q, k, v, slopes, cache.layers[0].state)[1]
        cache.layers[1].append(k[:, :G], v[:, :G], np.arange(start, start + T)[None], None)
    return cache


def in_turn(runs: dict[tuple, Callable], repeat: int) -> dict[tuple, float]:
    """Median seconds of each function, called in turn, so that a busy machine is busy for all."""
    times: dict[tuple, list[float]] = {key: [] for key in runs}
    for _ in range(repeat):
        for key, run in runs.items():
            run()  # brings back what the others pushed out of the machine's caches
            times[key] += [seconds(run) for _ in range(20)]
    return {key: median(found) for key, found in times.items()}
