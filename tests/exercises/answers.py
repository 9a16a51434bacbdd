"""Answers to the implementing exercises in other people's manners: right ones and wrong ones.

Each is written from the statement, not from the solution: loops, einsum, float32 inside. A wrong one names the
mistake that its hint must name.
"""

import numpy as np

RIGHT, WRONG = [], []


def right(number):
    """A correct variant, which must pass."""
    return lambda function: RIGHT.append((number, function)) or function


def wrong(number, says):
    """A wrong answer, whose hint must say so."""
    return lambda function: WRONG.append((number, says, function)) or function


def in_float32(function):
    """The same function, computing in float32 whatever it is given."""

    def narrow(*arguments):
        floats = [isinstance(x, np.ndarray) and x.dtype.kind == "f" for x in arguments]
        answer = function(*(x.astype(np.float32) if f else x for x, f in zip(arguments, floats)))
        return tuple(map(as_float32, answer)) if isinstance(answer, tuple) else as_float32(answer)

    return narrow


def as_float32(x):
    """Numbers in float32; indices and truths as they are."""
    return x.astype(np.float32) if x.dtype.kind == "f" else x


# --- 1 -------------------------------------------------------------------------------------------------------------


@right("1.2")
def softmax_row_by_row(scores):
    out = np.zeros_like(scores)
    for index in np.ndindex(scores.shape[:-1]):
        row = scores[index]
        if np.isfinite(row).any():
            powers = np.exp(row - row.max())
            out[index] = powers / powers.sum()
    return out


@right("1.2")
def softmax_by_logarithm(scores):
    top = np.max(scores, -1, keepdims=True)
    total = np.log(np.exp(scores - top).sum(-1, keepdims=True))
    return np.nan_to_num(np.exp(scores - top - total)).astype(scores.dtype)


@wrong("1.2", "nothing is subtracted before the exponential")
def softmax_naive(scores):
    e = np.exp(scores)
    return e / np.maximum(e.sum(-1, keepdims=True), np.finfo(scores.dtype).tiny)


@wrong("1.2", "a row of −inf becomes NaN")
def softmax_nan(scores):
    e = np.exp(scores - scores.max(-1)[..., None])
    return e / e.sum(-1)[..., None]


@wrong("1.2", "the powers are not divided by their sum")
def softmax_powers(scores):
    return np.nan_to_num(np.exp(scores - scores.max(-1, keepdims=True))).astype(scores.dtype)


def weighted(q, k, v, scale=None, visible=lambda t, j: j <= t):
    """Softmax attention of one head in two loops."""
    out = np.zeros((len(q), v.shape[1]))
    for t in range(len(q)):
        seen = [j for j in range(len(k)) if visible(t, j)]
        s = np.array([q[t] @ k[j] for j in seen]) * (scale or q.shape[1] ** -0.5)
        w = np.exp(s - s.max())
        out[t] = sum(w_j * v[j] for w_j, j in zip(w / w.sum(), seen))
    return out


@right("1.3")
def attention_in_loops(q, k, v):
    return weighted(q, k, v)


@right("1.3")
def attention_by_einsum(q, k, v):
    s = np.einsum("td,jd->tj", q, k) / q.shape[-1] ** 0.5
    s[np.triu_indices(len(q), 1)] = -np.inf
    w = np.exp(s - s.max(1, keepdims=True))
    return np.einsum("tj,je->te", w / w.sum(1, keepdims=True), v)


@wrong("1.3", "scores are not scaled by 1/√d")
def attention_unscaled(q, k, v):
    return weighted(q, k, v, scale=1.0)


@wrong("1.3", "queries see the future")
def attention_of_all(q, k, v):
    return weighted(q, k, v, visible=lambda t, j: True)


@wrong("1.3", "scores are divided by d, not by √d")
def attention_over_d(q, k, v):
    return weighted(q, k, v, scale=1 / q.shape[1])


@wrong("1.3", "a query does not see its own key")
def attention_blind_to_itself(q, k, v):
    return weighted(q, k, v, visible=lambda t, j: j < t or t == 0)


def summed(q, k, v, visible=lambda t, j: j <= t, scale=1.0, divided=False):
    """Attention without a softmax in two loops."""
    out = np.zeros((len(q), v.shape[1]), q.dtype)
    for t in range(len(q)):
        w = [scale * (q[t] @ k[j]) for j in range(len(k)) if visible(t, j)]
        out[t] = sum((w_j * v[j] for w_j, j in zip(w, range(len(k)))), np.zeros(v.shape[1], q.dtype))
        out[t] /= sum(w) if divided else 1
    return out


@right("1.5")
def linear_in_loops(q, k, v):
    return summed(q, k, v)


@right("1.5")
def linear_by_a_running_sum(q, k, v):
    return np.einsum("td,tde->te", q, np.cumsum(np.einsum("td,te->tde", k, v), axis=0))


@wrong("1.5", "scores are still scaled by 1/√d")
def linear_scaled(q, k, v):
    return summed(q, k, v, scale=q.shape[1] ** -0.5)


@wrong("1.5", "queries see the future, as they do when kᵀ v is summed over the whole text")
def linear_summed_at_once(q, k, v):
    return q @ (k.T @ v)


@wrong("1.5", "weights are still divided by their sum")
def linear_divided(q, k, v):
    return summed(q, k, v, divided=True)


@wrong("1.5", "a token does not see itself")
def linear_blind_to_itself(q, k, v):
    return summed(q, k, v, visible=lambda t, j: j < t)


# --- 2 -------------------------------------------------------------------------------------------------------------


@right("2.2")
def memory_step_by_step(k, v, s):
    S = np.zeros((k.shape[1], v.shape[1]))
    for k_t, v_t in zip(k, v):
        S = S * np.exp(-s) + np.outer(k_t, v_t)
    return S


@right("2.2")
def memory_by_einsum(k, v, s):
    return np.einsum("t,td,te->de", np.exp(-s) ** np.arange(len(k))[::-1], k, v)


@wrong("2.2", "the state is stored transposed")
def memory_transposed(k, v, s):
    return memory_step_by_step(v, k, s)


@wrong("2.2", "a token's own contribution is decayed")
def memory_decays_all(k, v, s):
    return np.exp(-s) * memory_by_einsum(k, v, s)


@wrong("2.2", "nothing is forgotten")
def memory_forever(k, v, s):
    return k.T @ v


@right("2.3")
def recurrent_in_loops(q, k, v, slopes, state):
    B, H, T, d = q.shape
    out, S = np.zeros(v.shape, q.dtype), state.copy()
    for b in range(B):
        for h in range(H):
            for t in range(T):
                S[b, h] = np.exp(-slopes[h]) * S[b, h] + np.outer(k[b, h, t], v[b, h, t])
                out[b, h, t] = q[b, h, t] @ S[b, h]
    return out, S


@right("2.3")
def recurrent_as_a_matrix(q, k, v, slopes, state):
    T = q.shape[2]
    t = np.arange(T)
    lag = np.where(t[:, None] >= t, t[:, None] - t, np.inf)
    M = np.exp(-slopes[:, None, None] * lag)
    first = np.exp(-slopes[:, None] * (t + 1))[..., None]
    out = np.einsum("bhtd,bhjd,htj,bhje->bhte", q, k, M, v) + np.einsum("bhtd,htx,bhde->bhte", q, first, state)
    last = np.einsum("htx,bhtd,bhte->bhde", np.exp(-slopes[:, None] * t[::-1])[..., None], k, v)
    new = np.exp(-slopes * T)[:, None, None] * state + last
    return out.astype(q.dtype), new.astype(q.dtype)


def stepped(q, k, v, slopes, state, read="after", write=1.0, keep=None, scale=1.0):
    """The recurrence with its parts to choose."""
    out, S = np.zeros(v.shape, q.dtype), state.copy()
    keep = (np.exp(-slopes) if keep is None else keep)[:, None, None].astype(q.dtype)
    for t in range(q.shape[2]):
        old, new = S, k[:, :, t][..., None] * v[:, :, t][..., None, :] * write
        S = (S * keep + new).astype(q.dtype)
        seen = {"before": old, "between": old * keep, "after": S}[read]
        out[:, :, t] = scale * (q[:, :, t][..., None] * seen).sum(-2)
    return out, S


@wrong("2.3", "the state is read before it is written")
def recurrent_reads_first(*arrays):
    return stepped(*arrays, read="before")


@wrong("2.3", "the state is read between the decay and the write")
def recurrent_reads_between(*arrays):
    return stepped(*arrays, read="between")


@wrong("2.3", "a token's own contribution is decayed")
def recurrent_decays_own(q, k, v, slopes, state):
    return stepped(q, k, v, slopes, state, write=np.exp(-slopes)[:, None, None])


@wrong("2.3", "queries are scaled by 1/√d")
def recurrent_scaled(q, *rest):
    return stepped(q, *rest, scale=q.shape[-1] ** -0.5)


@wrong("2.3", "the state is forgotten between calls")
def recurrent_from_nothing(q, k, v, slopes, state):
    return stepped(q, k, v, slopes, np.zeros_like(state))


@wrong("2.3", "nothing is forgotten")
def recurrent_keeps_all(q, k, v, slopes, state):
    return stepped(q, k, v, slopes, state, keep=np.ones_like(slopes))


@right("2.4")
def slopes_by_a_list(H, l, L):
    return np.array([2 ** (-8 / H) ** 1 * 2 ** (-8 * h / H) for h in range(H)]) * (1.00001 - l / (L - 1))


@right("2.4")
def slopes_by_products(H, l, L):
    return np.cumprod(np.full(H, 0.5 ** (8 / H))) * ((L - 1 - l) / (L - 1) + 1e-5)


@wrong("2.4", "the layer factor is l/L")
def slopes_over_L(H, l, L):
    return slopes_by_products(H, l, L + 1)


@wrong("2.4", "the 1e-5 of the layer factor is left out")
def slopes_without_epsilon(H, l, L):
    return np.cumprod(np.full(H, 0.5 ** (8 / H))) * (L - 1 - l) / (L - 1)


@wrong("2.4", "heads are counted from 0 in the exponent")
def slopes_from_one(H, l, L):
    return slopes_by_products(H, l, L) * 2 ** (8 / H)


@wrong("2.4", "the slopes are in reverse order of the heads")
def slopes_backwards(H, l, L):
    return slopes_by_products(H, l, L)[::-1]


# --- 3 -------------------------------------------------------------------------------------------------------------


def matrix(slopes, m, entry):
    """The decay matrix, entry by entry."""
    return np.array([[[entry(s, r, i) for i in range(m)] for r in range(m)] for s in slopes])


@right("3.3")
def matrix_by_entries(slopes, m):
    return matrix(slopes, m, lambda s, r, i: np.exp(-s * (r - i)) if i <= r else 0.0)


@right("3.3")
def matrix_with_infinity(slopes, m):
    r = np.arange(m)
    lag = np.where(r[:, None] >= r[None], r[:, None] - r[None], np.inf)
    return np.exp(np.multiply.outer(-np.asarray(slopes), lag))


@wrong("3.3", "positions after the query are not zeroed")
def matrix_full(slopes, m):
    return matrix(slopes, m, lambda s, r, i: np.exp(-s * max(r - i, 0)))


@wrong("3.3", "the diagonal decays")
def matrix_late(slopes, m):
    return matrix(slopes, m, lambda s, r, i: np.exp(-s * (r - i + 1)) if i <= r else 0.0)


@wrong("3.3", "rows and columns are exchanged")
def matrix_upside_down(slopes, m):
    return matrix(slopes, m, lambda s, r, i: np.exp(-s * (i - r)) if i >= r else 0.0)


@right("3.4")
def chunked_by_the_recurrence(q, k, v, slopes, state, chunk):
    return stepped(q, k, v, slopes, state)


def in_chunks(q, k, v, slopes, state, chunk, one):
    """Cut, run ``one`` on each chunk with the state before it, join."""
    outs, S = [], state
    for a in range(0, q.shape[2], chunk):
        o, S = one(q[:, :, a : a + chunk], k[:, :, a : a + chunk], v[:, :, a : a + chunk], slopes, S)
        outs.append(o)
    return np.concatenate(outs, axis=2), S


@right("3.4")
def chunked_by_einsum(q, k, v, slopes, state, chunk):
    return in_chunks(q, k, v, slopes, state, chunk, recurrent_as_a_matrix)


@wrong("3.4", "the short last chunk decays the state as a full one")
def chunked_too_long(q, k, v, slopes, state, chunk):
    def one(q, k, v, slopes, S):
        out, new = recurrent_as_a_matrix(q, k, v, slopes, S)
        m = q.shape[2]
        apart = (np.exp(-slopes * chunk) - np.exp(-slopes * m))[:, None, None]
        return out, (new + apart * S).astype(q.dtype)

    return in_chunks(q, k, v, slopes, state, chunk, one)


@wrong("3.4", "what came before the chunk is not read")
def chunked_without_the_past(q, k, v, slopes, state, chunk):
    def one(q, k, v, slopes, S):
        out, new = recurrent_as_a_matrix(q, k, v, slopes, S)
        return recurrent_as_a_matrix(q, k, v, slopes, 0 * S)[0], new

    return in_chunks(q, k, v, slopes, state, chunk, one)


@wrong("3.4", "r counts from 0 where the state is read")
def chunked_reads_early(q, k, v, slopes, state, chunk):
    def one(q, k, v, slopes, S):
        new = recurrent_as_a_matrix(q, k, v, slopes, S)[1]
        return recurrent_as_a_matrix(q, k, v, slopes, S * np.exp(slopes)[:, None, None])[0], new

    return in_chunks(q, k, v, slopes, state, chunk, one)


@wrong("3.4", "the state is forgotten between calls")
def chunked_from_nothing(q, k, v, slopes, state, chunk):
    return chunked_by_einsum(q, k, v, slopes, 0 * state, chunk)


# --- 4 -------------------------------------------------------------------------------------------------------------


def turned(x, positions, pairs, frequencies):
    """Turn pairs of channels, one by one."""
    out = x.copy()
    for (a, b), f in zip(pairs, frequencies):
        angle = positions[:, None, :] * f
        out[..., a] = x[..., a] * np.cos(angle) - x[..., b] * np.sin(angle)
        out[..., b] = x[..., b] * np.cos(angle) + x[..., a] * np.sin(angle)
    return out


def halves(R):
    return [(i, i + R // 2) for i in range(R // 2)]


@right("4.2")
def rotary_pair_by_pair(x, positions, R, base):
    return turned(x, positions, halves(R), [base ** (-2 * i / R) for i in range(R // 2)])


@right("4.2")
def rotary_in_complex_numbers(x, positions, R, base):
    z = x[..., : R // 2] + 1j * x[..., R // 2 : R]
    z = z * np.exp(1j * positions[:, None, :, None] * base ** (-np.arange(0, R, 2) / R))
    return np.concatenate([z.real, z.imag, x[..., R:]], -1)


@wrong("4.2", "rotary pairs neighbouring channels")
def rotary_of_neighbours(x, positions, R, base):
    pairs = [(2 * i, 2 * i + 1) for i in range(R // 2)]
    return turned(x, positions, pairs, [base ** (-2 * i / R) for i in range(R // 2)])


@wrong("4.2", "the rotary frequencies are those of the whole head")
def rotary_of_a_slice(x, positions, R, base):
    return turned(x, positions, halves(R), [base ** (-2 * i / x.shape[-1]) for i in range(R // 2)])


@wrong("4.2", "rotary turns the wrong way")
def rotary_backwards(x, positions, R, base):
    return rotary_pair_by_pair(x, -positions, R, base)


@wrong("4.2", "positions start at 1")
def rotary_from_one(x, positions, R, base):
    return rotary_in_complex_numbers(x, positions + 1, R, base)


def by_heads(q, k, v, which, visible):
    """Grouped attention, head by head."""
    B, H, T, _ = q.shape
    out = np.zeros((B, H, T, v.shape[-1]))
    for b in range(B):
        for h in range(H):
            g = which(h, H, k.shape[1])
            out[b, h] = weighted(q[b, h], k[b, g], v[b, g], visible=visible(k.shape[2] - T))
    return out


@right("4.3")
def grouped_in_loops(q, k, v):
    return by_heads(q, k, v, lambda h, H, G: h // (H // G), lambda past: lambda t, j: j <= past + t)


@right("4.3")
def grouped_by_einsum(q, k, v):
    B, H, T, d = q.shape
    G, J = k.shape[1:3]
    s = np.einsum("bgrtd,bgjd->bgrtj", q.reshape(B, G, H // G, T, d), k) / d**0.5
    s[..., np.arange(J) > np.arange(J - T, J)[:, None]] = -np.inf
    w = np.exp(s - s.max(-1, keepdims=True))
    return np.einsum("bgrtj,bgje->bgrte", w / w.sum(-1, keepdims=True), v).reshape(B, H, T, -1)


@wrong("4.3", "grouped heads are tiled")
def grouped_round_robin(q, k, v):
    return by_heads(q, k, v, lambda h, H, G: h % G, lambda past: lambda t, j: j <= past + t)


@wrong("4.3", "queries see the future")
def grouped_of_all(q, k, v):
    return by_heads(q, k, v, lambda h, H, G: h // (H // G), lambda past: lambda t, j: True)


@wrong("4.3", "the triangle starts at the first slot, not at the queries' own")
def grouped_from_slot_zero(q, k, v):
    return by_heads(q, k, v, lambda h, H, G: h // (H // G), lambda past: lambda t, j: j <= t)


# --- 5 -------------------------------------------------------------------------------------------------------------


@right("5.1")
def norm_by_length(x, weight, eps):
    n = x.shape[-1]
    length = np.sqrt(np.einsum("...n,...n->...", x, x) + n * eps)[..., None]
    return (weight * x * n**0.5 / length).astype(x.dtype)


@right("5.1")
def norm_vector_by_vector(x, weight, eps):
    out = np.empty_like(x)
    for index in np.ndindex(x.shape[:-1]):
        out[index] = x[index] * weight / (np.mean(x[index] ** 2) + eps) ** 0.5
    return out


@wrong("5.1", "the norms subtract the mean")
def norm_like_a_layer_norm(x, weight, eps):
    return norm_by_length(x - x.mean(-1, keepdims=True), weight, eps)


@wrong("5.1", "eps is added outside the root")
def norm_with_eps_outside(x, weight, eps):
    return (weight * x / ((x**2).mean(-1, keepdims=True) ** 0.5 + eps)).astype(x.dtype)


@wrong("5.1", "the sum of squares is taken, not their mean")
def norm_by_sum(x, weight, eps):
    return (weight * x / ((x**2).sum(-1, keepdims=True) + eps) ** 0.5).astype(x.dtype)


@wrong("5.1", "eps is left out")
def norm_without_eps(x, weight, eps):
    return norm_by_length(x, weight, 0.0)


@right("5.2")
def inner_by_concatenation(out, weight):
    return norm_by_length(np.concatenate([out[:, h] for h in range(out.shape[1])], axis=-1), weight, 1e-6)


@right("5.2")
def inner_in_place_of_heads(out, weight):
    B, H, T, d = out.shape
    scale = np.sqrt((out**2).mean((1, 3), keepdims=True) + 1e-6)
    return np.einsum("bhtd,hd->bthd", out / scale, weight.reshape(H, d)).reshape(B, T, H * d)


@wrong("5.2", "the inner norm is taken per head")
def inner_by_head(out, weight):
    parts = [norm_by_length(out[:, h], np.ones(out.shape[-1]), 1e-6) for h in range(out.shape[1])]
    return weight * np.concatenate(parts, axis=-1)


@wrong("5.2", "the inner norm's eps is 1e-5")
def inner_with_the_other_eps(out, weight):
    return norm_by_length(np.concatenate(list(out.swapaxes(0, 1)), axis=-1), weight, 1e-5)


@wrong("5.2", "heads are merged without putting time first")
def inner_reshaped(out, weight):
    B, H, T, d = out.shape
    return norm_by_length(out.reshape(B, T, H * d), weight, 1e-6)


@right("5.3")
def residual_by_norm(x, weight, update, alpha, beta):
    return beta * update + norm_by_length(x, alpha * weight, 1e-5)


@right("5.3")
def residual_row_by_row(x, weight, update, alpha, beta):
    return alpha * norm_vector_by_vector(x, weight, 1e-5) + beta * update


@wrong("5.3", "the residual is the value before the norm")
def residual_of_x(x, weight, update, alpha, beta):
    return x * alpha + update * beta


@wrong("5.3", "alpha and beta are exchanged")
def residual_exchanged(x, weight, update, alpha, beta):
    return residual_by_norm(x, weight, update, beta, alpha)


@wrong("5.3", "the residual is not scaled by alpha")
def residual_unscaled(x, weight, update, alpha, beta):
    return residual_by_norm(x, weight, update, 1.0, beta)


@right("5.4")
def gate_by_tanh(y, x, weight):
    return y * (0.5 + 0.5 * np.tanh(np.einsum("btd,nd->btn", x, weight) / 2))


@right("5.4")
def gate_by_logarithm(y, x, weight):
    return y * np.exp(-np.logaddexp(0, -np.matmul(x, weight.T)))


@wrong("5.4", "the gate is a silu")
def gate_silu(y, x, weight):
    return gate_by_tanh(y, x, weight) * (x @ weight.T)


@wrong("5.4", "the gate is added")
def gate_added(y, x, weight):
    return y + gate_by_tanh(np.ones_like(y), x, weight)


@wrong("5.4", "the gate is upside down")
def gate_upside_down(y, x, weight):
    return gate_by_tanh(y, -x, weight)


# --- 6 -------------------------------------------------------------------------------------------------------------


@right("6.1")
def route_by_the_chosen(logits, K):
    indices = np.argsort(-logits, -1, kind="stable")[..., :K]
    chosen = np.take_along_axis(logits, indices, -1)
    powers = np.exp(chosen - chosen[..., :1])
    return powers / powers.sum(-1, keepdims=True), indices


@right("6.1")
def route_token_by_token(logits, K):
    weights, indices = np.empty((*logits.shape[:-1], K)), np.empty((*logits.shape[:-1], K), int)
    for at in np.ndindex(logits.shape[:-1]):
        order = sorted(range(logits.shape[-1]), key=lambda e: (-logits[at][e], e))[:K]
        w = np.exp(logits[at][order] - logits[at].max())
        weights[at], indices[at] = w / w.sum(), order
    return weights, indices


@wrong("6.1", "the chosen experts' weights are not renormalised")
def route_unnormalised(logits, K):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    indices = np.argsort(-logits, -1, kind="stable")[..., :K]
    return np.take_along_axis(p / p.sum(-1, keepdims=True), indices, -1), indices


@wrong("6.1", "the best expert stands last")
def route_best_last(logits, K):
    order = np.argsort(logits, -1, kind="stable")[..., -K:]
    chosen = np.take_along_axis(logits, order, -1)
    powers = np.exp(chosen - chosen.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True), order


@wrong("6.1", "ties go to the higher index")
def route_ties_up(logits, K):
    weights, indices = route_by_the_chosen(logits[..., ::-1], K)
    return weights, logits.shape[-1] - 1 - indices


def mixed(x, weights, indices, w1, w3, w2, choices=None):
    """Every expert on every token, then the chosen ones picked out."""
    gate, up = np.einsum("efd,td->tef", w1, x), np.einsum("efd,td->tef", w3, x)
    every = np.einsum("edf,tef->ted", w2, gate / (1 + np.exp(-gate)) * up)
    chosen = np.take_along_axis(every, indices[..., None], axis=1)
    return (weights[..., None] * chosen)[:, :choices].sum(1)


@right("6.2")
def mix_by_einsum(*arguments):
    return mixed(*arguments)


@right("6.2")
def mix_expert_by_expert(x, weights, indices, w1, w3, w2):
    y = np.zeros_like(x)
    for e in range(len(w1)):
        token, k = np.nonzero(indices == e)
        a = x[token] @ w1[e].T
        y[token] += weights[token, k][:, None] * ((a * 0.5 * (1 + np.tanh(a / 2)) * (x[token] @ w3[e].T)) @ w2[e].T)
    return y


@wrong("6.2", "w1 and w3 are exchanged")
def mix_exchanged(x, weights, indices, w1, w3, w2):
    return mixed(x, weights, indices, w3, w1, w2)


@wrong("6.2", "the experts' weights are in the wrong order")
def mix_misweighted(x, weights, *rest):
    return mixed(x, weights[:, ::-1], *rest)


@wrong("6.2", "the router's weights are not applied")
def mix_unweighted(x, weights, *rest):
    return mixed(x, np.ones_like(weights), *rest)


@wrong("6.2", "only the first choice speaks")
def mix_first(*arguments):
    return mixed(*arguments, choices=1)


# --- 7 -------------------------------------------------------------------------------------------------------------


def seen(positions, key_positions, window, rule):
    """The table, entry by entry."""
    B, T, J = *positions.shape, key_positions.shape[1]
    keys = np.broadcast_to(key_positions, (B, J))
    entry = [[[rule(positions[b, t], keys[b, j], window) for j in range(J)] for t in range(T)] for b in range(B)]
    return np.array(entry, bool)


@right("7.3")
def visible_by_entries(*arguments):
    return seen(*arguments, lambda t, j, w: 0 <= j <= t and (w is None or t - j < w))


@right("7.3")
def visible_by_age(positions, key_positions, window):
    age = positions[..., None] - key_positions[:, None, :]
    limit = window if window is not None else positions.max() + 1
    return (age >= 0) & (age < limit) & (key_positions >= 0)[:, None, :]


@wrong("7.3", "the sliding window is one key too wide")
def visible_too_wide(*arguments):
    return seen(*arguments, lambda t, j, w: 0 <= j <= t and (w is None or t - j <= w))


@wrong("7.3", "empty slots are seen")
def visible_empty(*arguments):
    return seen(*arguments, lambda t, j, w: j <= t and (w is None or t - j < w))


@wrong("7.3", "a query does not see its own key")
def visible_others(*arguments):
    return seen(*arguments, lambda t, j, w: 0 <= j < t and (w is None or t - j < w))


def padded(q, k, v, slopes, state, mask, decays=False, writes=False, product=False):
    """Row by row and token by token."""
    out, S = np.zeros(v.shape, q.dtype), state.copy()
    for b, t in np.ndindex(mask.shape):
        if mask[b, t] or decays:
            S[b] = S[b] * np.exp(-slopes)[:, None, None]
        if mask[b, t] or writes or product:
            new = k[b, :, t, :, None] * v[b, :, t, None, :]
            S[b] += new * mask[b, t] if product else new
        out[b, :, t] = np.einsum("hd,hde->he", q[b, :, t], S[b])
    return out, S


@right("7.4")
def masked_row_by_row(*arguments):
    return padded(*arguments)


@right("7.4")
def masked_by_squeezing(q, k, v, slopes, state, mask):
    out, S = np.zeros(v.shape), np.empty_like(state)
    for b, real in enumerate(mask):
        x = (a[b : b + 1][:, :, real] for a in (q, k, v))
        out[b][:, real], S[b] = (y[0] for y in recurrent_as_a_matrix(*x, slopes, state[b : b + 1]))
    return out, S


@wrong("7.4", "padding decays the state")
def masked_decays(*arguments):
    return padded(*arguments, decays=True)


@wrong("7.4", "padding is written into the state")
def masked_not_at_all(*arguments):
    return padded(*arguments, decays=True, writes=True)


@wrong("7.4", "what is padded is multiplied by 0, and 0 · NaN is NaN")
def masked_by_product(*arguments):
    return padded(*arguments, product=True)


# --- 8 -------------------------------------------------------------------------------------------------------------


@right("8.3")
def bfloat16_by_rounding(x):
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.round(mantissa * 256) / 256, exponent).astype(np.float32)  # np.round is to even


@right("8.3")
def bfloat16_by_the_nearer(x):
    low = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    high = ((x.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32)
    down, up = np.abs(x.astype(np.float64) - low), np.abs(high.astype(np.float64) - x)
    even = (x.view(np.uint32) >> 16) % 2 == 0
    return np.where((down < up) | ((down == up) & even), low, high)


@wrong("8.3", "the lower bits are cut off, which rounds towards zero")
def bfloat16_cut(x):
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.trunc(mantissa * 256) / 256, exponent).astype(np.float32)


@wrong("8.3", "ties go away from zero")
def bfloat16_half_up(x):
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.sign(mantissa) * np.floor(np.abs(mantissa) * 256 + 0.5) / 256, exponent).astype(np.float32)


@wrong("8.3", "it is rounded to float16")
def bfloat16_as_float16(x):
    return np.asarray(x, np.half).astype(np.float32)
