r"""What training minimises: the next token's surprise, an even load on the experts, a task's labels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from ..shapes import Logits, Mask, RouterLogits
from .attention import softmax

IGNORED = -100  # a label that counts for nothing


def log_softmax(logits: Float[np.ndarray, "*axes n"]) -> Float[np.ndarray, "*axes n"]:
    r"""Log-probabilities, in at least float32: $x - \log \sum e^{x}$."""
    wide = logits.astype(np.promote_types(logits.dtype, np.float32), copy=False)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def cross_entropy(logits: Float[np.ndarray, "*axes n"], labels: Int[np.ndarray, "*axes"]) -> Float[np.ndarray, ""]:
    r"""Mean of $-\log p(\text{label})$ over the labels that are not −100; NaN where there are none.

    >>> float(cross_entropy(np.zeros((2, 4)), np.array([1, -100])).round(4))
    1.3863
    """
    counted = labels != IGNORED
    chosen = np.take_along_axis(log_softmax(logits), np.where(counted, labels, 0)[..., None], axis=-1)[..., 0]
    with np.errstate(invalid="ignore"):
        return np.asarray(-np.where(counted, chosen, 0).sum() / counted.sum(), chosen.dtype)


def causal_loss(logits: Logits, labels: Int[np.ndarray, "B T"], mask: Mask | None = None) -> Float[np.ndarray, ""]:
    r"""Mean surprise at the next token.

    $$-\frac{1}{N}\sum_t \log p(\mathrm{label}_{t+1} \mid \dots t)$$

    over the t where tokens t and t + 1 are both real and the label is not −100. The labels are the ids
    themselves; the shift happens here.
    """
    targets = labels[:, 1:]
    if mask is not None:
        targets = np.where(mask[:, 1:] & mask[:, :-1], targets, IGNORED)
    return cross_entropy(logits[:, :-1], targets)


def load_balancing_loss(
    router_logits: Sequence[RouterLogits], top_k: int, mask: Mask | None = None
) -> Float[np.ndarray, ""]:
    r"""Push the router towards an even load.

    $$E \sum_e f_e P_e$$

    $f_e$ is the number of assignments to expert e per token (they sum to K), $P_e$ its mean probability,
    both over **all layers and real tokens pooled**, before the one sum: a mean of per-layer losses is
    another number. An even load gives K.

    Parameters
    ----------
    router_logits : L arrays (B, T, E)
    top_k : int
        K.
    mask : (B, T), optional
        False at padding.
    """
    E = router_logits[0].shape[-1]
    real = slice(None) if mask is None else mask.ravel()
    pooled = np.concatenate([logits.reshape(-1, E)[real] for logits in router_logits])  # (tokens, E)
    chosen = np.argsort(-pooled, axis=-1, kind="stable")[:, :top_k]
    probabilities = softmax(pooled)
    load = np.bincount(chosen.ravel(), minlength=E).astype(probabilities.dtype) / max(len(pooled), 1)
    return np.asarray(E * (load * probabilities.mean(axis=0)).sum(), probabilities.dtype)


def classification_loss(logits: Float[np.ndarray, "*rows labels"], labels: np.ndarray) -> Float[np.ndarray, ""]:
    r"""Loss of a task head, chosen by its labels.

    Integer labels name a class each: cross-entropy. Float labels with several outputs say how much of each
    class: binary cross-entropy, $\mathrm{mean}(\log(1 + e^{x}) - y x)$. Float labels with one output are
    numbers to hit: mean squared error.
    """
    if np.issubdtype(labels.dtype, np.integer):
        return cross_entropy(logits, labels)
    wide = logits.astype(np.promote_types(logits.dtype, np.float32), copy=False)
    labels = labels.astype(wide.dtype).reshape(wide.shape)
    if wide.shape[-1] == 1:
        return np.asarray(((wide - labels) ** 2).mean(), wide.dtype)
    return np.asarray((np.logaddexp(wide, wide.dtype.type(0)) - labels * wide).mean(), wide.dtype)
