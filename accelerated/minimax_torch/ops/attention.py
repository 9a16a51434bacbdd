"""Twin of `minimax_numpy.ops.attention`: same names, same order, on tensors."""

from collections.abc import Callable
from importlib import import_module

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels import choose
from ..shapes import GroupedKeys, GroupedValues, Outputs, Positions, Queries, Visible

IMPLEMENTATIONS = ("sdpa", "eager", "flash_attention_2")


def softmax(scores: Float[Tensor, "*axes n"]) -> Float[Tensor, "*axes n"]:
    """Twin of [softmax][minimax_numpy.ops.attention.softmax]."""
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    unseen = (wide == -torch.inf).all(dim=-1, keepdim=True)
    return torch.where(unseen, 0, torch.softmax(torch.where(unseen, 0, wide), dim=-1))


def visible_keys(
    positions: Positions, key_positions: Int[Tensor, "rows J"], sliding_window: int | None = None
) -> Visible:
    """Twin of [visible_keys][minimax_numpy.ops.attention.visible_keys]."""
    t, j = positions[:, :, None], key_positions[:, None]  # (B, T, 1), (B, 1, J)
    visible = (j >= 0) & (j <= t)
    return visible if sliding_window is None else visible & (j > t - sliding_window)


def softmax_attention(
    q: Queries, k: GroupedKeys, v: GroupedValues, visible: Visible | None = None, *, implementation: str = "sdpa"
) -> Outputs:
    """Twin of [softmax_attention][minimax_numpy.ops.attention.softmax_attention].

    ``implementation`` is ``sdpa``, which calls scaled_dot_product_attention and its fused kernels; ``eager``, which
    writes the equation out and holds T × J scores; or ``flash_attention_2``, the flash-attn package, on CUDA in float16
    or bfloat16, wherever every query sees all that came before it: elsewhere (padding, windows) it goes on as ``sdpa``.
    """
    B, H, T, d = q.shape
    G, J = k.shape[1:3]
    if H % G:
        raise ValueError(f"{H} query heads cannot share {G} key heads; make H a multiple of G.")
    if implementation not in IMPLEMENTATIONS:
        check_implementation(implementation)
    if implementation == "flash_attention_2" and visible is None:
        if q.dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(f"flash_attention_2 computes in float16 or bfloat16, not in {q.dtype}; take 'sdpa'.")
        out = flash_attention()(*(x.transpose(1, 2) for x in (q, k, v)), causal=True)  # (B, T, H, d)
        return out.transpose(1, 2)
    faster = choose.softmax(q, k) if visible is None and implementation == "sdpa" else None
    if faster is not None:
        return faster(q, k, v)
    if visible is None and T > 1 and (implementation == "eager" or T < J):
        visible = torch.ones(T, J, dtype=torch.bool, device=q.device).tril(J - T).expand(B, T, J)
    if implementation == "eager":
        k, v = (x.repeat_interleave(H // G, dim=1) for x in (k, v))  # (B, H, J, d): neighbours share
        scores = q @ k.transpose(-1, -2) * d**-0.5  # (B, H, T, J)
        if visible is not None:
            scores = scores.masked_fill(~visible[:, None], -torch.inf)
        return softmax(scores).to(v.dtype) @ v
    mask = None if visible is None else visible[:, None]
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=visible is None and T > 1, enable_gqa=G != H)
    if visible is not None:  # a query that sees no key reads 0; some kernels give NaN
        out = torch.where(visible.any(dim=-1)[:, None, :, None], out, 0)
    return out


def check_implementation(name: str) -> None:
    """Refuse an implementation of softmax attention that there is not, or that is not installed."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attn_implementation is {name!r}; there are {', '.join(map(repr, IMPLEMENTATIONS))}.")
    if name == "flash_attention_2":
        flash_attention()


def flash_attention() -> Callable:
    """The flash-attn package's function; its causal mask ends at the last key, so cached keys come first."""
    try:
        return import_module("flash_attn").flash_attn_func
    except ImportError:
        raise ModuleNotFoundError(
            "flash_attention_2 needs the flash-attn package and a CUDA device: pip install flash-attn "
            "--no-build-isolation brings it; 'sdpa' needs nothing.",
            name="flash_attn",
        ) from None
