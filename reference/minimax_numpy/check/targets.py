"""What can be cross-checked: a NumPy model, a torch module, a callable, a recorded trace.

A target runs one call at a time and shows each part to a watcher, ``watch(name, x) -> x``. Where the target
goes on with what the watcher hands back it is *forcible*, and can be judged part by part.
"""

import importlib
import os
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from .. import ops
from ..cache import Cache
from ..checkpoint import read_tensors
from ..extras import optional
from ..model import MiniMaxForCausalLM
from ..trace import recording
from .partial import Layers

Watch = Callable[[str, np.ndarray], np.ndarray]


class Call(NamedTuple):
    """One forward call. Calls of a phase follow one another on one cache; ``start`` begins an empty one."""

    phase: str
    input_ids: Any = None
    attention_mask: np.ndarray | None = None
    start: bool = False
    labels: np.ndarray | None = None
    cu_seqlens: np.ndarray | None = None
    logits_to_keep: int = 0
    inputs_embeds: np.ndarray | None = None  # in place of ids, where layers are run by themselves

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, T]."""
        return self.input_ids.shape if self.inputs_embeds is None else self.inputs_embeds.shape[:2]

    @property
    def rows(self) -> int:
        """How many rows the cache has: one a document, where the call is packed."""
        return self.shape[0] if self.cu_seqlens is None else len(self.cu_seqlens) - 1

    @property
    def options(self) -> dict[str, Any]:
        """What only streamed calls say."""
        if self.inputs_embeds is not None:
            return {"inputs_embeds": self.inputs_embeds}
        return {"logits_to_keep": self.logits_to_keep} if self.logits_to_keep else {}


@runtime_checkable
class Target(Protocol):
    """Anything that can be cross-checked."""

    name: str
    forcible: bool
    decodes: bool  # continues on a cache
    thorough: bool  # takes many tokens onto a cache, and packed documents
    padding: str | None  # "any", "left" (on an empty cache only) or None

    def run(self, call: Call, watch: Watch, names: Collection[str]) -> None:
        """Make a call, showing the parts called ``names`` to ``watch``."""


class NumpyTarget:
    """The reference itself, or with other ops in it."""

    forcible, decodes, thorough = True, True, True
    padding: str | None = "any"

    def __init__(
        self,
        model: MiniMaxForCausalLM | Layers,
        functions: dict[str, Callable] | None = None,
        name: str = "minimax_numpy",
    ):
        self.model, self.functions, self.name = model, functions or {}, name
        self.cache: Cache | None = None

    def run(self, call: Call, watch: Watch, names: Collection[str] = ()) -> None:
        if call.start or self.cache is None:
            self.cache = Cache(self.model.config, call.rows)
        training: dict[str, Any] = {} if call.labels is None else {"labels": call.labels, "output_router_logits": True}
        with recording(watch), ops.using(**self.functions):
            out = self.model(
                call.input_ids,
                call.attention_mask,
                cache=self.cache,
                cu_seqlens=call.cu_seqlens,
                **training,
                **call.options,
            )
        if out.logits is not None:
            watch("logits", out.logits)
        watch("cache.lengths", self.cache.lengths)


class CallableTarget:
    """A function ids → {part: array}: seen from outside, so only judged as it runs by itself."""

    forcible, decodes, thorough = False, False, False
    padding: str | None = None

    def __init__(self, function: Callable[[np.ndarray], dict[str, Any]], name: str):
        self.function, self.name = function, name

    def run(self, call: Call, watch: Watch, names: Collection[str]) -> None:
        with blaming(self.name):
            found = self.function(call.input_ids.copy())  # a copy: what it does to its argument is its own affair
        if not isinstance(found, dict):
            raise ValueError(f"{self.name} returned a {type(found).__name__}; it should return a dict of part → array.")
        for name, x in found.items():
            watch(name.replace(".block_sparse_moe", ".mlp"), np.asarray(x))


class RecordedTarget(CallableTarget):
    """A trace in a safetensors file, part → array, recorded on the ids that it holds as ``input_ids``."""

    def __init__(self, file: str | os.PathLike):
        self.parts = read_tensors(file)
        self.input_ids = self.parts.pop("input_ids", None)
        super().__init__(lambda ids: self.parts, str(file))


def as_target(
    other: Any,
    path: str | os.PathLike | None,
    dtype: str | None,
    device: str,
    stream: bool = False,
    layers: Collection[int] | None = None,
) -> Target:
    """Make a target of a model, a callable, a trace's file or a name; see `crosscheck`."""
    if isinstance(other, MiniMaxForCausalLM):
        return NumpyTarget(other, name="a NumPy model")
    if isinstance(other, str | os.PathLike):
        return _by_name(str(other), path, dtype, device, stream, layers)
    if hasattr(other, "named_modules"):
        return _hooks().TorchTarget(other, type(other).__name__)
    if isinstance(other, Target):
        return other
    if callable(other):
        return CallableTarget(other, getattr(other, "__qualname__", type(other).__name__))
    raise ValueError(f"A {type(other).__name__} cannot be cross-checked; give a model, a callable, a trace or a name.")


def _hooks():
    return optional("minimax_torch.hooks", "torch")


def _by_name(name: str, path, dtype, device, stream, layers) -> Target:
    if name.endswith(".safetensors"):
        return RecordedTarget(name)
    if name in ("minimax_torch", "transformers"):
        if path is None:
            raise ValueError(f"Against {name} the truth must be a checkpoint's folder; both sides load it.")
        if name == "minimax_torch":
            return _hooks().open_minimax_torch(path, dtype, device, stream, layers)
        return _hooks().open_transformers(path, dtype, device)
    factory = load_object(name)
    with blaming(name):
        other = factory(path)
    if hasattr(other, "named_modules"):
        target = _hooks().TorchTarget(other, name)
        target.to(dtype, device)
        return target
    if not callable(other):
        raise ValueError(f"{name} returned a {type(other).__name__}; a factory returns a torch module or a callable.")
    return CallableTarget(other, name)


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Tell a failure in somebody else's code as one sentence: whose, what and where."""
    try:
        yield
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = str(error).splitlines()[0] if str(error) else "no message"
        place = f"{Path(where.filename).name}, line {where.lineno}"
        raise ValueError(f"{name} failed with {type(error).__name__}: {told} ({place}).") from error


def load_object(name: str) -> Any:
    """The object that ``package.module:attribute`` names."""
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(
            f"{name!r} is no target; give minimax_torch, transformers, package.module:factory or a .safetensors."
        )
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"There is no module {error.name!r} to import; is it on PYTHONPATH?") from None
    except (Exception, SystemExit):
        with blaming(f"importing {module}"):
            raise
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{module} has no {attribute!r}; is the name right?")
        found = getattr(found, part)
    return found
