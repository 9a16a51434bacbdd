"""MiniMax-Text-01 in NumPy: the truth, to be read and trusted.

Read in this order: `shapes`, `config`, `ops`, `cache`, `layers`, `model`, `generate`. Around them stand

- `checkpoint`, `quantize`, `streaming`: weights on disk, in few bits, and larger than memory;
- `text`, `talk`, `cli`: sentences and chats before and behind the ids, and the commands;
- `counts`, `forecast`, `making`, `shipped`: how large a model is, and models to try;
- `check`: the judge of other people's models, and of the twin.
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
