"""The stream is brought back to one length before every block, and each update has the same say at any depth."""

import numpy as np
import pytest
from close import NUMPY, assert_same, both, lively, prompts, rms, small
from minimax_numpy import MiniMaxConfig, MiniMaxForCausalLM, ops
from minimax_numpy.cache import SoftmaxMemory
from minimax_numpy.config import HYBRID, LIGHTNING
from minimax_numpy.layers import Step, Weights, lightning_self_attention, softmax_self_attention, sparse_moe


def test_it_is_deepnorms_loop_cut_at_another_place():
    """DeepNorm: y ← Norm(α y + β f(y)). The same norms in the same order, each put at the end of the step before."""
    model, T = lively(small()), 9
    c, w, ids = model.config, Weights(model.weights) / "model", prompts(model.config, 2, T)
    step = Step(positions=np.arange(T)[None].repeat(2, 0), slots=np.arange(T)[None])
    norms = [w / "layers" / i / name for i in range(4) for name in ("input_layernorm", "post_attention_layernorm")]
    first, *rest = [norm["weight"] for norm in (*norms, w / "norm")]
    y = ops.rms_norm(w["embed_tokens.weight"][ids], first, c.rms_norm_eps)
    for i, kind in enumerate(c.layer_types):
        attention, experts = w / "layers" / i / "self_attn", w / "layers" / i / "mlp"
        if kind == LIGHTNING:
            alpha, beta = c.linear_attn_alpha_factor, c.linear_attn_beta_factor
            update = lightning_self_attention(attention, y, c, i, step, None)[0]
        else:
            alpha, beta = c.full_attn_alpha_factor, c.full_attn_beta_factor
            update = softmax_self_attention(attention, y, c, step, SoftmaxMemory())
        y = ops.rms_norm(alpha * y + beta * update, rest.pop(0), c.rms_norm_eps)
        joined = c.mlp_alpha_factor * y + c.mlp_beta_factor * sparse_moe(experts, y, c)[0]
        y = ops.rms_norm(joined, rest.pop(0), c.rms_norm_eps)
    assert_same(y, model(ids, output_hidden_states=True).hidden_states[-1])


@both
@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_the_length_of_the_embedding_is_forgotten(side, size):
    """A thousand times as long or as short, the same logits; not so where the stream itself is carried."""
    for postnorm in (True, False):
        model = lively(small(postnorm=postnorm, rms_norm_eps=1e-30))
        x = model.weights["model.embed_tokens.weight"][prompts(model.config, 2, 9)]
        got, want = (side.call(model, inputs_embeds=s * x).logits for s in (size, 1.0))
        if postnorm:
            assert_same(got, want)
        else:
            assert not np.allclose(got, want, atol=0.1)


def turns(alpha: float, postnorm: bool, layers: int = 80) -> np.ndarray:
    """By how many degrees each of the 2L updates turns the stream, in a fresh model; means over tokens."""
    factors = {f"{part}_alpha_factor": alpha for part in ("full_attn", "linear_attn", "mlp")}
    config = MiniMaxConfig.tiny(layer_types=HYBRID * (layers // 8), postnorm=postnorm, **factors)
    right, found = ops.add_residual, []

    def watched(x, n, u, alpha, beta, postnorm):
        carried, joined = alpha * (n if postnorm else x), right(x, n, u, alpha, beta, postnorm)
        lengths = np.linalg.norm(carried, axis=-1) * np.linalg.norm(joined, axis=-1)
        found.append(np.degrees(np.arccos((carried * joined).sum(-1) / lengths)).mean())
        return joined

    with ops.using(add_residual=watched):
        NUMPY.call(MiniMaxForCausalLM(config, dtype=np.float64), prompts(config, 1, 64))
    return np.array(found)


def test_an_update_turns_the_stream_as_far_in_the_last_layer_as_in_the_first():
    """By 6 to 9 degrees with α = (2L)^¼; by 20 to 30 without α; by ever less where the stream itself is carried."""
    ours, without, plain = (turns(*how) for how in (((2 * 80) ** 0.25, True), (1.0, True), (1.0, False)))
    assert 6 < ours[:16].mean() < 9 and 6 < ours[-16:].mean() < 9
    assert 20 < without[:16].mean() < 30 and 20 < without[-16:].mean() < 30
    assert plain[:2].mean() > 20 and plain[-16:].mean() < 5


def test_one_norm_over_all_heads_keeps_a_loud_head_loud():
    """The heads' shares of a token stay; a norm of each head by itself would make them alike."""
    o = np.random.default_rng(0).standard_normal((2, 3, 4, 16)) * np.array([1.0, 2.0, 4.0, 8.0])[:, None]
    y = ops.inner_norm(o.reshape(2, 3, 64), np.ones(64)).reshape(o.shape)
    for b, t in np.ndindex(2, 3):
        assert_same(
            [rms(y[b, t, h]) / rms(y[b, t, 0]) for h in range(4)], [rms(o[b, t, h]) / rms(o[b, t, 0]) for h in range(4)]
        )
    assert rms(y) == pytest.approx(1, rel=1e-6)
