"""Which code computes an op: the plain lines of its body, or something faster that is proved to be the same.

An op asks here first. Where a kernel would have been expected and is not taken, one warning says why; the numbers are
the same. `plain` makes every op compute as it is written, which is the oracle of all that is chosen here:

    with kernels.choose.plain():
        model(ids)
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial

import torch
from torch import Tensor

WIDEST = 256  # channels of a head, in the Triton kernels
ON_GPU = (torch.bfloat16, torch.float16, torch.float32)  # float64 is for proofs, and is left to PyTorch
FOUND = {"mix_experts": ".experts", "rms_norm": ".norm", "add_residual": ".pointwise", "output_gate": ".pointwise"}
_plain = ContextVar("plain", default=False)


@contextmanager
def plain() -> Iterator[None]:
    """Compute every op as its body says, within the block; backwards that recompute must run in it, too."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def is_plain() -> bool:
    """Whether ops are to compute as they are written."""
    return _plain.get()


def lightning(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, chunk: int) -> Callable | None:
    """What computes lightning attention, called with the op's parameters but for ``chunk``; None: the op's own body."""
    if _plain.get():
        return None
    if q.is_cuda and q.dtype in ON_GPU:
        kernel = _kernel(max(q.shape[3], v.shape[3]), q.shape[2] == 1 and not wants_gradient(q, k, v, state), q.device)
        if kernel is not None:
            return kernel
    from .chunks import lightning_attention

    return partial(lightning_attention, chunk=chunk)


def lightning_step(q: Tensor, v: Tensor) -> Callable | None:
    """What takes one token and writes its state over the old one, called with the op's parameters and ``into``; None:
    the op."""
    if _plain.get() or not (q.is_cuda and q.dtype in ON_GPU):
        return None
    return _kernel(max(q.shape[3], v.shape[3]), True, q.device)


def softmax(q: Tensor, k: Tensor) -> Callable | None:
    """What attends where queries come after cached keys and each sees all of its past; None: the op's own body."""
    if _plain.get() or not q.is_cuda or not 1 < q.shape[2] < k.shape[2]:
        return None
    from .later import softmax_attention

    return softmax_attention


def softmax_step(q: Tensor, k: Tensor) -> tuple[Callable, Callable] | None:
    """What puts a token's key and value among a row's others, and what its query then attends with; None: ops do."""
    if _plain.get() or not (q.is_cuda and q.dtype in ON_GPU):
        return None
    return _softmax_step(q.shape[3], q.shape[1] // k.shape[1], q.device)


def anywhere(name: str) -> Callable | None:
    """What computes the op of that name on any device, called with its parameters; None: the op's own body."""
    return None if _plain.get() else getattr(importlib.import_module(FOUND[name], __package__), name)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for what is computed from these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


@lru_cache(maxsize=64)  # so that a warning comes once
def has_triton(what: str, device: torch.device) -> bool:
    """Whether Triton and a GPU that it compiles for are there; if not, one warning says so."""
    why = None
    if importlib.util.find_spec("triton") is None:
        why = "Triton is not installed (pip install 'minimax-twin[kernels]' brings it)"
    elif torch.cuda.get_device_capability(device) < (8, 0):
        why = "this GPU is older than Ampere, which the kernels are written for"
    if why is not None:
        warnings.warn(f"{what} in plain PyTorch, slower: {why}.", stacklevel=4)
    return why is None


@lru_cache(maxsize=64)
def _kernel(widest: int, one_token: bool, device: torch.device) -> Callable | None:
    if not has_triton("Lightning attention runs", device):
        return None
    if widest > WIDEST:
        why = f"a head has {widest} channels, and the kernel holds {WIDEST} at most"
        warnings.warn(f"Lightning attention runs in plain PyTorch, slower: {why}.", stacklevel=4)
        return None
    if one_token:
        from .decode import lightning_step

        return lightning_step
    from .segments import lightning_attention

    return lightning_attention


@lru_cache(maxsize=64)
def _softmax_step(channels: int, shared: int, device: torch.device) -> tuple[Callable, Callable] | None:
    if not has_triton("Decode attention runs", device):
        return None
    from .attend import MOST_SHARED, WIDEST, attend
    from .remember import remember

    if channels > WIDEST or shared > MOST_SHARED:
        why = f"heads have {channels} channels, {shared} to a key head, and the kernel holds {WIDEST} and {MOST_SHARED}"
        warnings.warn(f"Decode attention runs in plain PyTorch, slower: {why}.", stacklevel=4)
        return None
    return remember, attend
