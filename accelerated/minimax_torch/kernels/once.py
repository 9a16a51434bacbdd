"""A backward that is nobody's forward: where its own gradient is asked for, it says so and gives no wrong one."""

from collections.abc import Callable
from functools import wraps

import torch
from torch.autograd.function import once_differentiable


def once(backward: Callable) -> Callable:
    """Let a backward be taken once.

    PyTorch's `once_differentiable` notices a second derivative by the gradient that comes in, which needs none where
    the loss is a plain sum; the graph that is being made tells. Raises RuntimeError when that graph is walked.
    """
    inner = once_differentiable(backward)

    @wraps(backward)
    def asked(ctx, *given):
        if torch.is_grad_enabled():
            given = tuple(x if x is None or x.requires_grad else x.detach().requires_grad_() for x in given)
        return inner(ctx, *given)

    return asked
