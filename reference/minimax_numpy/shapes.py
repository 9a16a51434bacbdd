"""The axis letters and named arrays of this project: code, docs and figures use these and no others.

| Letter | Axis | MiniMax-Text-01 |
|---|---|---|
| ``B`` | sequences in the batch | any |
| ``T`` | positions in this call | any |
| ``J`` | key slots a query may look at, cached first | any |
| ``V`` | vocabulary | 200,064 |
| ``D`` | hidden size | 6,144 |
| ``L`` | layers | 80 |
| ``H`` | query heads | 64 |
| ``G`` | key/value heads of softmax attention | 8 |
| ``d`` | channels of a query or key head | 128 |
| ``e`` | channels of a value head | 128 |
| ``E`` | experts | 32 |
| ``K`` | experts per token | 2 |
| ``F`` | hidden size of an expert | 9,216 |
| ``C`` | positions in a chunk | 256 |
"""

import numpy as np
from jaxtyping import Bool, Float, Int

TokenIds = Int[np.ndarray, "B T"]
"""Vocabulary entries, 0 … V − 1."""

Positions = Int[np.ndarray, "B T"]
"""How many real tokens of the row come before each one, cached ones included."""

Mask = Bool[np.ndarray, "B T"]
"""True where a token is real, False where it is padding."""

Lengths = Int[np.ndarray, "B"]
"""How many real tokens each row has seen."""

Hidden = Float[np.ndarray, "B T D"]
"""The residual stream, or a normed copy of it."""

Queries = Float[np.ndarray, "B H T d"]
"""Queries: after SiLU in lightning attention, after rotary in softmax attention."""

Keys = Float[np.ndarray, "B H T d"]
"""Keys of lightning attention, after SiLU; one for each query head."""

Values = Float[np.ndarray, "B H T e"]
"""Values of lightning attention, after SiLU."""

Outputs = Float[np.ndarray, "B H T e"]
"""What each head read."""

Slopes = Float[np.ndarray, "H"]
"""Decay rate of each head: a memory shrinks by $e^{-s}$ a token."""

State = Float[np.ndarray, "B H d e"]
"""All that lightning attention remembers of the past: $S_{ij} = \\sum k_i v_j$."""

GroupedKeys = Float[np.ndarray, "B G J d"]
"""Keys of softmax attention, after rotary; G divides H."""

GroupedValues = Float[np.ndarray, "B G J e"]
"""Values of softmax attention."""

Visible = Bool[np.ndarray, "B T J"]
"""True where query t may look at key slot j."""

RouterLogits = Float[np.ndarray, "*tokens E"]
"""Scores of every expert for every token, before the softmax."""

RoutingWeights = Float[np.ndarray, "*tokens K"]
"""What each chosen expert's output is multiplied by; they sum to 1."""

RoutingIndices = Int[np.ndarray, "*tokens K"]
"""The experts chosen, best first."""

Logits = Float[np.ndarray, "B T V"]
"""Scores of every vocabulary entry for the next token, before the softmax."""
