"""The parts of any torch model, by hooks: seen, and where wanted replaced.

A part is the output of the module of that name (the first item of a tuple), or with ``.input`` at the end, its
input. A router that returns (logits, weights, indices) in any order of the last two shows all three.
"""

import inspect
import json
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from minimax_numpy.check.targets import Call, Watch, blaming
from minimax_numpy.config import LIGHTNING, MiniMaxConfig, is_original
from minimax_numpy.extras import optional
from minimax_numpy.model import MiniMaxForCausalLM as Reference
from minimax_numpy.model import ModelOutput
from torch import Tensor, nn

from .cache import Cache
from .layers import DecoderLayer
from .model import DTYPES, MiniMaxForCausalLM, Pretrained, check_device, plan_step
from .streaming import Streamed

ALIASES = {"block_sparse_moe": "mlp"}
WRAPPERS = ("_orig_mod", "module")  # what torch.compile and DataParallel put before a path


@contextmanager
def watching(model: nn.Module, watch: Watch, names: Collection[str]) -> Iterator[None]:
    """Show the parts called ``names`` to ``watch(name, array) -> array`` and go on with what it returns."""
    modules = {part_name(path): module for path, module in model.named_modules()}
    handles = []
    for path, module in modules.items():
        if f"{path}.input" in names:
            handles.append(module.register_forward_pre_hook(_before(f"{path}.input", watch), with_kwargs=True))
        routes = f"{path}.indices" in names and f"{path}.indices" not in modules
        if path in names or routes:
            handles.append(module.register_forward_hook(_after(path, watch, routes)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def part_name(path: str) -> str:
    """A module's path in the vocabulary of transformers 5."""
    path = ".".join(ALIASES.get(step, step) for step in path.split(".") if step not in WRAPPERS)
    return path if path.startswith(("model", "lm_head")) or not path else f"model.{path}"


def _before(name: str, watch: Watch):
    def hook(module, arguments, named):
        if arguments:
            return (_show(name, arguments[0], watch), *arguments[1:]), named
        key = next((key for key, x in named.items() if isinstance(x, Tensor)), None)
        return (arguments, named) if key is None else (arguments, {**named, key: _show(name, named[key], watch)})

    return hook


def _after(name: str, watch: Watch, routes: bool):
    def hook(module, arguments, output):
        items = list(output) if isinstance(output, tuple) else [output]
        items[0] = _show(name, items[0], watch)
        if routes:
            for i, x in enumerate(items[1:], start=1):
                items[i] = _show(f"{name}.{'weights' if x.is_floating_point() else 'indices'}", x, watch)
        return tuple(items) if isinstance(output, tuple) else items[0]

    return hook


def _show(name: str, x: Tensor, watch: Watch) -> Tensor:
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    seen = wide.detach().cpu().numpy()
    back = watch(name, seen)
    if back is seen:
        return x
    if back.size != x.numel():
        return x  # another shape: recorded, and judged as such
    return torch.from_numpy(np.ascontiguousarray(back)).to(x.device, x.dtype).reshape(x.shape)


class TorchTarget:
    """Any torch module whose modules carry the names of transformers 5; our twin, with its cache and its losses."""

    forcible = True

    def __init__(self, model: nn.Module, name: str):
        self.model, self.name = model, name
        takes = inspect.signature(model.forward).parameters
        self.decodes = self.thorough = isinstance(model, Pretrained)  # our twin
        self.padding = "any" if self.decodes or "attention_mask" in takes else None
        self.cache: Cache | None = None
        if not any(part_name(path).startswith("model.layers.") for path, _ in model.named_modules()):
            raise ValueError(f"{name} has no module called model.layers.…; name its modules as transformers 5 does.")

    @property
    def dtype(self) -> str | None:
        """What its weights are in, routers and the head aside, which may be wider; the widest where they differ."""
        wide = ("gate.weight", "lm_head.weight")
        found = {x.dtype for name, x in self.model.named_parameters() if not name.endswith(wide)}
        return next((name for name in ("float64", "float32", "bfloat16", "float16") if DTYPES[name] in found), None)

    def to(self, dtype: str | None, device: str) -> None:
        """Move the model to a type and a device."""
        self.model.to(check_device(device), DTYPES[dtype] if dtype else None)

    def run(self, call: Call, watch: Watch, names: Collection[str]) -> None:
        device = next(self.model.parameters()).device
        ids = None if call.input_ids is None else torch.tensor(call.input_ids, device=device)
        mask = None if call.attention_mask is None else torch.tensor(call.attention_mask, device=device)
        with torch.no_grad(), evaluating(self.model), watching(self.model, watch, names):
            if not isinstance(self.model, Pretrained):
                with blaming(self.name):
                    out = self.model(ids, **({} if mask is None else {"attention_mask": mask.long()}))
                _show_outcome(out, watch)
                return
            if call.start or self.cache is None:
                self.cache = Cache(self.model.config, call.rows, device)
            training = {} if call.labels is None else {"labels": torch.tensor(call.labels, device=device)}
            packed = None if call.cu_seqlens is None else torch.tensor(call.cu_seqlens, device=device)
            options = {**training, **call.options}
            if call.inputs_embeds is not None:
                kept = next(x.dtype for name, x in self.model.named_parameters() if "layernorm" in name)
                options["inputs_embeds"] = torch.tensor(call.inputs_embeds, device=device).to(kept)
            out = self.model(
                ids, mask, cache=self.cache, cu_seqlens=packed, output_router_logits=bool(training), **options
            )
        _show_outcome(out, watch)
        _show("cache.lengths", self.cache.lengths, watch)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch training off, and back on where it was on."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class TransformersTarget(TorchTarget):
    """transformers' own MiniMax, with its cache: states and keys are read from it and written back to it."""

    shown_late = (".key",)  # seen in the cache after the call, too late to be replaced within it

    def __init__(self, model: Any, name: str = "transformers", notes: tuple[str, ...] = ()):
        super().__init__(model, name)
        self.decodes, self.padding, self.notes = True, "left", list(notes)
        self.thorough = False  # many tokens onto a cache go wrong in it, or raise
        self.layer_types = model.config.layer_types
        self.past: Any = None  # its cache
        self.seen = 0

    def run(self, call: Call, watch: Watch, names: Collection[str]) -> None:
        device = next(self.model.parameters()).device
        ids = torch.from_numpy(call.input_ids).to(device)
        if call.start:
            self.past, self.seen = None, 0
        T = ids.shape[1]
        mask = torch.ones(len(ids), self.seen + T, dtype=torch.long, device=device)
        if call.attention_mask is not None:
            mask = torch.from_numpy(call.attention_mask).to(device).long()
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -T:]  # left out, every decoded token is at position 0
        training = {}
        if call.labels is not None:
            training = {"labels": torch.from_numpy(call.labels).to(device), "output_router_logits": True}
        with torch.no_grad(), evaluating(self.model), watching(self.model, watch, names):
            out = self.model(
                ids, attention_mask=mask, position_ids=positions, past_key_values=self.past, use_cache=True, **training
            )
        self.past, self.seen = out.past_key_values, self.seen + T
        for i, kind in enumerate(self.layer_types):
            path = f"model.layers.{i}.self_attn"
            if kind == LIGHTNING:
                self.past.linear_cache[i] = _show(f"{path}.state", self.past.linear_cache[i], watch)
            else:
                keys = self.past.layers[i].keys  # (B, G, J, d)
                new = keys[:, :, -T:].transpose(1, 2).clone()
                keys[:, :, -T:] = _show(f"{path}.key", new, watch).transpose(1, 2)
        _show_outcome(out, watch)


def _show_outcome(out, watch: Watch) -> None:
    """Show what a call returned: its logits, and losses where it has them."""
    for name in ("aux_loss", "loss"):
        if getattr(out, name, None) is not None:
            _show(name, getattr(out, name), watch)
    logits = getattr(out, "logits", out[0] if isinstance(out, tuple) else out)
    if isinstance(logits, Tensor):
        _show("logits", logits, watch)


class Layers(Pretrained):
    """Twin of [Layers][minimax_numpy.check.partial.Layers]."""

    head = "MiniMaxForCausalLM"

    def __init__(self, path: str | os.PathLike, layers: Collection[int], dtype: torch.dtype, device: torch.device):
        self.layers = sorted(set(layers))
        super().__init__(MiniMaxConfig.from_pretrained(path), seed=None)
        self._stream(Streamed(path, self.config, self.head, dtype, self.layers, device))

    def _build(self, config: MiniMaxConfig, attn_implementation: str) -> None:
        chosen = {str(i): DecoderLayer(config, i, attn_implementation) for i in self.layers}
        self.model = nn.ModuleDict({"layers": nn.ModuleDict(chosen)})

    def forward(self, input_ids, attention_mask=None, *, inputs_embeds, cache, cu_seqlens=None, **_) -> ModelOutput:
        x = inputs_embeds
        step, lengths = plan_step(self.config, x.shape[:2], None, None, cache.lengths, None)
        with cache.advancing(lengths, x.dtype):
            for i in self.layers:
                x, _ = self.get_submodule(f"model.layers.{i}")(x, step, cache.layers[i])
        return ModelOutput(cache=cache, last_hidden_state=x)


def open_minimax_torch(
    path: str | os.PathLike,
    dtype: str | None,
    device: str,
    stream: bool = False,
    layers: Collection[int] | None = None,
) -> TorchTarget:
    """Our twin of a checkpoint, or of some layers of it, float64 unless asked otherwise."""
    kept = DTYPES[dtype or "float64"]
    if layers:
        return TorchTarget(Layers(path, layers, kept, check_device(device)), "minimax_torch")
    return TorchTarget(MiniMaxForCausalLM.from_pretrained(path, kept, device, stream=stream), "minimax_torch")


def open_transformers(path: str | os.PathLike, dtype: str | None, device: torch.device | str) -> TransformersTarget:
    """transformers' model of a checkpoint, float32 unless asked otherwise; its float64 is not one."""
    transformers = optional("transformers", "hf")
    if dtype == "float64":
        raise ValueError("transformers' float64 passes through float32; ask for float32, bfloat16 or float16.")
    device = check_device(device)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options = {"dtype": DTYPES[dtype or "float32"], "attn_implementation": "eager", "experts_implementation": "eager"}
    config, notes = MiniMaxConfig.from_pretrained(path), []
    with tempfile.TemporaryDirectory() as folder:
        spelling = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        if is_original(spelling):  # transformers does not read this spelling
            Reference.from_pretrained(path).save_pretrained(folder)
            notes.append("the checkpoint is in the original spelling; transformers was given the same one in its own")
            path = folder
        model = transformers.MiniMaxForCausalLM.from_pretrained(path, **options)
    if config.slope_rule == "original" and notes:
        notes.append("transformers takes its own slope rule: up to 1e-5 apart in a small model")
    return TransformersTarget(model.to(device), notes=tuple(notes))
