"""How the tests say "the same": two arrays, two models, two packages.

Every tolerance of the suite is named here or where it is used, with its reason:

=============  ================================================================================================
``SAME``       float64 against float64 in another order of summation. The models of these tests differ by 1e-15
               to 1e-13; the smallest of the planted defects, the slopes of the other rule, by 2e-6.
``ROUNDING``   two float32 models, whose experts all agree. Measured 1e-7 to 6e-7 over eight layers.
=============  ================================================================================================
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from weakref import WeakKeyDictionary

import minimax_numpy
import minimax_torch
import numpy as np
import pytest
import torch
from minimax_numpy import MiniMaxConfig
from minimax_numpy.config import HEADS, LIGHTNING, SOFTMAX

SAME = 1e-11
ROUNDING = 1e-5


def array(x) -> np.ndarray:
    """An array or a tensor as a NumPy array; bfloat16 becomes float32, exactly."""
    if not isinstance(x, torch.Tensor):
        return np.asarray(x)
    x = x.detach().cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def rms(x) -> float:
    """Root mean square, in float64."""
    return float(np.sqrt(np.mean(np.square(array(x), dtype=np.float64)))) if array(x).size else 0.0


def error(got, want) -> float:
    """RMS of the difference over RMS of what is wanted: 0 is the same, 1 is another thing altogether."""
    got, want = array(got).astype(np.float64), array(want).astype(np.float64)
    assert got.shape == want.shape, f"shape {got.shape}, wanted {want.shape}"
    difference = rms(got - want)
    return difference / rms(want) if rms(want) else difference


def assert_same(got, want, within: float = SAME) -> None:
    """Same shape, and the same numbers to a relative RMS of ``within``. NaN is the same as nothing."""
    found = error(got, want)
    assert found <= within, f"relative error {found:.1e}, allowed {within:.0e}"


def assert_same_cache(got, want, within: float = SAME) -> None:
    """Two caches remember the same: lengths, every state, every key and value of a real token."""
    assert array(got.lengths).tolist() == array(want.lengths).tolist()
    for mine, theirs in zip(got.layers, want.layers, strict=True):
        if hasattr(mine, "state"):
            assert_same(mine.state, theirs.state, within)
            continue
        for row, length in enumerate(array(got.lengths)):  # slots past a row's length hold nothing of it
            held = min(length, mine.window or length)
            assert_same(mine.keys[row, :, :held], theirs.keys[row, :, :held], within)
            assert_same(mine.values[row, :, :held], theirs.values[row, :, :held], within)


class Side:
    """One of the two packages, so that a test is written once and run on both."""

    def __init__(self, package: ModuleType):
        self.package, self.is_torch = package, package is minimax_torch
        self._twins: WeakKeyDictionary = WeakKeyDictionary()  # reference → its twin

    def __repr__(self) -> str:
        return self.package.__name__

    def wrap(self, x, dtype: str | None = None):
        """An array as this package has it, in a type where one is named; None stays None."""
        if x is None:
            return None
        if self.is_torch:
            x = torch.tensor(array(x))
            return x if dtype is None else x.to(getattr(torch, dtype))
        return np.asarray(x) if dtype is None else np.asarray(x).astype(dtype)

    def model(self, reference: minimax_numpy.MiniMaxModel):
        """This package's model with the reference's weights."""
        return getattr(minimax_torch, reference.head).from_reference(reference) if self.is_torch else reference

    def cache(self, config: MiniMaxConfig, batch_size: int):
        """An empty cache."""
        return self.package.Cache(config, batch_size)

    def ask(self, model, input_ids=None, attention_mask=None, **inputs):
        """Call a model of this package on arrays; anything else is given as it is."""
        arrays = {name: self.wrap(x) if isinstance(x, np.ndarray) else x for name, x in inputs.items()}
        with torch.no_grad():
            return model(self.wrap(input_ids), self.wrap(attention_mask), **arrays)

    def call(self, reference: minimax_numpy.MiniMaxModel, *ids_and_mask, **inputs):
        """Call this package's model with the reference's weights on arrays. A twin is made once."""
        if self.is_torch and reference not in self._twins:
            self._twins[reference] = self.model(reference)
        return self.ask(self._twins[reference] if self.is_torch else reference, *ids_and_mask, **inputs)


NUMPY, TORCH = Side(minimax_numpy), Side(minimax_torch)
both = pytest.mark.parametrize("side", [NUMPY, TORCH], ids=repr)
every_head = pytest.mark.parametrize("head", HEADS)


def small(*layer_types: str, **changes) -> MiniMaxConfig:
    """A model of four layers (or those given) in which nothing has the same value as its neighbour.

    Factors differ from part to part, epsilon is not the inner norm's, chunks are shorter than the prompts: a
    model that takes one for another cannot pass.
    """
    unlike = {
        "layer_types": layer_types or (LIGHTNING, LIGHTNING, SOFTMAX, LIGHTNING),
        "full_attn_alpha_factor": 1.7,
        "full_attn_beta_factor": 0.9,
        "linear_attn_alpha_factor": 1.9,
        "linear_attn_beta_factor": 1.1,
        "mlp_alpha_factor": 1.6,
        "mlp_beta_factor": 1.2,
        "rms_norm_eps": 1e-3,
        "rope_theta": 100.0,
        "block_size": 8,
        "num_labels": 3,
        "router_aux_loss_coef": 0.1,
    }
    return MiniMaxConfig.tiny(**{**unlike, **changes})


CONFIGURATIONS = {
    "as released, 7:1": MiniMaxConfig.tiny(),
    "every factor its own": small(),
    "two softmax layers, a window": small(LIGHTNING, SOFTMAX, SOFTMAX, LIGHTNING, sliding_window=5),
    "three heads": small(num_attention_heads=3, num_key_value_heads=1, head_dim=10, rotary_dim=4),
    "twelve heads": small(num_attention_heads=12, num_key_value_heads=4, head_dim=6, rotary_dim=6),
    "a key head for each query head": small(num_key_value_heads=4),
    "head_dim is D/H": small(head_dim=8),
    "tied embeddings": small(tie_word_embeddings=True),
    "a shared expert": small(shared_intermediate_size=24),
    "plain residual": small(postnorm=False),
    "gelu": small(hidden_act="gelu"),
    "one expert a token": small(num_experts_per_tok=1),
    "three experts a token": small(num_experts_per_tok=3),
    "one lightning layer": small(LIGHTNING),
    "one softmax layer": small(SOFTMAX),
    "transformers' slopes": small(slope_rule="transformers", num_attention_heads=6, num_key_value_heads=2),
    "the whole head rotates": small(rotary_dim=16),
    "nothing rotates": small(rotary_dim=0),
}
every_configuration = pytest.mark.parametrize("config", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())


def lively(config: MiniMaxConfig, head: str = "MiniMaxForCausalLM", seed: int = 0, dtype=np.float64):
    """A fresh NumPy model whose gains are not 1 and biases not 0: otherwise nobody could tell one norm from another."""
    model = getattr(minimax_numpy, head)(config, seed, dtype)
    rng = np.random.default_rng(seed + 1)
    for name, x in model.weights.items():
        if x.ndim == 1:
            model.weights[name] = (x + 0.3 * rng.standard_normal(x.shape)).astype(x.dtype)
    return model


def prompts(config: MiniMaxConfig, *shape: int, seed: int = 0) -> np.ndarray:
    """Random token ids without the special ones."""
    return np.random.default_rng(seed).integers(3, config.vocab_size, shape)


def edited(folder: Path, original: ModuleType, was: str, becomes: str) -> ModuleType:
    """A module with one line changed, read from a file of its own, as Triton reads a kernel."""
    source = Path(original.__file__).read_text(encoding="utf-8")
    assert source.count(was) == 1, was
    file = folder / f"edited_{Path(original.__file__).name}"
    file.write_text(source.replace(was, becomes), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"{original.__package__}.{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def assert_one_sentence(message, *fragments: str) -> None:
    """An error says what is wrong on one line that a person would write, and names the culprit."""
    message = str(message)
    assert "\n" not in message and message[-1] in ".?" and len(message) < 800, message
    for fragment in fragments:
        assert fragment in message, message
