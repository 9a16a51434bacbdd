"""Twin of `minimax_numpy.ops.pointwise`: same names, same order, on tensors."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..kernels import choose
from ..shapes import Hidden


def sigmoid(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Twin of [sigmoid][minimax_numpy.ops.pointwise.sigmoid]."""
    return torch.sigmoid(x)


def silu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Twin of [silu][minimax_numpy.ops.pointwise.silu]."""
    return F.silu(x)


def gelu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Twin of [gelu][minimax_numpy.ops.pointwise.gelu]."""
    return F.gelu(x)


ACTIVATIONS = {"silu": silu, "gelu": gelu}


def activate(x: Float[Tensor, "..."], hidden_act: str = "silu") -> Float[Tensor, "..."]:
    """Twin of [activate][minimax_numpy.ops.pointwise.activate]."""
    if hidden_act not in ACTIVATIONS:
        raise ValueError(f"hidden_act is {hidden_act!r}; this model knows {' and '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[hidden_act](x)


def output_gate(
    y: Float[Tensor, "B T Hd"], x: Hidden, project: Callable[[Hidden], Float[Tensor, "B T Hd"]]
) -> Float[Tensor, "B T Hd"]:
    """Twin of [output_gate][minimax_numpy.ops.pointwise.output_gate]."""
    faster = choose.anywhere("output_gate")
    if faster is not None:
        return faster(y, x, project)
    return sigmoid(project(x)) * y


def add_residual(x: Hidden, normed: Hidden, update: Hidden, alpha: float, beta: float, postnorm: bool = True) -> Hidden:
    """Twin of [add_residual][minimax_numpy.ops.pointwise.add_residual]."""
    faster = choose.anywhere("add_residual")
    if faster is not None:
        return faster(x, normed, update, alpha, beta, postnorm)
    carried = normed if postnorm else x
    return alpha * carried + beta * update
