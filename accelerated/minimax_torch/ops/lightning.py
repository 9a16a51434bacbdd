"""Twin of `minimax_numpy.ops.lightning`: same names, same order, on tensors."""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from minimax_numpy.ops import lightning as reference
from torch import Tensor

from ..kernels import choose
from ..shapes import Keys, Mask, Outputs, Queries, Slopes, State, Values


def decay_slopes(
    num_heads: int, layer_idx: int, num_layers: int, rule: str = "original", device: torch.device | None = None
) -> Slopes:
    """Twin of [decay_slopes][minimax_numpy.ops.lightning.decay_slopes], and its very numbers."""
    return _slopes(num_heads, layer_idx, num_layers, rule, device).clone()


@lru_cache(maxsize=1024)  # a decode step is short
def _slopes(num_heads: int, layer_idx: int, num_layers: int, rule: str, device: torch.device | None) -> Slopes:
    return torch.from_numpy(np.asarray(reference.decay_slopes(num_heads, layer_idx, num_layers, rule))).to(device)


def lightning_attention_direct(
    q: Queries, k: Keys, v: Values, slopes: Slopes, state: State | None = None, *, mask: Mask | None = None
) -> tuple[Outputs, State]:
    """Twin of [lightning_attention_direct][minimax_numpy.ops.lightning.lightning_attention_direct]."""
    out_dtype = q.dtype
    q, k, v, state = _prepare(q, k, v, state, mask)
    inside, from_state, to_end, whole = _decay_tables(slopes, _count(q.shape[2], mask, q.device), q.dtype)
    out = (q @ k.transpose(-1, -2) * inside) @ v + (q * from_state) @ state
    state = whole * state + (k * to_end).transpose(-1, -2) @ v
    return out.to(out_dtype), state


def lightning_attention_recurrent(
    q: Queries, k: Keys, v: Values, slopes: Slopes, state: State | None = None, *, mask: Mask | None = None
) -> tuple[Outputs, State]:
    """Twin of [lightning_attention_recurrent][minimax_numpy.ops.lightning.lightning_attention_recurrent]."""
    out_dtype, T = q.dtype, q.shape[2]
    q, k, v, S = _prepare(q, k, v, state, mask)
    keep = torch.exp(-slopes.double()).to(q.device, q.dtype)[:, None, None]  # (H, 1, 1)
    out = []
    for t in range(T):
        decayed = keep * S if mask is None else torch.where(mask[:, t, None, None, None], keep * S, S)
        S = decayed + k[:, :, t, :, None] * v[:, :, t, None, :]  # (B, H, d, e)
        out.append(torch.einsum("bhd,bhde->bhe", q[:, :, t], S))
    return (torch.stack(out, dim=2) if out else torch.empty_like(v)).to(out_dtype), S


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
    """Twin of [lightning_attention_chunked][minimax_numpy.ops.lightning.lightning_attention_chunked]."""
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; a chunk holds at least one position.")
    faster = choose.lightning(q, k, v, state, chunk)
    if faster is not None:
        return faster(q, k, v, slopes, state, mask=mask)
    out_dtype, T = q.dtype, q.shape[2]
    q, k, v, state = _prepare(q, k, v, state, mask)
    out = []
    tables = None
    for start in range(0, T, chunk):
        part = slice(start, min(start + chunk, T))
        m = part.stop - start
        if tables is None or mask is not None or m < chunk:
            tables = _decay_tables(slopes, _count(m, mask, q.device, part), q.dtype)
        inside, from_state, to_end, whole = tables
        qc, kc, vc = q[:, :, part], k[:, :, part], v[:, :, part]  # (B, H, m, ·)
        out.append((qc * from_state) @ state + (qc @ kc.transpose(-1, -2) * inside) @ vc)
        state = whole * state + (kc * to_end).transpose(-1, -2) @ vc
    return (torch.cat(out, dim=2) if out else torch.empty_like(v)).to(out_dtype), state


def _prepare(
    q: Queries, k: Keys, v: Values, state: State | None, mask: Mask | None
) -> tuple[Queries, Keys, Values, State]:
    wide = torch.promote_types(q.dtype, torch.float32)
    if k.shape != q.shape or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"q is {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: lightning attention has no grouped heads, "
            "so all three share B, H and T, and q and k share d. For softmax keys call softmax_attention."
        )
    if state is None:
        state = q.new_zeros((*q.shape[:2], q.shape[3], v.shape[3]), dtype=wide)  # (B, H, d, e)
    if mask is not None:  # by selection: 0 · NaN would be NaN
        k, v = (torch.where(mask[:, None, :, None], x, 0) for x in (k, v))
    return q.to(wide), k.to(wide), v.to(wide), state.to(wide)


def _count(T: int, mask: Mask | None, device: torch.device, part: slice = slice(None)) -> Int[Tensor, "B m"]:
    return torch.arange(1, T + 1, device=device)[None] if mask is None else mask[:, part].cumsum(dim=1)


def _decay_tables(
    slopes: Slopes, count: Int[Tensor, "B m"], dtype: torch.dtype
) -> tuple[Float[Tensor, "B H m m"], Float[Tensor, "B H m 1"], Float[Tensor, "B H m 1"], Float[Tensor, "B H 1 1"]]:
    total = count[:, -1:] if count.numel() else count.new_zeros((len(count), 1))  # (B, 1)
    lag = (count[:, :, None] - count[:, None, :]).clamp(min=0)  # (B, m, m), clipped above the diagonal

    def decay(tokens: Tensor) -> Tensor:  # (B, …) → (B, H, …)
        rate = slopes.to(count.device, torch.float64).reshape(-1, *[1] * (tokens.ndim - 1))
        return torch.exp(-rate * tokens[:, None])

    inside = decay(lag).tril()
    from_state, to_end = decay(count)[..., None], decay(total - count)[..., None]
    return inside.to(dtype), from_state.to(dtype), to_end.to(dtype), decay(total)[..., None].to(dtype)
