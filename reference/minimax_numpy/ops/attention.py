r"""Softmax attention: a lookup that keeps every key.

$$o_t = \sum_{j \le t} \frac{e^{q_t \cdot k_j / \sqrt d}}{\sum_{i \le t} e^{q_t \cdot k_i / \sqrt d}}\; v_j$$

Query head h reads key head ⌊h / (H/G)⌋, so neighbours share. One layer in eight of MiniMax-Text-01 is this.
"""

import numpy as np
from jaxtyping import Float, Int

from ..shapes import GroupedKeys, GroupedValues, Outputs, Positions, Queries, Visible

QUERIES_AT_A_TIME = 64  # bounds the scores held at once; the result does not depend on it


def softmax(scores: Float[np.ndarray, "*axes n"]) -> Float[np.ndarray, "*axes n"]:
    r"""Turn scores into weights that sum to 1, in at least float32; a row of nothing but $-\infty$ gives 0.

    >>> softmax(np.array([0.0, np.log(3.0), -np.inf]))
    array([0.25, 0.75, 0.  ])
    """
    wide = scores.astype(np.promote_types(scores.dtype, np.float32), copy=False)
    top = wide.max(axis=-1, keepdims=True, initial=-np.inf)
    powers = wide - np.where(top == -np.inf, 0, top).astype(wide.dtype)
    np.exp(powers, out=powers)  # in place: this is the largest array of the model
    total = powers.sum(axis=-1, keepdims=True)
    powers /= np.where(total == 0, 1, total).astype(wide.dtype)
    return powers


def visible_keys(
    positions: Positions, key_positions: Int[np.ndarray, "rows J"], sliding_window: int | None = None
) -> Visible:
    r"""Say which keys each query may look at: $t - w < j \le t$.

    Parameters
    ----------
    positions : (B, T)
        t, the number of real tokens of the row before each query's.
    key_positions : (B, J) or (1, J)
        j, the same of each key; negative in a slot that holds none.
    sliding_window : int, optional
        w, the keys a query sees, its own included. ``None`` sees them all.

    >>> visible_keys(np.array([[0, 1, 2]]), np.array([[0, 1, 2]]), sliding_window=2)[0].astype(int)
    array([[1, 0, 0],
           [1, 1, 0],
           [0, 1, 1]])
    """
    t, j = positions[:, :, None], key_positions[:, None]  # (B, T, 1), (B, 1, J)
    visible = (j >= 0) & (j <= t)
    return visible if sliding_window is None else visible & (j > t - sliding_window)


def softmax_attention(q: Queries, k: GroupedKeys, v: GroupedValues, visible: Visible | None = None) -> Outputs:
    r"""Average the values, weighted by how well their keys match the query.

    $$\mathrm{softmax}\bigl(q k^\top / \sqrt d\bigr)\, v$$

    Parameters
    ----------
    q : (B, H, T, d)
        After rotary.
    k : (B, G, J, d)
        After rotary, cached ones first. G divides H.
    v : (B, G, J, e)
    visible : (B, T, J), optional
        From [visible_keys][minimax_numpy.ops.attention.visible_keys]. ``None`` is plainly causal: the
        last T slots are this call's own.

    Returns
    -------
    out : (B, H, T, e)
        0 for a query that sees no key.

    Raises ValueError where G does not divide H.
    """
    B, H, T, d = q.shape
    G, J = k.shape[1:3]
    if H % G:
        raise ValueError(f"{H} query heads cannot share {G} key heads; make H a multiple of G.")
    wide = np.promote_types(q.dtype, np.float32)
    grouped = q.reshape(B, G, H // G, T, d).astype(wide, copy=False) * wide.type(d**-0.5)  # (B, G, H/G, T, d)
    keys, values = (x[:, :, None].astype(wide, copy=False) for x in (k, v))  # (B, G, 1, J, d)
    out = np.empty((B, G, H // G, T, v.shape[-1]), q.dtype)
    for start in range(0, T, QUERIES_AT_A_TIME):
        rows = slice(start, min(start + QUERIES_AT_A_TIME, T))
        last = J if visible is not None else J - T + rows.stop  # keys past the diagonal need no score
        if visible is None:
            seen = np.tri(rows.stop - start, last, J - T + start, dtype=bool)[None]
        else:
            seen = visible[:, rows]
        scores = grouped[..., rows, :] @ keys[..., :last, :].swapaxes(-1, -2)  # (B, G, H/G, rows, last)
        np.copyto(scores, -np.inf, where=~seen[:, None, None])
        out[..., rows, :] = softmax(scores) @ values[..., :last, :]
    return out.reshape(B, H, T, -1)
