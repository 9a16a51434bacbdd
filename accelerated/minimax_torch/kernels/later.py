"""Softmax attention of queries that come after cached keys: flash attention, and no T × J mask.

Query t of T looks at the first J − T + t + 1 of J keys: the causal mask, aligned at its *lower right* corner. Queries
that share a key head go together, so that keys are read where they lie and never repeated in memory.
"""

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from ..shapes import GroupedKeys, GroupedValues, Outputs, Queries


def softmax_attention(q: Queries, k: GroupedKeys, v: GroupedValues) -> Outputs:
    """Compute [softmax_attention][minimax_torch.ops.attention.softmax_attention] where every query sees its past."""
    share, mask = q.shape[1] // k.shape[1], causal_lower_right(q.shape[2], k.shape[2])
    found = [
        F.scaled_dot_product_attention(some, key.expand(-1, share, -1, -1), value.expand(-1, share, -1, -1), mask)
        for some, key, value in zip(q.split(share, dim=1), k.split(1, dim=1), v.split(1, dim=1), strict=True)
    ]
    return torch.cat(found, dim=1)
