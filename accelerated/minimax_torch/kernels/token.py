"""Decode on a CPU: a whole layer for one token, in C, compiled on this machine when it is first asked for.

At one token a row the arithmetic is nothing and reading the weights is all; what PyTorch adds is the way from one
small op to the next, some fifty of them a layer. `token.c` says the same layer once more, in one function without any.

The plain path stays the definition, and is taken whenever somebody looks or changes something: hooks on any module,
ops swapped by ``ops.using``, gradients, padding, another type or device, a layer that the function does not know.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from minimax_numpy import ops as reference
from minimax_numpy.ops.rotary import rotary_frequencies
from torch import Tensor, nn

from ..cache import LightningMemory, SoftmaxMemory
from ..layers import LightningSelfAttention
from ..quantize import Quantized
from .choose import is_plain
from .norm import INNER_EPS
from .watch import hooks_of, patched, watched

SOURCE = Path(__file__).with_name("token.c")


class Matrix(ctypes.Structure):
    """The struct of that name in token.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("data", "scales")]


class Layer(ctypes.Structure):
    """The struct of that name in token.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("D", "H", "G", "d", "R", "E", "K", "F", "postnorm", "gelu")),
        *((name, ctypes.c_float) for name in ("eps", "inner_eps", "alpha", "beta", "mlp_alpha", "mlp_beta")),
        *((name, ctypes.c_void_p) for name in ("norm1", "norm2", "inner", "keep", "frequencies")),
        *((name, Matrix) for name in ("qkv", "gate", "out", "q", "k", "v")),
        ("router", ctypes.c_void_p),
        *((name, ctypes.POINTER(Matrix)) for name in ("up", "down")),
    ]


@lru_cache(maxsize=1)
def compiled() -> ctypes.CDLL:
    """The functions of token.c, compiled for this very processor; kept for the next process in a folder of the user's.

    Raises RuntimeError, one sentence long, where there is no C compiler or it fails.
    """
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        raise RuntimeError(
            "Compiling the decode step needs a C compiler, such as gcc; install one, or do without compile_decode()."
        )
    openmp = next(iter(sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))), None)  # whose threads exist
    flags = ["-O3", "-march=native", "-fopenmp", "-fPIC"]
    build = [str(SOURCE), *flags, str(openmp), "-lm"] if openmp else [str(SOURCE), *flags, "-lm"]
    name = hashlib.sha256(f"{SOURCE.read_text()}{compiler}{build}{processor()}".encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minimax-twin"
    built = cache / f"token-{name}.so"
    if not built.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:  # whole or not at all
            done = subprocess.run(
                [compiler, "-shared", "-o", f"{folder}/token.so", *build], capture_output=True, text=True
            )
            if done.returncode or not Path(f"{folder}/token.so").is_file():
                why = (done.stderr.splitlines() or ["no reason given"])[0]
                raise RuntimeError(f"{compiler} could not compile {SOURCE.name} ({why}); do without compile_decode().")
            os.replace(f"{folder}/token.so", built)
    found = ctypes.CDLL(str(built))
    found.shared_floats.restype = found.own_floats.restype = ctypes.c_int64
    return found


def processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return ""


class Decoder:
    """The layers of a model, as token.c takes them."""

    def __init__(self, layers: nn.ModuleList):
        compiled()
        self.layers = layers
        self._look()

    def _look(self) -> None:
        self.places = [places_of(layer) for layer in self.layers]
        self.modules = list(self.layers.modules())
        self.parts = [list(m._modules.values()) for m in self.modules]
        self.hooks = hooks_of(self.modules)
        self.found: list[tuple | None] = [None] * len(self.layers)  # a layer's addresses, and the struct made of them
        self.steps = 0  # how many tokens it has decoded

    def __getstate__(self) -> dict[str, Any]:
        """Addresses are of this process and these weights: a copy finds its own."""
        return {"layers": self.layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.layers = state["layers"]
        self._look()

    def takes(self, x: Tensor, step: Any) -> bool:
        """Whether this call is one plain token a row, and nobody looks."""
        return (
            x.shape[1] == 1
            and x.dtype == torch.float32
            and x.device.type == "cpu"
            and step.mask is None
            and step.rows is None
            and not torch.is_grad_enabled()
            and not is_plain()
            and watched(self.hooks) is None
            and not any(map(patched, self.modules))
            and all(list(m._modules.values()) == parts for m, parts in zip(self.modules, self.parts, strict=True))
            and not self.layers.training
            and all(self.struct(i) is not None for i in range(len(self.layers)))
        )

    def struct(self, i: int) -> tuple[Layer, tuple[int, int], list] | None:
        """The layer's struct and how much scratch a row takes, made again where its weights have moved; None: it is of
        another kind than token.c knows."""
        parts = {field: m._parameters.get(name, m._modules.get(name)) for field, m, name in self.places[i]}
        now = [x.data_ptr() if isinstance(x, Tensor) else id(getattr(x, "codes", None)) for x in parts.values()]
        known = self.found[i]
        if known is None or known[0] != now:
            layer = self.layers[i]
            known = self.found[i] = (now, describe(layer, parts) if suits(layer, parts) else None)
        return known[1]

    def __call__(self, i: int, x: Tensor, step: Any, memory: LightningMemory | SoftmaxMemory) -> tuple[Tensor, Tensor]:
        """A layer: its output and its router's logits; the memory is advanced."""
        struct, scratch, _ = self.found[i][1]  # type: ignore[index]  # takes() has asked
        B = len(x)
        y, logits = x.clone(memory_format=torch.contiguous_format), x.new_empty(B, 1, struct.E)
        threads = torch.get_num_threads()
        room = torch.empty(B * (scratch[0] + threads * scratch[1]))
        ends = (ctypes.c_void_p(logits.data_ptr()), ctypes.c_void_p(room.data_ptr()))
        start = (ctypes.byref(struct), ctypes.c_int64(B), threads, ctypes.c_void_p(y.data_ptr()))
        if isinstance(memory, LightningMemory):
            before = None if memory.state is None else memory.state.contiguous()
            after = x.new_empty(B, struct.H, struct.d, struct.d)
            old = None if before is None else before.data_ptr()
            compiled().lightning_layer(*start, ctypes.c_void_p(old), ctypes.c_void_p(after.data_ptr()), *ends)
            memory.state = after
        else:
            slots, places, seen = memory.make_room(step.slots, y.new_empty(B, struct.G, 1, struct.d))
            positions = step.positions.expand(B, 1).contiguous()
            keys, values = slots[0], slots[1]
            numbers = [ctypes.c_void_p(n.data_ptr()) for n in (positions, places, seen)]
            capacity = ctypes.c_int64(slots.shape[3])
            store = (ctypes.c_void_p(keys.data_ptr()), ctypes.c_void_p(values.data_ptr()), capacity)
            compiled().softmax_layer(*start, *store, *numbers, *ends)
        self.steps += i == 0
        return y, logits


def places_of(layer: Any) -> list[tuple[str, nn.Module, str]]:
    """Where a layer's weights are found: the struct's field, and the module that has it by what name."""
    attention = layer.self_attn
    if isinstance(attention, LightningSelfAttention):
        names = {"qkv": "qkv_proj", "gate": "output_gate", "out": "out_proj", "inner": "norm"}
    else:
        names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
    modules = {field: getattr(attention, name) for field, name in names.items()}
    modules |= {"norm1": layer.input_layernorm, "norm2": layer.post_attention_layernorm, "router": layer.mlp.gate}
    stacks = [("up", layer.mlp.experts, "gate_up_proj"), ("down", layer.mlp.experts, "down_proj")]
    return [*((field, module, "weight") for field, module in modules.items()), *stacks]


def suits(layer: Any, parts: dict[str, Any]) -> bool:
    """Whether token.c knows this kind of layer: float32, or int8 codes; no expert shared by all."""

    def plain(x: Any) -> bool:
        if isinstance(x, Quantized):
            return x.kind == "int8" and x.dtype == torch.float32 and x.codes.device.type == "cpu"
        return isinstance(x, Tensor) and x.dtype == torch.float32 and x.is_contiguous() and x.device.type == "cpu"

    return (
        layer.config.head_dim % 4 == 0 and not layer.config.shared_intermediate_size and all(map(plain, parts.values()))
    )


def describe(layer: Any, parts: dict[str, Any]) -> tuple[Layer, tuple[int, int], list]:
    """The struct, the floats of scratch that a row needs, shared and a thread, and what must live as long as it."""
    c, kept, struct = layer.config, [], Layer()
    for name, size in zip(
        ("D", "H", "G", "d", "R", "E", "K", "F"),
        (c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.rotary_dim, c.num_local_experts,
         c.num_experts_per_tok, c.intermediate_size),
    ):  # fmt: skip
        setattr(struct, name, size)
    struct.postnorm, struct.gelu = c.postnorm, c.hidden_act == "gelu"
    struct.eps, struct.inner_eps = c.rms_norm_eps, INNER_EPS
    struct.alpha, struct.beta = layer.alpha, layer.beta
    struct.mlp_alpha, struct.mlp_beta = c.mlp_alpha_factor, c.mlp_beta_factor
    for name, x in parts.items():
        if name in ("up", "down"):
            stack = (Matrix * c.num_local_experts)(*(matrix(x[e]) for e in range(c.num_local_experts)))
            kept.append(stack)
            setattr(struct, name, ctypes.cast(stack, ctypes.POINTER(Matrix)))
        else:
            vector = name in ("norm1", "norm2", "inner", "router")
            setattr(struct, name, x.data_ptr() if vector else matrix(x))
    if "inner" in parts:
        index = layer.self_attn.layer_idx
        slopes = reference.decay_slopes(c.num_attention_heads, index, c.num_hidden_layers, c.slope_rule)
        table, field = np.exp(-slopes).astype(np.float32), "keep"
    else:
        table, field = np.ascontiguousarray(rotary_frequencies(c.rotary_dim, c.rope_theta), np.float64), "frequencies"
    kept.append(table)
    setattr(struct, field, table.ctypes.data)
    at = ctypes.byref(struct)
    return struct, (compiled().shared_floats(at), compiled().own_floats(at)), kept


def matrix(x: Tensor | Quantized) -> Matrix:
    """A matrix as token.c takes it; quantised, its codes and the scale of each row."""
    if isinstance(x, Quantized):
        return Matrix(x.codes.data_ptr(), x.scales.data_ptr())
    return Matrix(x.data_ptr(), None)
