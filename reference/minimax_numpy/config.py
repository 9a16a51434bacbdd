"""MiniMaxConfig: every number that shapes the model, read from either spelling of config.json.

Field names are transformers'. The original release spells some of them otherwise (``attn_type_list``,
``layernorm_full_attention_alpha`` …); `MiniMaxConfig.from_dict` reads both and `to_dict` writes transformers',
with ``rotary_dim``, ``postnorm``, ``shared_intermediate_size`` and ``slope_rule`` beside it, which transformers
does not know.
"""

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIGHTNING, SOFTMAX = "linear_attention", "full_attention"
HYBRID = (LIGHTNING,) * 7 + (SOFTMAX,)  # one softmax layer after every seven lightning layers
HEADS = (
    "MiniMaxModel",
    "MiniMaxForCausalLM",
    "MiniMaxForSequenceClassification",
    "MiniMaxForTokenClassification",
    "MiniMaxForQuestionAnswering",
)
DEEPNORM_ALPHA = 160**0.25  # (2 L)^(1/4) at L = 80

# Original key → field, where the two spellings differ.
_ORIGINAL = {
    "layernorm_full_attention_alpha": "full_attn_alpha_factor",
    "layernorm_full_attention_beta": "full_attn_beta_factor",
    "layernorm_linear_attention_alpha": "linear_attn_alpha_factor",
    "layernorm_linear_attention_beta": "linear_attn_beta_factor",
    "layernorm_mlp_alpha": "mlp_alpha_factor",
    "layernorm_mlp_beta": "mlp_beta_factor",
}
# What transformers takes where a file leaves a key out, where that is not MiniMax-Text-01's value.
_TRANSFORMERS_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "router_aux_loss_coef": 0.001,
    "max_position_embeddings": 4096 * 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **{f"{part}_{factor}_factor": 1.0 for part in ("full_attn", "linear_attn", "mlp") for factor in ("alpha", "beta")},
}


_SIZES = (
    *("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_local_experts"),
    *("num_experts_per_tok", "intermediate_size", "block_size", "num_labels", "max_position_embeddings"),
)
_FACTORS = (
    *(f"{part}_{factor}_factor" for part in ("full_attn", "linear_attn", "mlp") for factor in ("alpha", "beta")),
    *("rms_norm_eps", "rope_theta", "router_aux_loss_coef", "router_jitter_noise"),
)


@dataclass(frozen=True)
class MiniMaxConfig:
    r"""The shape of a model. The defaults are MiniMax-Text-01's.

    | field | letter |
    |---|---|
    | ``vocab_size`` | V |
    | ``hidden_size`` | D |
    | ``layer_types``, one entry a layer | L |
    | ``num_attention_heads`` | H |
    | ``num_key_value_heads``, softmax layers only | G |
    | ``head_dim`` (H · d need not equal D) | d |
    | ``num_local_experts`` | E |
    | ``num_experts_per_tok`` | K |
    | ``intermediate_size`` | F |
    | ``rotary_dim`` | R |
    | ``block_size`` | C |

    Raises ValueError, one sentence long, where the numbers cannot make a model.
    """

    vocab_size: int = 200_064
    hidden_size: int = 6144
    layer_types: tuple[str, ...] = HYBRID * 10
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    head_dim: int = 128
    num_local_experts: int = 32
    num_experts_per_tok: int = 2
    intermediate_size: int = 9216
    shared_intermediate_size: int = 0
    rotary_dim: int = 64
    rope_theta: float = 10_000_000.0
    rms_norm_eps: float = 1e-5
    hidden_act: str = "silu"
    sliding_window: int | None = None
    full_attn_alpha_factor: float = DEEPNORM_ALPHA
    full_attn_beta_factor: float = 1.0
    linear_attn_alpha_factor: float = DEEPNORM_ALPHA
    linear_attn_beta_factor: float = 1.0
    mlp_alpha_factor: float = DEEPNORM_ALPHA
    mlp_beta_factor: float = 1.0
    postnorm: bool = True
    slope_rule: str = "original"
    block_size: int = 256
    tie_word_embeddings: bool = False
    router_aux_loss_coef: float = 0.001
    router_jitter_noise: float = 0.0
    max_position_embeddings: int = 10_240_000
    num_labels: int = 2
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = 200_020

    def __post_init__(self):
        object.__setattr__(self, "layer_types", _listed("layer_types", self.layer_types))
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        _check(self)

    @property
    def num_hidden_layers(self) -> int:
        """L."""
        return len(self.layer_types)

    @classmethod
    def text_01(cls) -> "MiniMaxConfig":
        """MiniMax-Text-01: 456B parameters, 45.9B of them active for a token."""
        return cls()

    @classmethod
    def tiny(cls, **changes) -> "MiniMaxConfig":
        """A model with every feature of the real one that runs in a moment: 8 layers 7:1, 281,056 parameters."""
        small = {
            "vocab_size": 256,
            "hidden_size": 32,
            "layer_types": HYBRID,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "intermediate_size": 40,
            "rotary_dim": 8,
            "block_size": 32,
            "max_position_embeddings": 4096,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **{f"{part}_alpha_factor": 2.0 for part in ("full_attn", "linear_attn", "mlp")},  # (2 · 8)^(1/4)
        }
        return cls(**{**small, **changes})

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> "MiniMaxConfig":
        """Read ``config.json``, given itself or its folder.

        Raises FileNotFoundError where there is none, ValueError where it is not JSON or makes no model.
        """
        file = Path(path)
        file = file / "config.json" if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(f"There is no {file}; give a config.json or a folder that holds one.")
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not valid JSON ({error}); is it complete?") from None
        if not isinstance(values, dict):
            raise ValueError(
                f"{file} holds a {type(values).__name__}; a config.json holds an object of keys and values."
            )
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: dict) -> "MiniMaxConfig":
        """Read either spelling; ``attn_type_list`` or model_type ``MiniMaxText01`` marks the original one."""
        original = is_original(values)
        model_type = values.get("model_type", "minimax")
        if not original and model_type != "minimax":
            raise ValueError(f"model_type is {model_type!r}; this project reads 'minimax' and 'MiniMaxText01'.")
        values = {_ORIGINAL.get(key, key): value for key, value in values.items()}
        fields: dict[str, Any] = {} if original else dict(_TRANSFORMERS_DEFAULTS)
        fields |= {f.name: values[f.name] for f in dataclasses.fields(cls) if values.get(f.name) is not None}
        fields["layer_types"] = _layer_types(values)
        _fill_derived(fields, values, original)
        if values.get("id2label") and "num_labels" not in values:
            fields["num_labels"] = len(_mapping("id2label", values["id2label"]))
        for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if original or token in values:  # null is a value of its own here
                fields[token] = values.get(token)
        if fields.get("pad_token_id") == -1:  # how files of other projects say that there is none
            fields["pad_token_id"] = None
        for field in dataclasses.fields(cls):
            if field.type is float and isinstance(fields.get(field.name), int):
                fields[field.name] = float(fields[field.name])
        if isinstance(fields.get("eos_token_id"), list):
            fields["eos_token_id"] = tuple(fields["eos_token_id"])
        return cls(**fields)

    def to_dict(self, head: str = "MiniMaxForCausalLM") -> dict:
        """The keys and values of a config.json that transformers reads, and this project reads back unchanged."""
        values = dataclasses.asdict(self)
        values["layer_types"] = list(self.layer_types)
        theta = values.pop("rope_theta")
        return {
            "architectures": [head],
            "model_type": "minimax",
            "num_hidden_layers": self.num_hidden_layers,
            **values,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "id2label": {str(i): f"LABEL_{i}" for i in range(self.num_labels)},
        }

    def parameter_shapes(self, head: str = "MiniMaxForCausalLM") -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter in memory, experts stacked: the names of transformers 5's modules."""
        D, V, H, G, d = (
            self.hidden_size,
            self.vocab_size,
            self.num_attention_heads,
            self.num_key_value_heads,
            self.head_dim,
        )
        E, F, shared = self.num_local_experts, self.intermediate_size, self.shared_intermediate_size
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
        lightning = {"qkv_proj": (3 * H * d, D), "norm": (H * d,), "output_gate": (H * d, D), "out_proj": (D, H * d)}
        softmax = {"q_proj": (H * d, D), "k_proj": (G * d, D), "v_proj": (G * d, D), "o_proj": (D, H * d)}
        for i, kind in enumerate(self.layer_types):
            layer: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (D,)}
            mixer = lightning if kind == LIGHTNING else softmax
            layer |= {f"self_attn.{name}.weight": shape for name, shape in mixer.items()}
            layer |= {"post_attention_layernorm.weight": (D,), "mlp.gate.weight": (E, D)}
            layer |= {"mlp.experts.gate_up_proj": (E, 2 * F, D), "mlp.experts.down_proj": (E, D, F)}
            if shared:
                layer |= {f"shared_mlp.{name}_proj.weight": (shared, D) for name in ("gate", "up")}
                layer |= {"shared_mlp.down_proj.weight": (D, shared), "coefficient.weight": (1, D)}
            shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
        shapes["model.norm.weight"] = (D,)
        if head == "MiniMaxForCausalLM" and not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (V, D)
        elif head == "MiniMaxForSequenceClassification":
            shapes["score.weight"] = (self.num_labels, D)
        elif head == "MiniMaxForTokenClassification":
            shapes |= {"score.weight": (self.num_labels, D), "score.bias": (self.num_labels,)}
        elif head == "MiniMaxForQuestionAnswering":
            shapes |= {"qa_outputs.weight": (2, D), "qa_outputs.bias": (2,)}
        return shapes


def is_router(name: str) -> bool:
    """Whether a weight, as named in memory or on disk, is a router's: it stays float32 at least.

    >>> is_router("model.layers.0.mlp.gate.weight"), is_router("model.layers.0.self_attn.output_gate.weight")
    (True, False)
    """
    return name.endswith(("mlp.gate.weight", "block_sparse_moe.gate.weight"))


def is_original(values: dict) -> bool:
    """Whether a config.json is in the original release's spelling."""
    return "attn_type_list" in values or values.get("model_type") == "MiniMaxText01"


def _layer_types(values: dict) -> tuple[str, ...]:
    """The kind of each layer, from whichever key the file has."""
    stated = values.get("num_hidden_layers")
    if stated is not None:
        _check_whole("num_hidden_layers", stated, 1)
    if values.get("attn_type_list") is not None:
        numbers = _listed("attn_type_list", values["attn_type_list"])
        unknown = [kind for kind in numbers if kind not in (0, 1)]
        if unknown:
            raise ValueError(f"attn_type_list holds {unknown[0]!r}; 0 is a lightning layer and 1 a softmax layer.")
        kinds = tuple(SOFTMAX if kind else LIGHTNING for kind in numbers)
    elif values.get("layer_types") is not None:
        kinds = _listed("layer_types", values["layer_types"])
    elif stated is not None:
        if values.get("model_type") == "MiniMaxText01":
            raise ValueError("attn_type_list is missing; list 0 (lightning) or 1 (softmax) for each layer.")
        kinds = ((SOFTMAX, LIGHTNING) * stated)[:stated]  # transformers' default
    else:
        raise ValueError("Neither layer_types nor attn_type_list is given; name the kind of every layer.")
    if stated not in (None, len(kinds)):
        raise ValueError(f"num_hidden_layers is {stated} but {len(kinds)} layers are listed; make them agree.")
    return kinds


def _fill_derived(fields: dict, values: dict, original: bool) -> None:
    """Fill in what a file may leave out: head_dim, key/value heads, rotary_dim, base and slope rule."""
    key = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
    rope = _mapping(key, values.get(key) or {})
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ValueError(f"rope_type is {rope.get('rope_type', rope.get('type'))!r}; this model has plain rotary only.")
    if original:
        missing = [
            k
            for k in ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")
            if values.get(k) is None
        ]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}; the original spelling has no defaults for them.")
        fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
        for part in ("full_attn", "linear_attn", "mlp"):
            for factor in ("alpha", "beta"):
                fields.setdefault(f"{part}_{factor}_factor", 1.0)
        fields.setdefault("postnorm", False)
    elif "num_key_value_heads" in values and values["num_key_value_heads"] is None:
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    if values.get("head_dim") is None:
        for name in ("hidden_size", "num_attention_heads"):
            _check_whole(name, fields[name], 1)
        fields["head_dim"] = fields["hidden_size"] // fields["num_attention_heads"]
    theta = rope.get("rope_theta", values.get("rope_theta", 1e7 if original else 1e6))
    _check_number("rope_theta", theta)
    fields["rope_theta"] = float(theta)
    if values.get("rotary_dim") is None:
        share = values.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0))
        _check_number("partial_rotary_factor", share)
        _check_whole("head_dim", fields["head_dim"], 1)
        fields["rotary_dim"] = int(fields["head_dim"] * share)
    fields.setdefault("slope_rule", "original" if original else "transformers")


def _check(c: MiniMaxConfig) -> None:
    """Refuse values that cannot make a model, in one sentence."""
    _check_values(c)
    _check_tokens(c)
    if not c.layer_types:
        raise ValueError("layer_types is empty; a model has at least one layer.")
    for kind in c.layer_types:
        if kind not in (LIGHTNING, SOFTMAX):
            raise ValueError(f"layer_types holds {kind!r}; a layer is {LIGHTNING!r} or {SOFTMAX!r}.")
    if c.num_attention_heads % c.num_key_value_heads:
        raise ValueError(
            f"{c.num_attention_heads} query heads cannot share {c.num_key_value_heads} key/value heads; "
            "num_attention_heads must be a multiple of num_key_value_heads."
        )
    if c.num_experts_per_tok > c.num_local_experts:
        raise ValueError(
            f"num_experts_per_tok is {c.num_experts_per_tok} but there are only {c.num_local_experts} experts."
        )
    if c.rotary_dim % 2 or c.rotary_dim > c.head_dim:
        raise ValueError(f"rotary_dim is {c.rotary_dim}; it must be even, and at most head_dim ({c.head_dim}).")


def _check_values(c: MiniMaxConfig) -> None:
    """Each value by itself: sizes, factors, flags, names."""
    least = dict.fromkeys(_SIZES, 1) | {"shared_intermediate_size": 0, "rotary_dim": 0}
    if c.sliding_window is not None:  # a query sees at least itself
        least["sliding_window"] = 1
    for name, smallest in least.items():
        _check_whole(name, getattr(c, name), smallest)
    for name in _FACTORS:
        _check_number(name, getattr(c, name))
    for name in ("rms_norm_eps", "rope_theta"):
        if getattr(c, name) <= 0:
            raise ValueError(f"{name} is {getattr(c, name)!r}; it must be above 0.")
    if c.router_jitter_noise < 0:
        raise ValueError(f"router_jitter_noise is {c.router_jitter_noise}; it must be 0 (none) or more.")
    for name in ("postnorm", "tie_word_embeddings"):
        if not isinstance(getattr(c, name), bool):
            raise ValueError(f"{name} is {getattr(c, name)!r}; it must be true or false.")
    if c.hidden_act not in ("silu", "gelu"):
        raise ValueError(f"hidden_act is {c.hidden_act!r}; this model knows 'silu' and 'gelu'.")
    if c.slope_rule not in ("original", "transformers"):
        raise ValueError(f"slope_rule is {c.slope_rule!r}; there are 'original' and 'transformers'.")


def _check_tokens(c: MiniMaxConfig) -> None:
    """Ids from 0, or None; only a pad is ever shown to the model, so only it must be in the vocabulary."""
    stops = () if c.eos_token_id is None else c.eos_token_id
    if not all(_is_whole(stop, 0) for stop in (stops if isinstance(stops, tuple) else (stops,))):
        raise ValueError(f"eos_token_id is {c.eos_token_id!r}; it must be an id from 0, several of them, or null.")
    for name in ("pad_token_id", "bos_token_id"):
        if getattr(c, name) is not None:
            _check_whole(name, getattr(c, name), 0)
    if c.pad_token_id is not None and c.pad_token_id >= c.vocab_size:
        raise ValueError(f"pad_token_id is {c.pad_token_id}; it must be below vocab_size ({c.vocab_size}).")


def _is_whole(value: Any, smallest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= smallest


def _check_whole(name: str, value: Any, smallest: int) -> None:
    if not _is_whole(value, smallest):
        raise ValueError(f"{name} is {value!r}; it must be a whole number, at least {smallest}.")


def _check_number(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) <= sys.float_info.max:  # NaN is not, either
        raise ValueError(f"{name} is {value!r}; it must be a number.")


def _listed(name: str, value: Any) -> tuple:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {value!r}; it must be a list, one entry a layer.")
    return tuple(value)


def _mapping(name: str, value: Any) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r}; it must hold keys and values.")
    return value
