"""A cache on disk: one safetensors file, written and read by both packages.

It holds ``lengths``, ``layers.N.state`` of lightning layers, ``layers.N.keys`` and ``.values`` of softmax layers, and
in its metadata the configuration, so that a model of another one can refuse it.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import all_finite, read_metadata, read_tensors, save_tensors, write_whole
from .config import LIGHTNING, MiniMaxConfig
from .shapes import Lengths

DTYPES = ("float64", "float32", "float16", "bfloat16")


def save_cache(path: str | os.PathLike, cache: Any, dtype: str, as_array: Callable[[Any], np.ndarray]) -> None:
    """Write a cache of either package; ``as_array`` makes an array of what it holds, bfloat16 as its bits."""
    tensors = {"lengths": as_array(cache.lengths)}
    for i, layer in enumerate(cache.layers):
        for name in ("state", "keys", "values"):
            if getattr(layer, name, None) is not None:
                tensors[f"layers.{i}.{name}"] = as_array(getattr(layer, name))
    told = {"minimax-twin": "cache", "dtype": dtype, "config": json.dumps(cache.config.to_dict())}
    told |= {} if cache.fingerprint is None else {"fingerprint": str(cache.fingerprint)}
    write_whole(path, lambda file: save_tensors(file, tensors, told))


def read_cache(
    path: str | os.PathLike,
) -> tuple[MiniMaxConfig, str | None, Lengths, list[dict[str, np.ndarray]], int | None]:
    """Configuration, type, lengths, each layer's arrays, and whose; refuses a file that does not hold just those."""
    path = Path(path)
    tensors = read_tensors(path)
    told = read_metadata(path)
    if told.get("minimax-twin") != "cache":
        raise ValueError(f"{path} is not a cache that this project saved.")
    try:
        values = json.loads(told["config"])
        config = MiniMaxConfig.from_dict(values)
        if json.loads(json.dumps(config.to_dict())) != values:
            raise ValueError("its configuration is not one that was saved")
        lengths, dtype = tensors.pop("lengths"), told["dtype"] if told["dtype"] != "None" else None
        if dtype not in (None, *DTYPES):
            raise ValueError(f"its dtype is {dtype!r}")
        if lengths.ndim != 1 or lengths.dtype != np.int64 or lengths.min() < 0:
            raise ValueError("its lengths are not the lengths of rows")
        layers = [_layer_tensors(config, i, lengths, tensors, dtype) for i in range(config.num_hidden_layers)]
        fingerprint = int(told["fingerprint"]) if "fingerprint" in told else None
        if tensors:
            raise ValueError(f"it holds {sorted(tensors)[0]!r}, which no layer has")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or was altered: {str(error).strip('.')}.") from None
    return config, dtype, lengths, layers, fingerprint


def _layer_tensors(config: MiniMaxConfig, i: int, lengths: Lengths, tensors: dict, dtype: str | None) -> dict:
    """Take one layer's arrays out of ``tensors``, and check that they can be its memory."""
    H, G, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if dtype is None:
        return {}
    longest = min(int(lengths.max()), config.sliding_window or int(lengths.max()))
    shape = {"state": (len(lengths), H, d, d)}
    if config.layer_types[i] != LIGHTNING:
        shape = dict.fromkeys(("keys", "values"), (len(lengths), G, longest, d))
    found = {name: tensors.pop(f"layers.{i}.{name}") for name in shape}
    held = np.dtype("float32" if dtype == "bfloat16" else dtype)
    for name, x in found.items():
        if x.dtype != (np.promote_types(held, np.float32) if name == "state" else held):
            raise ValueError(f"layers.{i}.{name} is {x.dtype}, which is no memory of a model in {dtype}")
        if x.shape != shape[name]:
            raise ValueError(f"layers.{i}.{name} has shape {list(x.shape)}, not {list(shape[name])}")
        if not all_finite(x):
            raise ValueError(f"layers.{i}.{name} holds NaN or infinity")
    return found
