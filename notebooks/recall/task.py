"""Multi-query recall: N pairs of key and value, then the N keys in another order, each to be answered with its value.

    k₁ v₁ k₂ v₂ … k_N v_N  k_π(1) … k_π(N)   →   v_π(1) … v_π(N), read off at the last N positions

A key and its value are drawn anew for every sequence, so nothing but looking back helps. A guess among the 16 values
is right in 6 % of cases.
"""

from pathlib import Path

import numpy as np
from minimax_numpy import MiniMaxConfig

HERE = Path(__file__).parent
KEYS, VALUES = 64, 16  # ids 0 … 63 are keys, 64 … 79 values
LIGHTNING, SOFTMAX = "linear_attention", "full_attention"


def config(pattern):
    """A MiniMax of one layer a letter, L for lightning and S for softmax; one expert, so that nothing is routed."""
    alpha = (2 * len(pattern)) ** 0.25
    return MiniMaxConfig(
        vocab_size=KEYS + VALUES,
        hidden_size=64,
        layer_types=tuple({"L": LIGHTNING, "S": SOFTMAX}[letter] for letter in pattern),
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        rotary_dim=8,
        num_local_experts=1,
        num_experts_per_tok=1,
        intermediate_size=64,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        eos_token_id=None,
        linear_attn_alpha_factor=alpha,
        full_attn_alpha_factor=alpha,
        mlp_alpha_factor=alpha,
    )


def draw(rng, rows, pairs, keys=KEYS):
    """Draw ids [rows, 3 · pairs] and answers [rows, pairs]; no key comes twice in a row, a value may."""
    k = rng.permuted(np.tile(np.arange(keys), (rows, 1)), axis=1)[:, :pairs]
    v = rng.integers(KEYS, KEYS + VALUES, (rows, pairs))
    order = rng.permuted(np.tile(np.arange(pairs), (rows, 1)), axis=1)
    told = np.stack([k, v], axis=2).reshape(rows, 2 * pairs)
    return np.concatenate([told, np.take_along_axis(k, order, 1)], 1), np.take_along_axis(v, order, 1)


def accuracy(model, pairs, questions=2048, seed=12345):
    """The share of questions that a model of either package answers rightly, asked about N pairs at a time."""
    ids, answers = draw(np.random.default_rng(seed), questions // pairs, pairs)
    logits = model(model.as_given(ids), logits_to_keep=pairs).logits  # (B, N, V)
    return float((np.asarray(logits.argmax(-1)) == answers).mean())
