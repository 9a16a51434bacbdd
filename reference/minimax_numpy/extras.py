"""What extras bring, imported where it is first wanted: the reference itself needs numpy, safetensors and jaxtyping."""

import importlib


def optional(module: str, extra: str):
    """Import a module that comes with an extra; where it is absent, say how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        told = f"{error.name} is not installed; pip install 'minimax-twin[{extra}]' brings it."
        raise ModuleNotFoundError(told, name=error.name) from None
