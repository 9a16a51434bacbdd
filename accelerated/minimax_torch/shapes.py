"""Twin of `minimax_numpy.shapes`: the same letters and names, on tensors."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

TokenIds = Int[Tensor, "B T"]
"""Vocabulary entries, 0 … V − 1."""

Positions = Int[Tensor, "B T"]
"""How many real tokens of the row come before each one, cached ones included."""

Mask = Bool[Tensor, "B T"]
"""True where a token is real, False where it is padding."""

Lengths = Int[Tensor, "B"]
"""How many real tokens each row has seen."""

Hidden = Float[Tensor, "B T D"]
"""The residual stream, or a normed copy of it."""

Queries = Float[Tensor, "B H T d"]
"""Queries: after SiLU in lightning attention, after rotary in softmax attention."""

Keys = Float[Tensor, "B H T d"]
"""Keys of lightning attention, after SiLU; one for each query head."""

Values = Float[Tensor, "B H T e"]
"""Values of lightning attention, after SiLU."""

Outputs = Float[Tensor, "B H T e"]
"""What each head read."""

Slopes = Float[Tensor, "H"]
"""Decay rate of each head: a memory shrinks by $e^{-s}$ a token."""

State = Float[Tensor, "B H d e"]
"""All that lightning attention remembers of the past: $S_{ij} = \\sum k_i v_j$."""

GroupedKeys = Float[Tensor, "B G J d"]
"""Keys of softmax attention, after rotary; G divides H."""

GroupedValues = Float[Tensor, "B G J e"]
"""Values of softmax attention."""

Visible = Bool[Tensor, "B T J"]
"""True where query t may look at key slot j."""

RouterLogits = Float[Tensor, "*tokens E"]
"""Scores of every expert for every token, before the softmax."""

RoutingWeights = Float[Tensor, "*tokens K"]
"""What each chosen expert's output is multiplied by; they sum to 1."""

RoutingIndices = Int[Tensor, "*tokens K"]
"""The experts chosen, best first."""

Logits = Float[Tensor, "B T V"]
"""Scores of every vocabulary entry for the next token, before the softmax."""
