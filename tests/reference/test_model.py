"""The whole model is spec.md's page of maths, and a call returns what it was asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from close import CONFIGURATIONS, assert_same, every_configuration, lively, prompts, small
from minimax_numpy import MiniMaxForCausalLM, ops
from minimax_numpy.config import LIGHTNING, SOFTMAX
from minimax_numpy.trace import Trace, recording, round_to


def plain_model(config, weights, ids):
    """Spec.md's forward pass on one row of ids, token by token and head by head, as a student would write it.

    It shares no line with the package, except the slopes, which have tests of their own.
    """
    w = {name.removeprefix("model."): x for name, x in weights.items()}
    H, G, d, R = config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.rotary_dim
    L, F = config.num_hidden_layers, config.intermediate_size

    def norm(x, gain, eps):
        return gain * x / np.sqrt(np.mean(x**2) + eps)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def act(x):
        return ops.gelu(x) if config.hidden_act == "gelu" else x * sigmoid(x)

    def rotate(x, position):
        x = x.copy()
        for i in range(R // 2):
            turned = complex(x[i], x[i + R // 2]) * np.exp(1j * position * config.rope_theta ** (-2 * i / R))
            x[i], x[i + R // 2] = turned.real, turned.imag
        return x

    def lightning(layer, p, n, memory):
        slopes = ops.decay_slopes(H, layer, L, config.slope_rule)
        u = act(w[p + "qkv_proj.weight"] @ n)
        out = np.zeros(H * d)
        for h in range(H):
            q, k, v = u[3 * d * h : 3 * d * (h + 1)].reshape(3, d)
            memory[h] = np.exp(-slopes[h]) * memory.get(h, 0) + np.outer(k, v)
            out[h * d : (h + 1) * d] = memory[h].T @ q
        gate = sigmoid(w[p + "output_gate.weight"] @ n)
        return w[p + "out_proj.weight"] @ (gate * norm(out, w[p + "norm.weight"], 1e-6))

    def softmax(layer, p, n, memory):
        t = len(memory)
        q, k, v = ((w[f"{p}{name}_proj.weight"] @ n).reshape(-1, d) for name in "qkv")
        memory[t] = [rotate(key, t) for key in k], v
        seen = range(0 if config.sliding_window is None else max(0, t - config.sliding_window + 1), t + 1)
        out = np.zeros(H * d)
        for h in range(H):
            g = h // (H // G)
            powers = np.exp([rotate(q[h], t) @ memory[j][0][g] / np.sqrt(d) for j in seen])
            out[h * d : (h + 1) * d] = sum(power * memory[j][1][g] for power, j in zip(powers, seen)) / powers.sum()
        return w[p + "o_proj.weight"] @ out

    def experts(p, n):
        scores = np.exp(w[p + "gate.weight"] @ n)
        best = np.argsort(-scores)[: config.num_experts_per_tok]
        out = 0
        for e in best:
            w1, w3 = w[p + "experts.gate_up_proj"][e, :F], w[p + "experts.gate_up_proj"][e, F:]
            out += scores[e] / scores[best].sum() * w[p + "experts.down_proj"][e] @ (act(w1 @ n) * (w3 @ n))
        return out

    memories = [{} for _ in range(L)]
    logits = []
    for token in ids:
        x = w["embed_tokens.weight"][token]
        for i, kind in enumerate(config.layer_types):
            p = f"layers.{i}."
            mix, part = (lightning, "linear_attn") if kind == LIGHTNING else (softmax, "full_attn")
            n = norm(x, w[p + "input_layernorm.weight"], config.rms_norm_eps)
            alpha, beta = getattr(config, part + "_alpha_factor"), getattr(config, part + "_beta_factor")
            x = alpha * (n if config.postnorm else x) + beta * mix(i, p + "self_attn.", n, memories[i])
            n = norm(x, w[p + "post_attention_layernorm.weight"], config.rms_norm_eps)
            update = experts(p + "mlp.", n)
            if config.shared_intermediate_size:
                c = sigmoid(w[p + "coefficient.weight"] @ n)
                hidden = act(w[p + "shared_mlp.gate_proj.weight"] @ n) * (w[p + "shared_mlp.up_proj.weight"] @ n)
                update = (1 - c) * update + c * (w[p + "shared_mlp.down_proj.weight"] @ hidden)
            x = config.mlp_alpha_factor * (n if config.postnorm else x) + config.mlp_beta_factor * update
        head = w["embed_tokens.weight"] if config.tie_word_embeddings else w["lm_head.weight"]
        logits.append(head @ norm(x, w["norm.weight"], config.rms_norm_eps))
    return np.array(logits), memories


@every_configuration
def test_the_model_is_the_page_of_maths(config):
    """Logits, states, and cached keys and values, over several chunks with a short last one, in every configuration."""
    model = lively(config)
    ids = prompts(config, 1, 19)
    out = model(ids, use_cache=True)
    logits, memories = plain_model(config, model.weights, ids[0])
    assert_same(out.logits[0], logits)
    assert out.cache.lengths.tolist() == [19]
    for layer, memory in zip(out.cache.layers, memories, strict=True):
        if hasattr(layer, "state"):
            assert_same(layer.state[0], [memory[h] for h in range(config.num_attention_heads)])
        else:
            w = config.sliding_window or 19
            last = sorted(range(19 - w, 19), key=lambda t: t % w)  # the key of position t lies in slot t mod w
            assert_same(layer.keys[0].swapaxes(0, 1), [memory[t][0] for t in last])
            assert_same(layer.values[0].swapaxes(0, 1), [memory[t][1] for t in last])


def test_what_was_not_asked_for_is_none():
    model = lively(small())
    out = model(prompts(model.config, 1, 3))
    for name in ("cache", "hidden_states", "router_logits", "loss", "aux_loss"):
        assert getattr(out, name) is None


def test_hidden_states_are_layers_plus_two():
    """The embedding, the stream after each layer, and the last norm, from which the logits are made."""
    model = lively(small())
    ids = prompts(model.config, 2, 5)
    out = model(ids, output_hidden_states=True)
    assert len(out.hidden_states) == 4 + 2
    np.testing.assert_array_equal(out.hidden_states[0], model.weights["model.embed_tokens.weight"][ids])
    last = ops.rms_norm(out.hidden_states[-2], model.weights["model.norm.weight"], model.config.rms_norm_eps)
    np.testing.assert_array_equal(out.hidden_states[-1], last)
    assert_same(out.logits, last @ model.weights["lm_head.weight"].T)


def test_embeddings_may_be_given():
    """inputs_embeds in place of ids, the same numbers to the bit."""
    model = lively(small())
    ids = prompts(model.config, 2, 5)
    embeds = model.weights["model.embed_tokens.weight"][ids]
    np.testing.assert_array_equal(model(inputs_embeds=embeds).logits, model(ids).logits)


def test_only_the_last_logits():
    """logits_to_keep n is the last n positions, 0 all of them."""
    model = lively(small())
    ids = prompts(model.config, 2, 5)
    for n in (1, 3):
        assert_same(model(ids, logits_to_keep=n).logits, model(ids, logits_to_keep=0).logits[:, -n:])


def test_the_loss_adds_the_balance_only_where_router_logits_are_asked_for():
    model = lively(small())
    ids = prompts(model.config, 2, 9)
    out = model(ids, labels=ids)
    with_aux = model(ids, labels=ids, output_router_logits=True)
    assert_same(out.loss, ops.causal_loss(out.logits, ids))
    assert_same(with_aux.aux_loss, ops.load_balancing_loss(with_aux.router_logits, 2))
    assert_same(with_aux.loss, out.loss + 0.1 * with_aux.aux_loss)


def test_position_ids_turn_the_rotary_and_nothing_else():
    """A common shift is invisible in the logits and plain in the cached keys; lightning layers know no position."""
    model = lively(small())
    ids = prompts(model.config, 2, 9)
    positions = np.arange(9)[None].repeat(2, 0)
    plain, shifted = (model(ids, position_ids=p, use_cache=True) for p in (positions, positions + 3))
    np.testing.assert_array_equal(model(ids, use_cache=True).logits, plain.logits)
    assert_same(shifted.logits, plain.logits)
    assert not np.allclose(shifted.cache.layers[2].keys, plain.cache.layers[2].keys)
    assert not np.allclose(model(ids, position_ids=2 * positions).logits, plain.logits)


def test_sequence_classification_reads_the_rightmost_real_token():
    """The mask says which is real; without one, the pad token; without that, the last column."""
    model = lively(small(pad_token_id=0), "MiniMaxForSequenceClassification")
    ids = prompts(model.config, 3, 6)
    ids[1, 4:] = 0
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2, [0, 1, 1, 1, 1, 0]])
    hidden = model(ids, mask, output_hidden_states=True).hidden_states[-1]
    score = model.weights["score.weight"]
    assert_same(model(ids, mask).logits, hidden[[0, 1, 2], [5, 3, 4]] @ score.T)
    hidden = model(ids, output_hidden_states=True).hidden_states[-1]
    assert_same(model(ids).logits, hidden[[0, 1, 2], [5, 3, 5]] @ score.T)
    model.config = replace(model.config, pad_token_id=None)
    assert_same(model(ids).logits, hidden[:, -1] @ score.T)


def test_the_other_task_heads_look_at_every_token():
    """A score for each token, or a start and an end; both with a bias, and each with its loss."""
    ids = prompts(small(), 2, 6)
    tokens, answers = (lively(small(), f"MiniMaxFor{task}") for task in ("TokenClassification", "QuestionAnswering"))
    for model, name in ((tokens, "score"), (answers, "qa_outputs")):
        out = model(ids, output_hidden_states=True)
        weight, bias = model.weights[f"{name}.weight"], model.weights[f"{name}.bias"]
        assert_same(out.logits, out.hidden_states[-1] @ weight.T + bias)
    labels = np.array([[0, 1, 2, -100, 1, 1]] * 2)
    assert_same(tokens(ids, labels=labels).loss, ops.cross_entropy(tokens(ids).logits, labels))
    out = answers(ids, labels=np.array([[0, 3], [5, 5]]))
    start, end = out.logits[..., 0], out.logits[..., 1]
    assert_same(out.loss, (ops.cross_entropy(start, np.array([0, 5])) + ops.cross_entropy(end, np.array([3, 5]))) / 2)


def test_fresh_weights_depend_on_the_seed_alone():
    """Rounded to a type they are the same numbers; routers stay in float32."""
    config = CONFIGURATIONS["a shared expert"]
    wide, narrow = (MiniMaxForCausalLM(config, seed=3, dtype=dtype).weights for dtype in (np.float64, np.float16))
    for name, x in wide.items():
        router = name.endswith("mlp.gate.weight")
        assert narrow[name].dtype == (np.float32 if router else np.float16)
        np.testing.assert_array_equal(narrow[name], x.astype(narrow[name].dtype))
    assert not np.array_equal(MiniMaxForCausalLM(config, seed=4).weights["lm_head.weight"], wide["lm_head.weight"])


def test_a_function_can_be_swapped_inside_the_whole_model():
    """ops.using is the door: what goes in is used by every layer, and is gone afterwards, even after an error."""
    model = lively(small())
    ids = prompts(model.config, 1, 9)
    before = model(ids).logits
    with ops.using(lightning_attention_chunked=lambda *x, chunk, **mask: ops.lightning_attention_recurrent(*x, **mask)):
        assert_same(model(ids).logits, before)
    with pytest.raises(ZeroDivisionError), ops.using(output_gate=lambda *x: 1 / 0):
        model(ids)
    np.testing.assert_array_equal(model(ids).logits, before)
    with pytest.raises(ValueError, match="There is no op 'attention'"), ops.using(attention=len):
        pass


def test_every_part_is_shown_by_name():
    """A Trace sees parts under their module paths, and what it hands back is what the model goes on with."""
    model = lively(small(LIGHTNING, SOFTMAX))
    ids = prompts(model.config, 1, 5)
    with recording(trace := Trace()):
        out = model(ids, output_hidden_states=True)
    for name, shape in {
        "model.layers.0.self_attn.qkv_proj": (1, 5, 192),
        "model.layers.0.self_attn.norm.input": (1, 5, 64),
        "model.layers.0.self_attn.state": (1, 4, 16, 16),
        "model.layers.1.self_attn.query": (1, 5, 4, 16),
        "model.layers.1.self_attn.key": (1, 5, 2, 16),
        "model.layers.1.self_attn.o_proj.input": (1, 5, 64),
        "model.layers.1.mlp.gate": (1, 5, 6),
        "model.layers.1.mlp.gate.weights": (1, 5, 2),
        "model.layers.1.mlp.gate.indices": (1, 5, 2),
        "lm_head": (1, 5, 256),
    }.items():
        assert trace[name].shape == shape, name
    for i in range(2):
        np.testing.assert_array_equal(trace[f"model.layers.{i}"], out.hidden_states[i + 1])
    with recording(Trace(force={"model.norm": np.zeros((1, 5, 32))})):
        assert not model(ids).logits.any()
    with recording(rounded := Trace(round_to="bfloat16")):
        model(ids)
    np.testing.assert_array_equal(rounded["lm_head"], round_to(rounded["lm_head"], "bfloat16"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rounding_is_torchs(dtype):
    """To nearest, ties to even, from normal numbers through the smallest to infinity."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(10_000) * 10.0 ** rng.integers(-8, 5, 10_000)
    x = np.concatenate([x, [1.00390625, 1.01171875, 0.0, -0.0, np.inf, -np.inf]]).astype(np.float32)
    with np.errstate(over="ignore"):
        got = round_to(x, dtype)
    np.testing.assert_array_equal(got, torch.tensor(x).to(getattr(torch, dtype)).float().numpy())
