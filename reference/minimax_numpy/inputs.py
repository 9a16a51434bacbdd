"""What a call may look like: refuse what does not fit in one sentence, before any work is done.

Arrays and tensors are looked at alike, so both twins ask here.
"""

from .cache import Cache, check_whole
from .ops.losses import IGNORED


def check_inputs(config, input_ids, attention_mask, position_ids, inputs_embeds, cu_seqlens) -> None:
    """Refuse a call that does not fit this model."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Give input_ids or inputs_embeds, one of the two.")
    x, name = (input_ids, "input_ids") if inputs_embeds is None else (inputs_embeds, "inputs_embeds")
    if not hasattr(x, "ndim"):
        raise ValueError(f"{name} is a {type(x).__name__}; give an array, or a tensor to a model of tensors.")
    if x.ndim != (2 if inputs_embeds is None else 3):
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; it should be {'[B, T]' if x is input_ids else '[B, T, D]'}."
        )
    if 0 in x.shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: an empty prompt; give at least one token in each row.")
    if inputs_embeds is not None and x.shape[2] != config.hidden_size:
        raise ValueError(f"inputs_embeds has {x.shape[2]} channels; the model has {config.hidden_size}.")
    if input_ids is not None:
        if "int" not in str(x.dtype):
            raise ValueError(f"input_ids has dtype {x.dtype}; token ids are integers.")
        low, high = int(x.min()), int(x.max())  # as numbers: a narrow type would wrap what it is compared with
        if low < 0 or high >= config.vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(f"Token id {wrong} is out of range; this model knows 0 … {config.vocab_size - 1}.")
    for name, other in (("attention_mask", attention_mask), ("position_ids", position_ids)):
        if other is not None and tuple(other.shape) != tuple(x.shape[:2]):
            raise ValueError(
                f"{name} has shape {tuple(other.shape)} but the tokens are {tuple(x.shape[:2])}; they must agree."
            )
    if cu_seqlens is not None:
        _check_packing(x, attention_mask, cu_seqlens)


def check_cache(config, cache, x, cu_seqlens) -> None:
    """Refuse a cache that does not go with embeddings x of this model."""
    check_whole(check_kind_of_cache(cache))
    if type(cache.lengths).__module__.split(".")[0] != type(x).__module__.split(".")[0]:
        raise ValueError("The cache is of the other package: arrays and tensors do not mix.")
    if getattr(cache.lengths, "device", None) != getattr(x, "device", None):
        raise ValueError(f"The cache is on {cache.lengths.device} but this model is on {x.device}; load it there.")
    rows = x.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    if len(cache.lengths) != rows:
        raise ValueError(f"The cache holds {len(cache.lengths)} rows but this call has {rows}.")
    if cache.config != config:
        raise ValueError("The cache was made for a model of another configuration; start a new one.")
    if cache.dtype is not None and cache.dtype != x.dtype:  # None is float64 to NumPy
        raise ValueError(f"The cache holds {cache.dtype} but this model computes in {x.dtype}; start a new one.")


def check_kind_of_cache(cache) -> Cache:
    """Refuse what is no cache of ours, such as transformers' own."""
    if not isinstance(cache, Cache):
        raise ValueError(f"cache is a {type(cache).__name__}; a model goes on from a Cache of its own package.")
    return cache


def _check_packing(x, attention_mask, cu_seqlens) -> None:
    ends = [int(end) for end in cu_seqlens]
    if x.shape[0] != 1 or attention_mask is not None:
        raise ValueError(
            "Packed documents (cu_seqlens) come in one row and need no attention_mask; use one or the other."
        )
    if len(ends) < 2 or ends[0] != 0 or ends[-1] != x.shape[1] or any(a >= b for a, b in zip(ends, ends[1:])):
        raise ValueError(f"cu_seqlens is {ends}; it must rise from 0 to the number of tokens, {x.shape[1]}.")


def check_labels(head, config, labels, input_ids, inputs_embeds=None, cu_seqlens=None, **inputs) -> None:
    """Refuse labels that do not fit the head, in one sentence and before any work is done."""
    x = input_ids if inputs_embeds is None else inputs_embeds
    if labels is None or x is None or x.ndim < 2:
        return
    B, T = x.shape[:2]
    rows, V, n = B if cu_seqlens is None else len(cu_seqlens) - 1, config.vocab_size, config.num_labels
    wanted, classes = {
        "MiniMaxForCausalLM": ((B, T), V),
        "MiniMaxForSequenceClassification": ((rows,), n),
        "MiniMaxForTokenClassification": ((B, T), n),
        "MiniMaxForQuestionAnswering": ((B, 2), T),
    }[head]
    shape, whole = tuple(labels.shape), "int" in str(labels.dtype)
    if not whole and "Classification" in head and not (n == 1 and shape == wanted):
        wanted = (*wanted, n)
    elif not whole and "Classification" not in head:
        raise ValueError(f"labels have dtype {labels.dtype}; {head} takes integers.")
    if shape != wanted:
        raise ValueError(f"labels have shape {shape}; {head} takes {wanted} here.")
    wrong = [int(x) for x in labels.reshape(-1) if whole and x != IGNORED and not 0 <= x < classes]
    if wrong:
        raise ValueError(f"Label {wrong[0]} is out of range; there are 0 … {classes - 1}, and −100 for none.")


def check_kept(logits_to_keep: int, labels) -> None:
    """Refuse a negative number of logits, or fewer logits than labels."""
    if logits_to_keep < 0:
        raise ValueError(f"logits_to_keep is {logits_to_keep}; it must be 0 (all) or more.")
    if logits_to_keep and labels is not None:
        raise ValueError("labels need the logits of every token; leave logits_to_keep at 0.")


def check_lm_head(head: str, config, lm_head_dtype, stream: bool = False) -> None:
    """Refuse a type for a head that the model has not, shares with its embedding, or does not hold."""
    if lm_head_dtype is None:
        return
    if stream:
        raise ValueError("lm_head_dtype keeps the head in its own type and stream keeps nothing; give one of the two.")
    if head != "MiniMaxForCausalLM":
        raise ValueError(f"lm_head_dtype is for MiniMaxForCausalLM; {head} has no lm_head.")
    if config.tie_word_embeddings:
        raise ValueError("lm_head_dtype asks for a head in a type of its own; this model's head is its embedding.")
