"""Planted defects: the mistakes that people make with this model, each as a wrong op.

A defect takes a package's ops and returns wrong ones to put in their place, `ops.using(**defect.plant(ops))`.
It wraps the right op and spoils what goes in or comes out, so the same few lines plant it in NumPy and in
PyTorch. The judge runs them all beside a model that differs, and names the one that it resembles.
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

FORMS = ("lightning_attention_direct", "lightning_attention_recurrent", "lightning_attention_chunked")


class Defect(NamedTuple):
    """A mistake: its key, what it looks like in words, the cure, and the ops that commit it."""

    key: str
    says: str
    cure: str
    plant: Callable[[ModuleType], dict[str, Callable]]


DEFECTS: dict[str, Defect] = {}


def defect(says: str, cure: str):
    """Register a function ``ops -> {name: wrong op}``."""

    def register(plant: Callable[[ModuleType], dict[str, Callable]]):
        DEFECTS[plant.__name__] = Defect(plant.__name__, says, cure, plant)
        return plant

    return register


def like(x: Any, y: Any) -> Any:
    """x in the dtype of y, in either array library."""
    return x.astype(y.dtype) if hasattr(x, "astype") else x.to(y.dtype)


def every_form(ops: ModuleType, wrap: Callable[[Callable], Callable]) -> dict[str, Callable]:
    """The same mistake in all three forms of lightning attention."""
    return {name: wrap(getattr(ops, name)) for name in FORMS}


# --- Lightning attention -------------------------------------------------------------------------------------------


@defect("the state is read before it is written", "Decay, write, then read: a token sees itself.")
def reads_before_writing(ops):
    def wrap(right):
        def wrong(q, k, v, slopes, state=None, **options):
            out, new = right(q, k, v, slopes, state, **options)
            own = (q * k).sum(-1)[..., None] * v
            return like((out - own) * (math.e**slopes)[:, None, None], out), new

        return wrong

    return every_form(ops, wrap)


@defect("the state is read between the decay and the write", "Decay, write, then read: a token sees itself.")
def reads_between_decay_and_write(ops):
    def wrap(right):
        def wrong(q, k, v, slopes, state=None, **options):
            out, new = right(q, k, v, slopes, state, **options)
            return out - (q * k).sum(-1)[..., None] * v, new

        return wrong

    return every_form(ops, wrap)


@defect("a token's own contribution is decayed", "Decay what was there before, then add k vᵀ undecayed.")
def decays_own_token(ops):
    def wrap(right):
        def wrong(q, k, v, slopes, state=None, **options):
            return right(q, k, like(v * (math.e**-slopes)[:, None, None], v), slopes, state, **options)

        return wrong

    return every_form(ops, wrap)


@defect("the state is forgotten between calls", "Hand the state that a call returned to the next one.")
def forgets_the_state(ops):
    def wrap(right):
        return lambda q, k, v, slopes, state=None, **options: right(q, k, v, slopes, None, **options)

    return every_form(ops, wrap)


@defect("the state is stored transposed", "S is [B, H, d_k, d_v]: S_ij = Σ k_i v_j.")
def transposes_the_state(ops):
    def wrap(right):
        def wrong(q, k, v, slopes, state=None, **options):
            out, new = right(q, k, v, slopes, None if state is None else state.swapaxes(-1, -2), **options)
            return out, new.swapaxes(-1, -2)

        return wrong

    return every_form(ops, wrap)


@defect("queries are scaled by 1/√d", "Lightning attention has no scale; its norm comes after.")
def scales_queries(ops):
    def wrap(right):
        return lambda q, k, v, *rest, **options: right(q * q.shape[-1] ** -0.5, k, v, *rest, **options)

    return every_form(ops, wrap)


@defect(
    "the short last chunk decays the state as a full one", "Decay by the m positions that the chunk holds, not by C."
)
def decays_the_short_chunk_as_a_full_one(ops):
    right = ops.lightning_attention_chunked

    def wrong(q, k, v, slopes, state=None, *, chunk=256, **options):
        out, new = right(q, k, v, slopes, state, chunk=chunk, **options)
        missing = -q.shape[2] % chunk
        return out, like(new * (math.e ** (-slopes * missing))[:, None, None], new)

    return {"lightning_attention_chunked": wrong}


@defect("padding decays the state", "Count time in real tokens: a padded position neither writes nor decays.")
def padding_decays(ops):
    def wrap(right):
        def wrong(q, k, v, slopes, state=None, *, mask=None, **options):
            if mask is not None:
                k, v = (x * mask[:, None, :, None] for x in (k, v))
            return right(q, k, v, slopes, state, **options)

        return wrong

    return every_form(ops, wrap)


@defect("padding is written into the state", "Leave padded keys and values out, by selection.")
def padding_writes(ops):
    def wrap(right):
        return lambda *arrays, mask=None, **options: right(*arrays, **options)

    return every_form(ops, wrap)


# --- Decay slopes --------------------------------------------------------------------------------------------------


@defect("the layer factor is l/L", "f = l/(L − 1): the last layer's factor is 1e-5.")
def divides_by_L(ops):
    right = ops.decay_slopes
    return {"decay_slopes": lambda H, layer, L, *rule, **rules: right(H, layer, L + 1, *rule, **rules)}


@defect("every layer has the slopes of layer 0", "Multiply by 1 − l/(L − 1) + 1e-5.")
def has_no_layer_factor(ops):
    right = ops.decay_slopes
    return {"decay_slopes": lambda H, layer, L, *rule, **rules: right(H, 0, L, *rule, **rules)}


@defect("the 1e-5 of the layer factor is left out", "s = a (1 − f + 1e-5): without it the last layer never forgets.")
def leaves_out_the_epsilon(ops):
    right = ops.decay_slopes

    def wrong(H, layer, L, *rule, **rules):
        return right(H, layer, L, *rule, **rules) - right(H, 0, L, *rule, **rules) * (1e-5 / (1 + 1e-5))

    return {"decay_slopes": wrong}


@defect(
    "the slopes are those of the other rule",
    "slope_rule 'original' divides by L − 1 and interleaves where H is no power of two; 'transformers' does neither.",
)
def follows_the_other_rule(ops):
    right, other = ops.decay_slopes, {"original": "transformers", "transformers": "original"}
    return {"decay_slopes": lambda H, layer, L, rule="original": right(H, layer, L, other[rule])}


@defect("the slopes are in reverse order of the heads", "Head 0 forgets fastest.")
def reverses_the_slopes(ops):
    right = ops.decay_slopes
    return {"decay_slopes": lambda H, *rest, **rules: right(H, *rest, **rules)[list(range(H))[::-1]]}


# --- The packed projection -----------------------------------------------------------------------------------------


@defect("the heads of qkv are in another order", "Head h owns rows [3dh, 3dh + 3d) of the projection.")
def reorders_the_heads(ops):
    right = ops.split_qkv

    def wrong(qkv, H, *act):
        return tuple(x[:, list(range(H))[::-1]] for x in right(qkv, H, *act))

    return {"split_qkv": wrong}


@defect("qkv is read as all q, all k, all v", "The rows are head-major: q | k | v of head 0, then of head 1, …")
def reads_qkv_contiguously(ops):
    right = ops.split_qkv

    def wrong(qkv, H, *act):
        width = qkv.shape[-1] // 3
        d = width // H
        rows = [part * width + h * d + i for h in range(H) for part in range(3) for i in range(d)]
        return right(qkv[..., rows], H, *act)

    return {"split_qkv": wrong}


@defect("q and k are exchanged", "Within a head the order is q | k | v.")
def exchanges_q_and_k(ops):
    right = ops.split_qkv

    def wrong(*arguments):
        q, k, v = right(*arguments)
        return k, q, v

    return {"split_qkv": wrong}


@defect("v is not activated", "The activation is on q, k and v alike.")
def leaves_v_raw(ops):
    right = ops.split_qkv

    def wrong(qkv, H, *act):
        q, k, v = right(qkv, H, *act)
        B, T, width = qkv.shape
        d = width // (3 * H)
        return q, k, qkv.reshape(B, T, H, 3 * d)[..., 2 * d :].swapaxes(1, 2)

    return {"split_qkv": wrong}


@defect("q and k are not activated", "The activation is on q, k and v alike.")
def leaves_q_and_k_raw(ops):
    right = ops.split_qkv

    def wrong(qkv, H, *act):
        B, T, width = qkv.shape
        d = width // (3 * H)
        raw = qkv.reshape(B, T, H, 3 * d).swapaxes(1, 2)
        return raw[..., :d], raw[..., d : 2 * d], right(qkv, H, *act)[2]

    return {"split_qkv": wrong}


# --- Rotary --------------------------------------------------------------------------------------------------------


@defect(
    "the softmax layer's rotary, on the whole head", "Rotate the first rotary_dim channels; the others pass through."
)
def rotates_the_whole_head(ops):
    right = ops.apply_rotary
    return {"apply_rotary": lambda x, t, rotary_dim, base=1e7: right(x, t, x.shape[-1], base)}


@defect("the rotary frequencies are those of the whole head", "base^(−2i/R) with R = rotary_dim, not the head's d.")
def takes_frequencies_of_the_whole_head(ops):
    right = ops.apply_rotary
    return {"apply_rotary": lambda x, t, R, base=1e7: right(x, t, R, base ** (R / x.shape[-1]))}


@defect("rotary pairs neighbouring channels", "Channel i turns with channel i + R/2.")
def interleaves_the_pairs(ops):
    right = ops.apply_rotary

    def wrong(x, t, R, base=1e7):
        rest = list(range(R, x.shape[-1]))
        to_halves = [2 * i for i in range(R // 2)] + [2 * i + 1 for i in range(R // 2)] + rest
        back = sorted(range(len(to_halves)), key=to_halves.__getitem__)
        return right(x[..., to_halves], t, R, base)[..., back]

    return {"apply_rotary": wrong}


@defect("rotary turns the wrong way", "(a cos θ − b sin θ, b cos θ + a sin θ).")
def turns_backwards(ops):
    right = ops.apply_rotary
    return {"apply_rotary": lambda x, t, R, base=1e7: right(x, -t, R, base)}


@defect("the rotary base is 10,000", "MiniMax-Text-01 has rope_theta 10,000,000; the paper's section 2 prints 10,000.")
def has_base_ten_thousand(ops):
    right = ops.apply_rotary
    return {"apply_rotary": lambda x, t, R, base=1e7: right(x, t, R, 1e4)}


@defect("positions start at 1", "The first real token is at position 0. Only cached keys show it.")
def starts_at_one(ops):
    right = ops.apply_rotary
    return {"apply_rotary": lambda x, t, *rest: right(x, t + 1, *rest)}


# --- Softmax attention ---------------------------------------------------------------------------------------------


@defect("grouped heads are tiled", "Query head h reads key head h // (H/G): repeat each key head, do not tile them.")
def tiles_grouped_heads(ops):
    right = ops.softmax_attention

    def wrong(q, k, v, *visible, **how):
        heads = [h % k.shape[1] for h in range(q.shape[1])]
        return right(q, k[:, heads], v[:, heads], *visible, **how)

    return {"softmax_attention": wrong}


@defect("scores are not scaled by 1/√d", "softmax(q kᵀ / √d).")
def leaves_out_the_scale(ops):
    right = ops.softmax_attention
    return {"softmax_attention": lambda q, *rest, **how: right(q * q.shape[-1] ** 0.5, *rest, **how)}


@defect("queries see the future", "Query t looks at key slots j ≤ t.")
def sees_the_future(ops):
    right = ops.softmax_attention

    def wrong(q, k, v, visible=None, **how):
        nothing_hidden = q[:, 0, :, :1] * 0 + k[:, 0, :, 0][:, None] * 0 == 0  # (B, T, J)
        return right(q, k, v, nothing_hidden, **how)

    return {"softmax_attention": wrong}


@defect("the sliding window is one key too wide", "t − w < j ≤ t: w keys, the query's own included.")
def widens_the_window(ops):
    right = ops.visible_keys
    return {"visible_keys": lambda t, j, window=None: right(t, j, window and window + 1)}


# --- Norms, gate, residual -----------------------------------------------------------------------------------------


@defect("the residual is the value before the norm", "x ← α · n + β · u with n = RMSNorm(x), unless postnorm is false.")
def carries_the_wrong_residual(ops):
    right = ops.add_residual
    return {"add_residual": lambda x, normed, *rest: right(normed, x, *rest)}


@defect("alpha and beta are exchanged", "Alpha scales the residual, beta the update.")
def exchanges_alpha_and_beta(ops):
    right = ops.add_residual
    return {"add_residual": lambda x, n, u, alpha, beta, *postnorm: right(x, n, u, beta, alpha, *postnorm)}


@defect("the residual is not scaled by alpha", "x ← α · n + β · u; alpha is (2L)^¼.")
def leaves_out_alpha(ops):
    right = ops.add_residual
    return {"add_residual": lambda x, n, u, alpha, *rest: right(x, n, u, 1.0, *rest)}


@defect("the inner norm is taken per head", "One RMSNorm over all H·d channels of a token.")
def norms_each_head(ops):
    inner, merge, heads = ops.inner_norm, ops.merge_heads, [4]

    def merge_heads(x):
        heads[0] = x.shape[1]
        return merge(x)

    def wrong(x, weight, *eps):
        d = x.shape[-1] // heads[0]
        unit = inner(x.reshape(x.shape[0], -1, d), weight[:d] * 0 + 1, *eps)  # (B, T·H, d)
        return unit.reshape(x.shape) * weight

    return {"inner_norm": wrong, "merge_heads": merge_heads}


@defect("the inner norm's eps is 1e-5", "It is 1e-6, fixed; rms_norm_eps does not reach it.")
def takes_the_outer_eps(ops):
    right = ops.inner_norm
    return {"inner_norm": lambda x, weight, eps=1e-6: right(x, weight, 1e-5)}


@defect("the layer norms' eps is 1e-6", "They take rms_norm_eps, 1e-5; only the inner norm has 1e-6.")
def takes_the_inner_eps(ops):
    right = ops.rms_norm
    return {"rms_norm": lambda x, weight, eps=1e-5: right(x, weight, 1e-6)}


@defect("the norms subtract the mean", "RMSNorm divides by the root mean square and subtracts nothing.")
def subtracts_the_mean(ops):
    right = ops.rms_norm
    return {"rms_norm": lambda x, *rest: right(x - x.mean(-1)[..., None], *rest)}


@defect("the gate is made from the un-normed input", "The gate reads the same normed input as q, k and v.")
def gates_by_the_unnormed_input(ops):
    norm, gate = ops.rms_norm, ops.output_gate
    before: list[Any] = []

    def rms_norm(x, *rest):
        before[:] = [x]
        return norm(x, *rest)

    return {"rms_norm": rms_norm, "output_gate": lambda y, x, project: gate(y, before[0] if before else x, project)}


@defect("the gate is a silu", "The output gate is a sigmoid, whatever hidden_act says.")
def gates_by_silu(ops):
    right = ops.output_gate
    return {"output_gate": lambda y, x, project: right(y, x, project) * project(x)}


# --- Experts -------------------------------------------------------------------------------------------------------


@defect("the chosen experts' weights are not renormalised", "Divide the K probabilities by their sum.")
def leaves_weights_unnormalised(ops):
    right = ops.route

    def wrong(logits, K):
        return right(logits, logits.shape[-1])[0][..., :K], right(logits, K)[1]

    return {"route": wrong}


@defect("the experts' weights are in the wrong order", "Weight k belongs to the k-th index.")
def exchanges_expert_weights(ops):
    right = ops.route

    def wrong(logits, K):
        weights, indices = right(logits, K)
        return weights[..., list(range(K))[::-1]], indices

    return {"route": wrong}


@defect("w1 and w3 are exchanged", "The activation is on w1's output; w3's multiplies it.")
def exchanges_w1_and_w3(ops):
    swiglu, mix = ops.swiglu, ops.mix_experts

    def exchanged(gate_up):
        F = gate_up.shape[-2] // 2
        return gate_up[..., [*range(F, 2 * F), *range(F)], :]

    return {
        "swiglu": lambda x, gate_up, *rest: swiglu(x, exchanged(gate_up), *rest),
        "mix_experts": lambda x, w, i, gate_up, *rest: mix(x, w, i, exchanged(gate_up), *rest),
    }


# --- Losses --------------------------------------------------------------------------------------------------------


@defect("the balance loss is a mean of per-layer losses", "Pool all layers and tokens, then sum once.")
def averages_the_balance_loss(ops):
    right = ops.load_balancing_loss

    def wrong(router_logits, *rest):
        losses = [right([logits], *rest) for logits in router_logits]
        return like(sum(losses[1:], losses[0]) / len(losses), losses[0])

    return {"load_balancing_loss": wrong}


@defect("the labels are not shifted", "The logits at t foretell the token at t + 1.")
def leaves_labels_unshifted(ops):
    right = ops.cross_entropy
    return {"causal_loss": lambda logits, labels, mask=None: right(logits, labels)}
