"""The twins read alike: the same modules, the same names in the same order, the same parameters.

A reader who knows one file knows its twin. Whatever only one side has is listed here, and nowhere else.
"""

import ast
import inspect
from importlib import import_module
from pathlib import Path

import minimax_numpy
import minimax_torch
import pytest

# Modules that one side has alone: the truth's files and its judge; what only the fast side needs. See design.md.
ONLY_NUMPY = {
    "cache_file",
    "config",
    "checkpoint",
    "trace",
    "generate",
    "check",
    "grad",
    "cli",
    "counts",
    "extras",
    "inputs",
    "shipped",
    "text",
    "talk",
    "making",
    "forecast",
}
ONLY_TORCH = {"hooks", "kernels", "train", "bench", "parallel", "slots", "transformers_bridge"}
# Names that one side has alone, and names of the reference's that the twin uses as they are.
EXTRA = {
    "cache": {"to_bits"},  # bfloat16
    "layers": {"Weights", "RMSNorm", "InnerNorm", "TopKRouter", "Experts"},  # a path; modules for what it finds
    "model": {"Pretrained", "check_device", "load_weights", "read_tensor", "anew"},  # types, devices, checkpointing
    "quantize": {"KINDS", "is_quantized", "check_kind", "bound_of", "table", "replace_parameter"},  # names; modules
    "ops": {"swapped"},  # the mechanism behind both `using`
    "streaming": {"BLOCK", "Transposed", "NAMES", "TYPES", "all_finite", "check_finite"},  # F.linear asks, not `.T`
    # fused kernels, in place of a loop over queries
    "ops.attention": {"QUERIES_AT_A_TIME", "IMPLEMENTATIONS", "check_implementation", "flash_attention"},
}
BORROWED = {
    "cache": {"LightningMemory", "Snapshot", "fingerprint_of", "check_rows", "check_whole"},
    "model": {"fresh_weights", "check_held", "ModelOutput"},
    "streaming": {"Rows", "cut", "Scratch", "rows_of_experts"},
    "ops.losses": {"IGNORED"},
    "quantize": {
        *("TINY", "AT_A_TIME", "NF4", "layout", "check_weights"),
        *("pairs_of_levels", "dynamic_levels", "dynamic_codes"),
    },
}
# Parameters that only one side may have.
OWN = {"device", "dtype", "weights", "implementation", "attn_implementation", "quantization"}


def modules(package) -> set[str]:
    """Names of the package's modules, below it; "" is the package itself."""
    folder = Path(package.__file__).parent
    paths = (file.relative_to(folder).with_suffix("") for file in folder.rglob("*.py"))
    return {".".join(path.parts).removesuffix("__init__").rstrip(".") for path in paths}


def pair(name: str):
    """A module and its twin."""
    return [import_module(f"{package}.{name}".rstrip(".")) for package in ("minimax_numpy", "minimax_torch")]


def public(module) -> list[str]:
    """The names that a module makes itself, in the order of its source."""
    names = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def shared(name: str) -> list[str]:
    """What the reference's module makes and the twin's must make too."""
    return [n for n in public(pair(name)[0]) if n not in EXTRA.get(name, ()) and n not in BORROWED.get(name, ())]


def parameters(function, but: set[str] = OWN) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls", *but)]


def camel(name: str) -> str:
    """Functions of layers.py are modules in the twin."""
    return name if name[0].isupper() else "".join(word.title() for word in name.split("_"))


MODULES = sorted(modules(minimax_numpy) & modules(minimax_torch))
NAMES = [(module, name) for module in MODULES for name in shared(module)]
FUNCTIONS = [(m, n) for m, n in NAMES if m != "layers" and inspect.isfunction(getattr(pair(m)[0], n))]
CLASSES = [(m, n) for m, n in NAMES if m in ("cache", "layers", "model") and inspect.isclass(getattr(pair(m)[0], n))]


def test_every_module_has_its_twin():
    for package, alone in ((minimax_numpy, ONLY_NUMPY), (minimax_torch, ONLY_TORCH)):
        assert {name.split(".")[0] for name in modules(package) - set(MODULES)} <= alone


@pytest.mark.parametrize("name", MODULES)
def test_same_names_in_the_same_order(name):
    reference, twin = pair(name)
    wanted = [camel(n) for n in shared(name)] if name == "layers" else shared(name)
    assert [n for n in public(twin) if n not in EXTRA.get(name, ())] == wanted
    if name in ("", "ops"):
        assert list(twin.__all__) == list(reference.__all__)
    for borrowed in BORROWED.get(name, ()):
        assert getattr(twin, borrowed) is getattr(reference, borrowed)


@pytest.mark.parametrize("module, name", FUNCTIONS, ids=[name for _, name in FUNCTIONS])
def test_same_parameters(module, name):
    """In the same order, with the same defaults."""
    reference, twin = (inspect.signature(getattr(m, name)).parameters for m in pair(module))
    assert [n for n in twin if n in reference or n not in OWN] == list(reference)
    for n, parameter in reference.items():
        assert (twin[n].default, twin[n].kind) == (parameter.default, parameter.kind)


@pytest.mark.parametrize("name", [name for name in shared("layers") if name.islower()])
def test_a_layers_module_takes_what_its_function_takes(name):
    """Less what the module was built with."""
    reference, twin = pair("layers")
    wanted = parameters(getattr(reference, name), but={"w", "config", "layer_idx", "hidden_act"})
    assert parameters(getattr(twin, camel(name)).forward) == wanted


@pytest.mark.parametrize("module, name", CLASSES, ids=[name for _, name in CLASSES])
def test_same_methods(module, name):
    """The public methods and properties of a class, how it is made and how it is called, which torch names forward."""
    reference, twin = (getattr(m, name) for m in pair(module))
    members = {n for cls in reference.__mro__ if cls.__module__ == reference.__module__ for n in vars(cls)}
    for member in members:
        mine, theirs = getattr(reference, member), getattr(twin, "forward" if member == "__call__" else member, None)
        if isinstance(mine, property) and not member.startswith("_"):
            assert isinstance(theirs, property), member
        elif inspect.isroutine(mine) and (not member.startswith("_") or member in ("__init__", "__call__")):
            assert parameters(theirs) == parameters(mine), member


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_a_twins_docstrings_say_whose_twin_it_is(name):
    """Each module and each function points to its reference, and says only what differs."""
    _, twin = pair(name)
    assert twin.__doc__.startswith(f"Twin of `minimax_numpy.{name}`")
    for n in shared(name):
        if inspect.isfunction(getattr(twin, n, None)):
            assert f"[{n}][minimax_numpy" in getattr(twin, n).__doc__, n
