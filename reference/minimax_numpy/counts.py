"""Exact counts: parameters, bytes, FLOPs and memory, from a configuration alone."""

from dataclasses import dataclass
from math import prod

import numpy as np

from .config import LIGHTNING, SOFTMAX, MiniMaxConfig, is_router
from .quantize import is_quantized, layout


@dataclass(frozen=True)
class Counts:
    """What a model is made of and what a token costs it.

    ``activated`` is what the documents call activated parameters: all that a token meets but embedding and head.
    ``flops_per_token`` counts 2 for each weight that a token is multiplied by, head included, and the attention
    cores at the given length: $4 H d^2$ for a lightning layer (write, read), $4 H d\\,n$ for a softmax layer.
    """

    total: int
    activated: int
    embedding: int
    head: int
    lightning_layer: int
    softmax_layer: int
    expert: int
    router: int
    bytes_bf16: int
    state_bytes: int
    kv_bytes_per_token: int
    flops_per_token: int


def count(config: MiniMaxConfig, length: int = 1) -> Counts:
    """Count a model; ``length`` tokens are in the cache, the one whose FLOPs are counted among them."""
    axes = config.parameter_shapes()
    shapes = {name: prod(shape) for name, shape in axes.items()}
    kinds = config.layer_types

    def one(kind: str) -> int:
        layer = kinds.index(kind) if kind in kinds else None
        return sum(n for name, n in shapes.items() if name.startswith(f"model.layers.{layer}.self_attn."))

    total = sum(shapes.values())
    embedding, head = shapes["model.embed_tokens.weight"], shapes.get("lm_head.weight", 0)
    expert = 3 * config.intermediate_size * config.hidden_size
    router = config.num_local_experts * config.hidden_size
    idle = (config.num_local_experts - config.num_experts_per_tok) * expert * len(kinds)
    activated = total - embedding - head - idle
    vectors = sum(n for name, n in shapes.items() if len(axes[name]) == 1)

    H, G, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    lightning = kinds.count(LIGHTNING)
    softmax = len(kinds) - lightning
    seen = length if config.sliding_window is None else min(length, config.sliding_window)
    cores = 4 * H * d * d * lightning + 4 * H * d * seen * softmax
    return Counts(
        total=total,
        activated=activated,
        embedding=embedding,
        head=head,
        lightning_layer=one(LIGHTNING),
        softmax_layer=one(SOFTMAX),
        expert=expert,
        router=router,
        bytes_bf16=2 * total + 2 * router * len(kinds),
        state_bytes=4 * H * d * d * lightning,
        kv_bytes_per_token=2 * 2 * G * d * softmax,
        flops_per_token=2 * (activated - vectors + (head or embedding)) + cores,
    )


def quantized_bytes(config: MiniMaxConfig, kind: str, head: str = "MiniMaxForCausalLM") -> tuple[int, int]:
    """Bytes of a quantised model, and how many of them are scales.

    Attention and experts are quantised; embedding, head and norms take 2 bytes a number, routers 4.
    """
    total = scales = 0
    for name, shape in config.parameter_shapes(head).items():
        if not is_quantized(name):
            total += prod(shape) * (4 if is_router(name) else 2)
            continue
        for part, (part_shape, dtype) in layout(shape, kind).items():
            nbytes = prod(part_shape) * np.dtype(dtype).itemsize
            total, scales = total + nbytes, scales + (nbytes if part != "codes" else 0)
    return total, scales


def describe(
    config: MiniMaxConfig, length: int, stored_bytes: int | None = None, quantization: str | None = None
) -> str:
    """The counts as a page of text; ``stored_bytes`` is what a checkpoint's files hold."""
    c = count(config, length)
    kinds = config.layer_types
    lightning = kinds.count(LIGHTNING)
    seen = length if config.sliding_window is None else min(length, config.sliding_window)
    lines = [
        ("layers", f"{len(kinds)}", f"{lightning} lightning, {len(kinds) - lightning} softmax"),
        ("experts", f"{config.num_local_experts}", f"{config.num_experts_per_tok} a token, in every layer"),
        ("parameters", f"{c.total:,}", ""),
        ("  activated a token", f"{c.activated:,}", "without embedding and head"),
        ("  … with the head", f"{c.activated + c.head:,}", ""),
        ("  … and the embedding", f"{c.activated + c.head + c.embedding:,}", ""),
        ("  embedding, head", f"{c.embedding:,}", "each" if c.head else "tied"),
        ("  a lightning attention", f"{c.lightning_layer:,}", ""),
        ("  a softmax attention", f"{c.softmax_layer:,}", ""),
        ("  an expert, a router", f"{c.expert:,}", f"{c.router:,}"),
        ("bytes in bf16", f"{c.bytes_bf16:,}", f"routers in fp32; {binary(c.bytes_bf16)}"),
    ]
    if stored_bytes is not None:
        lines.append(("bytes as stored", f"{stored_bytes:,}", binary(stored_bytes)))
    if quantization is not None:
        total, scales = quantized_bytes(config, quantization)
        bits = 8 if quantization == "int8" else 4
        told = "attention and experts; embedding, head and norms in bf16, routers in fp32"
        lines += [
            (f"bytes in {quantization}", f"{total:,}", f"{gigabytes(total)}: {told}"),
            ("  … scales left out", f"{total - scales:,}", gigabytes(total - scales)),
            (f"  … all in {bits} bits", f"{c.total * bits // 8:,}", f"{gigabytes(c.total * bits // 8)}, no scales"),
        ]
    lines += [
        ("FLOPs a token", f"{c.flops_per_token:,}", f"at position {length:,}"),
        ("lightning state", binary(c.state_bytes), "a sequence, in fp32, whatever its length"),
        (
            "keys and values",
            binary(c.kv_bytes_per_token * seen),
            f"in bf16 at {length:,} tokens; {c.kv_bytes_per_token:,} bytes a token",
        ),
    ]
    return "\n".join(f"{name:<24}{value:>20}  {told}".rstrip() for name, value, told in lines)


def gigabytes(n: int) -> str:
    """Bytes in the words of those who sell memory.

    >>> gigabytes(260_074_004_480)
    '260.1 GB'
    """
    return f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"


def binary(n: int) -> str:
    """Bytes in words.

    >>> binary(293_601_280)
    '280 MiB'
    """
    power = min(max(n.bit_length() - 1, 0) // 10, 4)
    return f"{n / 1024**power:.4g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
