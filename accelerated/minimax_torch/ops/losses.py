"""Twin of `minimax_numpy.ops.losses`: same names, same order, on tensors."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from minimax_numpy.ops.losses import IGNORED
from torch import Tensor

from ..shapes import Logits, Mask, RouterLogits
from .attention import softmax


def log_softmax(logits: Float[Tensor, "*axes n"]) -> Float[Tensor, "*axes n"]:
    """Twin of [log_softmax][minimax_numpy.ops.losses.log_softmax]."""
    return F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


def cross_entropy(logits: Float[Tensor, "*axes n"], labels: Int[Tensor, "*axes"]) -> Float[Tensor, ""]:
    """Twin of [cross_entropy][minimax_numpy.ops.losses.cross_entropy]."""
    flat = log_softmax(logits).reshape(-1, logits.shape[-1])
    return F.nll_loss(flat, labels.reshape(-1).long(), ignore_index=IGNORED)


def causal_loss(logits: Logits, labels: Int[Tensor, "B T"], mask: Mask | None = None) -> Float[Tensor, ""]:
    """Twin of [causal_loss][minimax_numpy.ops.losses.causal_loss]."""
    targets = labels[:, 1:]
    if mask is not None:
        targets = torch.where(mask[:, 1:] & mask[:, :-1], targets, IGNORED)
    return cross_entropy(logits[:, :-1], targets)


def load_balancing_loss(
    router_logits: Sequence[RouterLogits], top_k: int, mask: Mask | None = None
) -> Float[Tensor, ""]:
    """Twin of [load_balancing_loss][minimax_numpy.ops.losses.load_balancing_loss]."""
    E = router_logits[0].shape[-1]
    real = slice(None) if mask is None else mask.reshape(-1)
    pooled = torch.cat([logits.reshape(-1, E)[real] for logits in router_logits])  # (tokens, E)
    chosen = pooled.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    probabilities = softmax(pooled)
    load = torch.bincount(chosen.reshape(-1), minlength=E).to(probabilities.dtype) / max(len(pooled), 1)
    return E * (load * probabilities.mean(dim=0)).sum()


def classification_loss(logits: Float[Tensor, "*rows labels"], labels: Tensor) -> Float[Tensor, ""]:
    """Twin of [classification_loss][minimax_numpy.ops.losses.classification_loss]."""
    if not labels.is_floating_point():
        return cross_entropy(logits, labels)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = labels.to(wide.dtype).reshape(wide.shape)
    if wide.shape[-1] == 1:
        return F.mse_loss(wide, labels)
    return F.binary_cross_entropy_with_logits(wide, labels)
