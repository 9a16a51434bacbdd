"""Right programs are never accused: other summation orders, chunks, cuts, libraries and types all pass."""

from functools import partial

import numpy as np
import pytest
import torch
from minimax_numpy import MiniMaxConfig, MiniMaxForCausalLM
from minimax_numpy import ops as numpy_ops
from minimax_numpy.check import check_op, crosscheck
from minimax_numpy.check.single import CASES
from minimax_torch import MiniMaxForCausalLM as Twin
from minimax_torch import ops as torch_ops

DTYPES = ("float64", "float32", "bfloat16", "float16")
flip = partial(np.flip, axis=-1)


# --- The same sums in another order --------------------------------------------------------------------------------


def linear_backwards(x, weight, bias=None):
    return numpy_ops.linear(flip(x), flip(weight), bias)


def linear_in_two_halves(x, weight, bias=None):
    n = x.shape[-1] // 2
    y = x[..., n:] @ weight[:, n:].T + x[..., :n] @ weight[:, :n].T
    return y if bias is None else y + bias


def in_chunks_of(C):
    return lambda q, k, v, s, state=None, *, mask=None: numpy_ops.lightning_attention_chunked(
        q, k, v, s, state, chunk=C, mask=mask
    )


def lightning_backwards(q, k, v, s, state=None, *, chunk=32, mask=None):
    state = None if state is None else state[:, :, ::-1]
    out, state = numpy_ops.lightning_attention_chunked(flip(q), flip(k), v, s, state, chunk=chunk, mask=mask)
    return out, state[:, :, ::-1]


def lightning_head_by_head(q, k, v, s, state=None, *, mask=None):
    parts = []
    for h in range(len(s)):
        one = slice(h, h + 1)
        start = None if state is None else state[:, one]
        parts.append(numpy_ops.lightning_attention_direct(q[:, one], k[:, one], v[:, one], s[one], start, mask=mask))
    return tuple(np.concatenate(x, axis=1) for x in zip(*parts, strict=True))


def lightning_cut_in_two(q, k, v, s, state=None, *, mask=None):
    cut = q.shape[2] // 3
    masks = (None, None) if mask is None else (mask[:, :cut], mask[:, cut:])
    a, state = numpy_ops.lightning_attention_chunked(
        q[:, :, :cut], k[:, :, :cut], v[:, :, :cut], s, state, mask=masks[0]
    )
    b, state = numpy_ops.lightning_attention_chunked(
        q[:, :, cut:], k[:, :, cut:], v[:, :, cut:], s, state, mask=masks[1]
    )
    return np.concatenate([a, b], axis=2), state


def attention_key_by_key(q, k, v, visible=None):
    T, J = q.shape[2], k.shape[2]
    seen = np.tri(T, J, J - T, dtype=bool)[None] if visible is None else visible
    return numpy_ops.softmax_attention(
        q, k[:, :, ::-1], v[:, :, ::-1], np.broadcast_to(seen, (len(q), T, J))[..., ::-1]
    )


def attention_query_by_query(q, k, v, visible=None):
    T, J = q.shape[2], k.shape[2]
    seen = np.tri(T, J, J - T, dtype=bool)[None] if visible is None else visible
    seen = np.broadcast_to(seen, (len(q), T, J))
    rows = [numpy_ops.softmax_attention(q[:, :, t : t + 1], k, v, seen[:, t : t + 1]) for t in range(T)]
    return np.concatenate(rows, axis=2)


def experts_one_choice_at_a_time(x, weights, indices, gate_up, down):
    said = [
        numpy_ops.mix_experts(x, weights[..., k : k + 1], indices[..., k : k + 1], gate_up, down)
        for k in reversed(range(weights.shape[-1]))
    ]
    return sum(said[1:], said[0])


def norm_in_float64(x, weight, eps=1e-5):
    return numpy_ops.rms_norm(x.astype(np.float64), weight.astype(np.float64), eps).astype(x.dtype)


def norm_by_dot_products(x, weight, eps=1e-5):
    wide = x.astype(np.promote_types(x.dtype, np.float32))
    mean = np.einsum("...n,...n->...", flip(wide), flip(wide))[..., None] / x.shape[-1]
    return (wide * weight / np.sqrt(mean + eps)).astype(x.dtype)


OTHER_ORDERS = [
    ("linear", linear_backwards),
    ("linear", linear_in_two_halves),
    *(("lightning_attention_chunked", in_chunks_of(C)) for C in (1, 3, 16, 17, 64, 500)),
    ("lightning_attention_chunked", lightning_backwards),
    ("lightning_attention_chunked", lightning_head_by_head),
    ("lightning_attention_chunked", lightning_cut_in_two),
    ("lightning_attention_direct", lightning_cut_in_two),
    ("softmax_attention", attention_key_by_key),
    ("softmax_attention", attention_query_by_query),
    ("softmax_attention", lambda *x: torch_ops.softmax_attention(*x, implementation="eager")),
    ("mix_experts", experts_one_choice_at_a_time),
    ("rms_norm", norm_in_float64),
    ("rms_norm", norm_by_dot_products),
    *((name, getattr(ops, name)) for name in sorted(CASES) for ops in (numpy_ops, torch_ops)),
]

ONE_OP = [(name, function, dtype, seed) for name, function in OTHER_ORDERS for dtype in DTYPES for seed in (0, 1, 2)]


@pytest.mark.parametrize(
    "name,function", OTHER_ORDERS, ids=lambda x: x if isinstance(x, str) else getattr(x, "__name__", "f")
)
def test_a_right_op_is_never_accused(name, function):
    for dtype in DTYPES:
        for seed in (0, 1, 2):
            check_op(name, function, dtype=dtype, seed=seed).raise_if_different()


# --- Whole models ----------------------------------------------------------------------------------------------------

SHORT = ("linear_attention", "linear_attention", "full_attention")
MODELS = {
    "7:1": {},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "three heads": {"num_attention_heads": 3, "num_key_value_heads": 1, "layer_types": SHORT},
    "twelve heads, transformers' slopes": {
        "num_attention_heads": 12, "num_key_value_heads": 4, "slope_rule": "transformers", "layer_types": SHORT,
    },
    "a window": {"sliding_window": 5, "layer_types": SHORT},
    "before the norm": {"postnorm": False, "layer_types": SHORT},
    "a shared expert, tied": {"shared_intermediate_size": 24, "tie_word_embeddings": True, "layer_types": SHORT},
    "gelu, one expert a token": {"hidden_act": "gelu", "num_experts_per_tok": 1, "layer_types": SHORT},
    "all experts, no rotary": {"num_experts_per_tok": 6, "rotary_dim": 0, "layer_types": SHORT},
}  # fmt: skip
LENGTHS = (1, 2, 33, 70)
WHOLE = [(name, dtype, how, T) for name in MODELS for dtype in DTYPES for how in ("sdpa", "eager") for T in LENGTHS]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_a_right_model_is_never_accused(name, dtype):
    truth = MiniMaxForCausalLM(MiniMaxConfig.tiny(**MODELS[name]), seed=3, dtype=np.float64)
    for how in ("sdpa", "eager"):
        twin = Twin.from_reference(truth, dtype=getattr(torch, dtype), attn_implementation=how)
        for T in LENGTHS:
            crosscheck(truth, twin, dtype=dtype, length=T, decode=2, seed=T).raise_if_different()


def test_these_are_at_least_five_hundred():
    assert len(ONE_OP) + len(WHOLE) >= 500
