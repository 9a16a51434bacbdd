"""MiniMax-Text-01 in PyTorch: the twin of `minimax_numpy`, name for name, on CPU and CUDA.

It alone has `hooks`, which show the parts of any torch model, `transformers_bridge`, which puts the twin in
transformers' place, `bench`, which measures both packages, and `slots`, which decodes many rows in one memory.
"""

from minimax_numpy.config import MiniMaxConfig
from minimax_numpy.model import ModelOutput

from . import ops
from .cache import Cache
from .model import (
    MiniMaxForCausalLM,
    MiniMaxForQuestionAnswering,
    MiniMaxForSequenceClassification,
    MiniMaxForTokenClassification,
    MiniMaxModel,
)

__all__ = [
    "Cache",
    "MiniMaxConfig",
    "MiniMaxForCausalLM",
    "MiniMaxForQuestionAnswering",
    "MiniMaxForSequenceClassification",
    "MiniMaxForTokenClassification",
    "MiniMaxModel",
    "ModelOutput",
    "ops",
]
