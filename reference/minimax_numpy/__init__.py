"""MiniMax-Text-01 in NumPy: the truth, to be read and trusted.

Read in this order: `shapes`, `config`, `ops`, `cache`, `layers`, `model`.
"""

from . import ops
from .cache import Cache
from .config import MiniMaxConfig
from .model import (
    MiniMaxForCausalLM,
    MiniMaxForQuestionAnswering,
    MiniMaxForSequenceClassification,
    MiniMaxForTokenClassification,
    MiniMaxModel,
    ModelOutput,
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
