"""What is done number by number, in fewer passes, in plain PyTorch on any device.

add_residual    u + α c, one pass where β is 1 and no product is kept
output_gate     σ(z) ⊙ y, the product where the sigmoid was
"""

from collections.abc import Callable

import torch
from torch import Tensor


def add_residual(x: Tensor, normed: Tensor, update: Tensor, alpha: float, beta: float, postnorm: bool = True) -> Tensor:
    """Compute [add_residual][minimax_torch.ops.pointwise.add_residual]."""
    return torch.add(update if beta == 1 else beta * update, normed if postnorm else x, alpha=alpha)


def output_gate(y: Tensor, x: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute [output_gate][minimax_torch.ops.pointwise.output_gate]."""
    gate = torch.sigmoid(project(x))
    return gate * y if torch.is_grad_enabled() else gate.mul_(y)
