"""The dtype policy, function by function: out comes what went in, and what must not be rounded is not.

Softmax, router, losses and the lightning state are at least float32; slopes and frequencies are float64.
"""

import numpy as np
import pytest
from close import NUMPY, TORCH, array, lively, prompts, small
from minimax_numpy import ops

SAME, WIDE, FLOAT64, INTEGER, BOOL = "the input's type", "float32 at least", "float64", "int64", "bool"


def calls(ops, x, i, b):
    """Every op on inputs made by x (numbers), i (indices) and b (a mask), with the types its results should have."""
    heads, rows, mask = x(1, 2, 3, 4), i([[0, 1, 2]]), b([[1, 1, 0]])
    slopes = ops.decay_slopes(2, 0, 4)
    state = x(1, 2, 4, 4)
    experts, qkv = (x(3, 8, 4), x(3, 4, 4)), [heads] * 3
    weights, indices = ops.route(x(1, 3, 3), 2)
    targets = (4, i([0, 1, 2])), (4, x(3, 4)), (1, x(3))
    return {
        "activate": ([ops.activate(heads, act) for act in ("silu", "gelu")], [SAME] * 2),
        "add_residual": ([ops.add_residual(*[x(1, 3, 4)] * 3, 2.0, 0.5)], [SAME]),
        "apply_rotary": ([ops.apply_rotary(heads, rows, 2)], [SAME]),
        "causal_loss": ([ops.causal_loss(x(1, 3, 5), rows, mask)], [WIDE]),
        "classification_loss": ([ops.classification_loss(x(3, n), labels) for n, labels in targets], [WIDE] * 3),
        "cross_entropy": ([ops.cross_entropy(x(3, 5), i([0, 1, -100]))], [WIDE]),
        "decay_slopes": ([slopes], [FLOAT64]),
        "document_rows": (ops.document_rows(i([0, 2, 3])), [INTEGER, BOOL]),
        "gelu": ([ops.gelu(heads)], [SAME]),
        "inner_norm": ([ops.inner_norm(x(1, 3, 4), x(4))], [SAME]),
        "lightning_attention_chunked": (ops.lightning_attention_chunked(*qkv, slopes, chunk=2), [SAME, WIDE]),
        "lightning_attention_direct": (ops.lightning_attention_direct(*qkv, slopes, state), [SAME, WIDE]),
        "lightning_attention_recurrent": (ops.lightning_attention_recurrent(*qkv, slopes, mask=mask), [SAME, WIDE]),
        "linear": ([ops.linear(heads, x(5, 4)), ops.linear(heads, x(5, 4), x(5))], [SAME] * 2),
        "load_balancing_loss": ([ops.load_balancing_loss([x(1, 3, 4)] * 2, 2, mask)], [WIDE]),
        "log_softmax": ([ops.log_softmax(heads)], [WIDE]),
        "merge_heads": ([ops.merge_heads(heads)], [SAME]),
        "mix_experts": ([ops.mix_experts(x(1, 3, 4), weights, indices, *experts)], [SAME]),
        "output_gate": ([ops.output_gate(x(1, 3, 4), x(1, 3, 4), lambda x: x)], [SAME]),
        "pack": ([ops.pack(x(2, 2, 3, 4), b([[1, 1, 0], [1, 1, 1]]))], [SAME]),
        "rms_norm": ([ops.rms_norm(heads, x(4))], [SAME]),
        "rotary_frequencies": ([ops.rotary_frequencies(4)], [FLOAT64]),
        "route": ((weights, indices), [WIDE, INTEGER]),
        "sigmoid": ([ops.sigmoid(heads)], [SAME]),
        "silu": ([ops.silu(heads)], [SAME]),
        "softmax": ([ops.softmax(heads)], [WIDE]),
        "softmax_attention": ([ops.softmax_attention(*qkv, v) for v in (None, b([[[1] * 3] * 3]))], [SAME] * 2),
        "split_heads": ([ops.split_heads(x(1, 3, 4), 2)], [SAME]),
        "split_qkv": (ops.split_qkv(x(1, 3, 12), 2), [SAME] * 3),
        "swiglu": ([ops.swiglu(x(1, 3, 4), *(w[0] for w in experts))], [SAME]),
        "unpack": ([ops.unpack(heads, i([[0, 1], [2, 0]]))], [SAME]),
        "visible_keys": ([ops.visible_keys(rows, rows[:1], 2)], [BOOL]),
    }  # fmt: skip


@pytest.mark.parametrize(
    "side, dtype",
    [(side, dtype) for side in (NUMPY, TORCH) for dtype in ("float16", "float32", "float64")] + [(TORCH, "bfloat16")],
    ids=str,
)
def test_every_op_keeps_to_the_policy(side, dtype):
    """Each public function, in each type that its package has."""
    rng = np.random.default_rng(0)
    made = calls(
        side.package.ops,
        x=lambda *shape: side.wrap(rng.standard_normal(shape), dtype),
        i=lambda numbers: side.wrap(np.array(numbers)),
        b=lambda numbers: side.wrap(np.array(numbers, bool)),
    )
    assert set(made) == set(ops.__all__) - {"using"}
    wanted = {SAME: dtype, WIDE: {"float64": "float64"}.get(dtype, "float32")}
    for name, (results, types) in made.items():
        for result, kind in zip(results, types, strict=True):
            assert str(result.dtype).removeprefix("torch.") == wanted.get(kind, kind), name


@pytest.mark.parametrize(
    "side, dtype",
    [(side, dtype) for side in (NUMPY, TORCH) for dtype in ("float16", "float32", "float64")] + [(TORCH, "bfloat16")],
    ids=str,
)
def test_a_model_keeps_to_the_policy(side, dtype):
    """Hidden states and logits in the model's type, states, routers and losses in at least float32, and all finite."""
    reference = lively(small(shared_intermediate_size=8), dtype=np.float32)
    ids = prompts(reference.config, 2, 11)
    if side.is_torch:
        model = side.package.MiniMaxForCausalLM.from_reference(reference, dtype=side.wrap(0.0, dtype).dtype)
    else:
        weights = {n: x if n.endswith("mlp.gate.weight") else x.astype(dtype) for n, x in reference.weights.items()}
        model = side.package.MiniMaxForCausalLM(reference.config, dtype=dtype, weights=weights)
    ids, mask = side.wrap(ids), side.wrap(np.tri(2, 11, 9, dtype=int))
    out = model(ids, mask, labels=ids, use_cache=True, output_hidden_states=True, output_router_logits=True)
    wide = "float64" if dtype == "float64" else "float32"
    same = [*out.hidden_states, out.logits, out.last_hidden_state, out.cache.layers[2].keys, out.cache.layers[2].values]
    for x in same:
        assert str(x.dtype).removeprefix("torch.") == dtype
        assert np.isfinite(array(x)).all()
    for x in [*out.router_logits, out.cache.layers[0].state, out.loss, out.aux_loss]:
        assert str(x.dtype).removeprefix("torch.") == wide
