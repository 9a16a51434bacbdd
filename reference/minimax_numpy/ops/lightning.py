r"""Lightning attention, three ways.

$$o_t = \sum_{j \le t} e^{-s(t-j)}\,(q_t \cdot k_j)\; v_j$$

| function | keeps | work |
|---|---|---|
| `lightning_attention_direct` | T × T scores | T² (d + e) |
| `lightning_attention_recurrent` | one d × e state | T d e, in T steps |
| `lightning_attention_chunked` | one d × e state | T C (d + e) + T d e, in T / C steps |

Read them in that order: the first is the definition, the others are earned from it. There is no softmax,
no scale, no normaliser and no rotary: the decay is the position, and one number s per head sets how fast
it forgets.

All three take a state and return the next one, so a sequence may be cut anywhere. All three take a mask:
a padded position neither writes nor decays, for time is counted in real tokens.

Source: MiniMax-01, section 2.2.1; Lightning Attention-2 (arXiv 2401.04658).
"""

import numpy as np
from jaxtyping import Float, Int

from ..shapes import Keys, Mask, Outputs, Queries, Slopes, State, Values


def decay_slopes(num_heads: int, layer_idx: int, num_layers: int, rule: str = "original") -> Slopes:
    r"""Decay rate of each head in one layer, in float64.

    $$s_h = a_h\,(1 - f + 10^{-5}), \qquad a_h = 2^{-8(h+1)/H}, \qquad f = l/(L-1)$$

    Heads differ by what they forget, layers by how much they forget at all: the last layer hardly does.

    Parameters
    ----------
    num_heads : int
        H.
    layer_idx, num_layers : int
        l and L, both counted over **all** layers, softmax ones included.
    rule : {"original", "transformers"}
        Where H is not a power of two, ``original`` takes ALiBi's interleaved rates: those of the next
        lower power of two, then every second one of the next higher. ``transformers`` takes the formula
        above for any H, and divides by L − 1 + 1e-5.

    Raises ValueError for another rule.

    >>> np.exp(-decay_slopes(64, 0, 80)[[0, 31, 63]]).round(8)
    array([0.39971111, 0.93941248, 0.99610133])
    """

    def geometric(H: int) -> Slopes:
        return 2.0 ** (-8 * np.arange(1, H + 1) / H)

    if rule == "original":
        lower = 2 ** (num_heads.bit_length() - 1)  # num_heads itself where it is a power of two
        rates = np.concatenate([geometric(lower), geometric(2 * lower)[::2]])[:num_heads]
        fraction = layer_idx / (num_layers - 1) if num_layers > 1 else 0.0
    elif rule == "transformers":
        rates = geometric(num_heads)
        fraction = layer_idx / (num_layers - 1 + 1e-5)
    else:
        raise ValueError(f"The slope rule is {rule!r}; there are 'original' and 'transformers'.")
    return rates * (1 - fraction + 1e-5)


def lightning_attention_direct(
    q: Queries, k: Keys, v: Values, slopes: Slopes, state: State | None = None, *, mask: Mask | None = None
) -> tuple[Outputs, State]:
    r"""Compute the definition itself: every pair of positions, with the decay between them.

    $$o = \bigl((q k^\top) \odot M\bigr)\, v + (e^{-s t} q)\, S_0, \qquad M_{tj} = e^{-s(t-j)}\ [j \le t]$$

    Parameters
    ----------
    q, k : (B, H, T, d)
        After SiLU. Not scaled, not rotated.
    v : (B, H, T, e)
        After SiLU.
    slopes : (H,)
        From [decay_slopes][minimax_numpy.ops.lightning.decay_slopes].
    state : (B, H, d, e), optional
        What an earlier call returned; ``None`` is an empty memory.
    mask : (B, T), optional
        False at padding.

    Returns
    -------
    out : (B, H, T, e)
        In the dtype of q; unspecified but finite at padding.
    state : (B, H, d, e)
        Memory after the last real token, in at least float32.

    >>> ones = np.ones((1, 1, 4, 1))
    >>> out, state = lightning_attention_direct(ones, ones, ones, np.zeros(1))
    >>> out.ravel()
    array([1., 2., 3., 4.])
    """
    out_dtype = q.dtype
    q, k, v, state = _prepare(q, k, v, state, mask)
    inside, from_state, to_end, whole = _decay_tables(slopes, _count(q.shape[2], mask), q.dtype)
    out = (q @ k.swapaxes(-1, -2) * inside) @ v + (q * from_state) @ state
    state = whole * state + (k * to_end).swapaxes(-1, -2) @ v
    return out.astype(out_dtype), state


def lightning_attention_recurrent(
    q: Queries, k: Keys, v: Values, slopes: Slopes, state: State | None = None, *, mask: Mask | None = None
) -> tuple[Outputs, State]:
    r"""Run one position at a time: decay, write, read.

    $$S_t = e^{-s} S_{t-1} + k_t v_t^\top, \qquad o_t = S_t^\top q_t$$

    A token sees itself undecayed: the write comes before the read, and only what was already there
    decays. Parameters and returns are those of
    [lightning_attention_direct][minimax_numpy.ops.lightning.lightning_attention_direct].

    >>> ones = np.ones((1, 1, 4, 1))
    >>> out, state = lightning_attention_recurrent(ones, ones, ones, np.array([np.log(2)]))
    >>> out.ravel()
    array([1.   , 1.5  , 1.75 , 1.875])
    """
    out_dtype, T = q.dtype, q.shape[2]
    q, k, v, S = _prepare(q, k, v, state, mask)
    keep = np.exp(-slopes.astype(np.float64)).astype(q.dtype)[:, None, None]  # (H, 1, 1)
    out = np.empty(v.shape, out_dtype)
    for t in range(T):
        decayed = keep * S if mask is None else np.where(mask[:, t, None, None, None], keep * S, S)
        S = decayed + k[:, :, t, :, None] * v[:, :, t, None, :]  # (B, H, d, e)
        out[:, :, t] = np.einsum("bhd,bhde->bhe", q[:, :, t], S)
    return out, S


def lightning_attention_chunked(
    q: Queries,
    k: Keys,
    v: Values,
    slopes: Slopes,
    state: State | None = None,
    *,
    chunk: int = 256,
    mask: Mask | None = None,
) -> tuple[Outputs, State]:
    r"""Run up to C positions at a time: the direct form inside a chunk, the state between chunks.

    With local positions $r, i = 1 \dots m$ and S the state before the chunk,

    $$o = (e^{-s r} q)\, S + \bigl((q k^\top) \odot M\bigr)\, v, \qquad
    S \leftarrow e^{-s m} S + (e^{-s(m-r)} k)^\top v$$

    The last chunk may be short: its state decays by its own m, not by C. Every exponent is at most 0;
    $e^{+s r}$ would overflow. Parameters and returns are those of
    [lightning_attention_direct][minimax_numpy.ops.lightning.lightning_attention_direct], and ``chunk``
    is C. Raises ValueError where C is not positive.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; a chunk holds at least one position.")
    out_dtype, T = q.dtype, q.shape[2]
    q, k, v, state = _prepare(q, k, v, state, mask)
    out = np.empty(v.shape, out_dtype)
    tables = None
    for start in range(0, T, chunk):
        part = slice(start, min(start + chunk, T))
        m = part.stop - start
        if tables is None or mask is not None or m < chunk:
            tables = _decay_tables(slopes, _count(m, mask, part), q.dtype)
        inside, from_state, to_end, whole = tables
        qc, kc, vc = q[:, :, part], k[:, :, part], v[:, :, part]  # (B, H, m, ·)
        out[:, :, part] = (qc * from_state) @ state + (qc @ kc.swapaxes(-1, -2) * inside) @ vc
        state = whole * state + (kc * to_end).swapaxes(-1, -2) @ vc
    return out, state


def _prepare(
    q: Queries, k: Keys, v: Values, state: State | None, mask: Mask | None
) -> tuple[Queries, Keys, Values, State]:
    """Widen to at least float32, empty the state where there is none, unwrite the padding."""
    wide = np.promote_types(q.dtype, np.float32)
    if k.shape != q.shape or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"q is {q.shape}, k {k.shape}, v {v.shape}: lightning attention has no grouped heads, so all three "
            "share B, H and T, and q and k share d. For softmax keys call softmax_attention."
        )
    if state is None:
        state = np.zeros((*q.shape[:2], q.shape[3], v.shape[3]), wide)  # (B, H, d, e)
    if mask is not None:  # by selection: 0 · NaN would be NaN
        k, v = (np.where(mask[:, None, :, None], x, 0) for x in (k, v))
    q, k, v, state = (x.astype(wide, copy=False) for x in (q, k, v, state))
    return q, k, v, state


def _count(T: int, mask: Mask | None, part: slice = slice(None)) -> Int[np.ndarray, "B m"]:
    """Number the positions 1 … m in real tokens."""
    return np.arange(1, T + 1)[None] if mask is None else np.cumsum(mask[:, part], axis=1)


def _decay_tables(
    slopes: Slopes, count: Int[np.ndarray, "B m"], dtype: np.dtype
) -> tuple[
    Float[np.ndarray, "B H m m"],
    Float[np.ndarray, "B H m 1"],
    Float[np.ndarray, "B H m 1"],
    Float[np.ndarray, "B H 1 1"],
]:
    r"""Build $e^{-s(r-i)}$ (lower triangle), $e^{-sr}$, $e^{-s(m-r)}$ and $e^{-sm}$ in float64; cast once."""
    total = count[:, -1:] if count.size else np.zeros((len(count), 1), int)  # (B, 1)
    lag = np.maximum(count[:, :, None] - count[:, None, :], 0)  # (B, m, m), clipped above the diagonal

    def decay(tokens):  # (B, …) → (B, H, …)
        rate = slopes.astype(np.float64).reshape(-1, *[1] * (tokens.ndim - 1))
        return np.exp(-rate * tokens[:, None])

    inside = decay(lag) * np.tri(count.shape[1])
    from_state, to_end = decay(count)[..., None], decay(total - count)[..., None]
    return tuple(x.astype(dtype) for x in (inside, from_state, to_end, decay(total)[..., None]))
