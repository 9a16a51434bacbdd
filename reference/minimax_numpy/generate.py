"""Generation: prefill the prompt, then one token at a time. Both twins choose their tokens here.

A model takes part as a function ``step(ids, mask) -> logits [B, V] of the last column`` that remembers what
it was shown.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from .config import MiniMaxConfig
from .shapes import Mask, TokenIds


def generate(
    step: Callable[[TokenIds, Mask], Float[np.ndarray, "B V"]],
    config: MiniMaxConfig,
    input_ids: TokenIds,
    attention_mask: Int[np.ndarray, "B T"] | Bool[np.ndarray, "B T"] | None = None,
    max_new_tokens: int = 20,
    eos_token_id: int | tuple[int, ...] | None = None,
) -> Int[np.ndarray, "B T_plus_new"]:
    r"""Continue each row with its likeliest tokens: $\mathrm{id}_{t+1} = \arg\max \mathrm{logits}_t$.

    Parameters
    ----------
    step : function
        Shows the model some tokens, [B, n] ids and mask, and returns the logits after the last column.
    input_ids, attention_mask : (B, T)
        Prompts, padded on either side; each row gets the tokens that it would get alone.
    max_new_tokens : int
        At most this many tokens a row.
    eos_token_id : int or several, optional
        A row ends with the first of these, and pads follow it. ``None`` takes the configuration's.

    Returns
    -------
    ids : (B, T + new)
        Prompts as given, then what was generated. Among equal logits the lowest id wins.

    Raises ValueError where a prompt has no real token or ``max_new_tokens`` is negative.
    """
    mask = np.ones(input_ids.shape, bool) if attention_mask is None else attention_mask.astype(bool)
    if not mask.any(axis=1).all():
        raise ValueError(
            f"Row {int(np.argmin(mask.any(axis=1)))} of attention_mask has no real token: an empty prompt."
        )
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be 0 or more.")
    if max_new_tokens == 0:
        return input_ids
    eos = config.eos_token_id if eos_token_id is None else eos_token_id
    stops = np.atleast_1d(() if eos is None else eos)
    known = stops[(stops >= 0) & (stops < config.vocab_size)]  # a pad is shown to the model, if behind a mask
    pad = config.pad_token_id if config.pad_token_id is not None else (known[0] if len(known) else 0)

    order = np.argsort(mask, axis=1, kind="stable")  # real tokens to the right, so the last column is real
    logits = step(np.take_along_axis(input_ids, order, axis=1), np.take_along_axis(mask, order, axis=1))
    running = np.ones(len(input_ids), bool)
    new: list[np.ndarray] = []
    while True:
        token = np.where(running, logits.argmax(axis=-1), pad).astype(input_ids.dtype)  # (B,)
        new.append(token)
        running = running & ~np.isin(token, stops)
        if len(new) == max_new_tokens or not running.any():
            return np.concatenate([input_ids, np.stack(new, axis=1)], axis=1)
        logits = step(token[:, None], running[:, None])  # a row that has ended is shown nothing
