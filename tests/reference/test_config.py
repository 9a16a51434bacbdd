"""The configuration: the released numbers to the last parameter, two spellings, and no model that cannot be."""

import json
import math
from dataclasses import replace

import pytest
from close import CONFIGURATIONS, assert_one_sentence, small
from minimax_numpy import MiniMaxConfig
from minimax_numpy.config import HYBRID, LIGHTNING, SOFTMAX

RELEASED = MiniMaxConfig.text_01()
COUNTS = {name: math.prod(shape) for name, shape in RELEASED.parameter_shapes().items()}


def count(*parts: str) -> int:
    """Parameters of the tensors whose names hold one of the parts."""
    return sum(n for name, n in COUNTS.items() if any(part in name for part in parts))


def test_the_dimensions_are_the_released_ones():
    """Eighty layers, one softmax after every seven lightning; D, H, G, d, E, K, F, V, R as in spec.md."""
    c = RELEASED
    assert c.layer_types == HYBRID * 10 and c.num_hidden_layers == 80
    assert [i for i, kind in enumerate(c.layer_types) if kind == SOFTMAX] == list(range(7, 80, 8))
    sizes = c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim
    assert sizes == (6144, 64, 8, 128)
    assert (c.num_local_experts, c.num_experts_per_tok, c.intermediate_size) == (32, 2, 9216)
    assert (c.vocab_size, c.rotary_dim, c.rope_theta, c.rms_norm_eps) == (200_064, 64, 1e7, 1e-5)
    for part in ("full_attn", "linear_attn", "mlp"):
        assert getattr(c, f"{part}_alpha_factor") == pytest.approx(3.5565588200778455, rel=1e-15)
        assert getattr(c, f"{part}_beta_factor") == 1


@pytest.mark.parametrize(
    "parts, parameters",
    [
        ((".",), 456_089_655_296),
        (("embed_tokens",), 1_229_193_216),
        (("lm_head",), 1_229_193_216),
        (("layers.0.self_attn",), 251_666_432),
        (("layers.7.self_attn",), 113_246_208),
        (("layers.0.mlp.experts",), 32 * 169_869_312),
        (("layers.0.mlp.gate",), 196_608),
        (("layernorm", "model.norm"), 989_184),
    ],
    ids=lambda x: x[0] if isinstance(x, tuple) else str(x),
)
def test_parameter_counts_to_the_last_one(parts, parameters):
    assert count(*parts) == parameters


def test_active_parameters():
    """A token meets two of 32 experts: 45.9B without embedding and head, as the documents say."""
    active = count(".") - count("embed_tokens", "lm_head") - count("mlp.experts") * 30 // 32
    assert active == 45_944_920_064
    assert active + count("lm_head") == 47_174_113_280
    assert active + count("lm_head", "embed_tokens") == 48_403_306_496


def test_bytes_of_the_released_folder():
    """bf16 with float32 routers."""
    assert 2 * count(".") + 2 * count("mlp.gate") == 912_210_767_872


def test_heads_add_their_own_parameters_and_no_others():
    """Only token classification and question answering have a bias; a tied head is not counted twice."""
    config = small(num_labels=5)
    body = set(config.parameter_shapes("MiniMaxModel"))
    own = {
        head: {name: shape for name, shape in config.parameter_shapes(head).items() if name not in body}
        for head in ("MiniMaxForCausalLM", "MiniMaxForSequenceClassification")
        + ("MiniMaxForTokenClassification", "MiniMaxForQuestionAnswering")
    }
    assert list(own.values()) == [
        {"lm_head.weight": (256, 32)},
        {"score.weight": (5, 32)},
        {"score.weight": (5, 32), "score.bias": (5,)},
        {"qa_outputs.weight": (2, 32), "qa_outputs.bias": (2,)},
    ]
    assert set(replace(config, tie_word_embeddings=True).parameter_shapes()) == body


@pytest.mark.parametrize("config", [RELEASED, *CONFIGURATIONS.values(), small(eos_token_id=(3, 4), pad_token_id=None)])
def test_what_we_write_we_read_back(config, tmp_path):
    """To the last field, through a file."""
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert MiniMaxConfig.from_pretrained(tmp_path) == config
    assert MiniMaxConfig.from_pretrained(tmp_path / "config.json") == config


ORIGINAL = {
    "model_type": "MiniMaxText01",
    "architectures": ["MiniMaxText01ForCausalLM"],
    "attn_type_list": ([0] * 7 + [1]) * 10,
    "num_hidden_layers": 80,
    "hidden_size": 6144,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_local_experts": 32,
    "num_experts_per_tok": 2,
    "intermediate_size": 9216,
    "shared_intermediate_size": 0,
    "vocab_size": 200064,
    "rotary_dim": 64,
    "rope_theta": 10000000,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "postnorm": True,
    **{f"layernorm_{part}_alpha": 3.5565588200778455 for part in ("full_attention", "linear_attention", "mlp")},
    **{f"layernorm_{part}_beta": 1.0 for part in ("full_attention", "linear_attention", "mlp")},
    "max_position_embeddings": 10240000,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "sliding_window": None,
    "eos_token_id": 200020,
}


def test_the_original_spelling_is_the_released_model():
    """The original release's keys make text_01(), with the original's slopes."""
    assert MiniMaxConfig.from_dict(ORIGINAL) == RELEASED
    assert RELEASED.slope_rule == "original"


def test_either_mark_makes_it_the_original():
    """attn_type_list, or the model_type; the original's rules of slope hold for both."""
    marks = {"attn_type_list", "model_type"}
    for mark in marks:
        values = {key: value for key, value in ORIGINAL.items() if key not in marks - {mark}}
        if mark == "model_type":
            values["layer_types"] = list(RELEASED.layer_types)
        assert MiniMaxConfig.from_dict(values) == RELEASED


def test_what_the_original_leaves_out_has_the_originals_default():
    """A plain residual, factors of 1, a key head for each query head, head_dim D/H, the whole head rotated."""
    needed = "model_type", "attn_type_list", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"
    config = MiniMaxConfig.from_dict({key: ORIGINAL[key] for key in needed})
    assert not config.postnorm and config.full_attn_alpha_factor == config.mlp_alpha_factor == 1
    assert config.num_key_value_heads == 64 and config.head_dim == config.rotary_dim == 96


def test_what_transformers_leaves_out_has_transformers_default():
    """Its layers alternate, starting with full attention: a folder without layer_types is such a model."""
    config = MiniMaxConfig.from_dict({"model_type": "minimax", "num_hidden_layers": 3})
    assert config.layer_types == (SOFTMAX, LIGHTNING, SOFTMAX)
    assert (config.hidden_size, config.num_local_experts, config.head_dim, config.rotary_dim) == (4096, 8, 128, 128)
    assert (config.vocab_size, config.rope_theta, config.mlp_alpha_factor, config.postnorm) == (32000, 1e6, 1, True)
    assert config.slope_rule == "transformers"


@pytest.mark.parametrize(
    "said, rotary_dim, theta",
    [
        ({}, 16, 1e6),
        ({"partial_rotary_factor": 0.5}, 8, 1e6),
        ({"rope_parameters": {"rope_theta": 5.0, "partial_rotary_factor": 0.25}}, 4, 5.0),
        ({"rotary_dim": 6, "partial_rotary_factor": 0.5}, 6, 1e6),
        ({"rotary_dim": 0}, 0, 1e6),
        ({"rope_theta": 7.0}, 16, 7.0),
    ],
)
def test_where_the_rotary_is_said(said, rotary_dim, theta):
    """rotary_dim wins over partial_rotary_factor, which may stand at the top or inside rope_parameters."""
    config = MiniMaxConfig.from_dict({"model_type": "minimax", "num_hidden_layers": 2, "head_dim": 16, **said})
    assert (config.rotary_dim, config.rope_theta) == (rotary_dim, theta)


BAD = {
    "vocab_size": [0, -1, 1.5, "256", None, True],
    "hidden_size": [0, "32"],
    "num_attention_heads": [0, 3],
    "num_key_value_heads": [0, 3],
    "head_dim": [0],
    "num_local_experts": [0, 1],
    "num_experts_per_tok": [0, 7],
    "intermediate_size": [0],
    "shared_intermediate_size": [-1, "8"],
    "block_size": [0],
    "num_labels": [0],
    "rotary_dim": [3, 18, -2, 8.0, "8"],
    "rope_theta": [0, -1.0, float("nan"), "10000"],
    "rms_norm_eps": [0, -1e-5, float("nan"), "1e-5"],
    "hidden_act": ["relu", None],
    "slope_rule": ["alibi"],
    "sliding_window": [0, -1, 4.5, "4"],
    "layer_types": [(), ("attention",), "full_attention", 5],
    "mlp_alpha_factor": ["2", float("nan"), None],
    "router_jitter_noise": [-0.1, "0"],
    "postnorm": ["false", 0, None],
    "tie_word_embeddings": ["no", 1],
    "eos_token_id": [-1, "2", True, 2.0, (2, "3"), (2, None), (2, -1)],
    "pad_token_id": [-1, "0", 256, True],
    "bos_token_id": [-1, "1", [1]],
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name, value", [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_number_gets_one_sentence(name, value):
    """That names the number, before there is a model."""
    with pytest.raises(ValueError) as said:
        MiniMaxConfig.tiny(**{name: value})
    assert_one_sentence(said.value, "heads" if name.endswith("_heads") else "experts" if "experts" in name else name)


@pytest.mark.parametrize(
    "change, fragment",
    [
        ({"model_type": "llama"}, "'llama'"),
        ({"num_hidden_layers": 5}, "num_hidden_layers is 5 but 80"),
        ({"attn_type_list": [0, 2]}, "attn_type_list holds 2"),
        ({"attn_type_list": None}, "attn_type_list"),
        ({"vocab_size": None}, "vocab_size"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "'llama3'"),
        ({"rope_parameters": [1]}, "rope_parameters is [1]"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
        ({"rope_parameters": {"rope_theta": None}}, "rope_theta is None"),
        ({"rope_parameters": {"rope_theta": "1e6"}}, "rope_theta is '1e6'"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"rotary_dim": None, "partial_rotary_factor": "0.5"}, "partial_rotary_factor is '0.5'"),
        ({"attn_type_list": 7}, "attn_type_list is 7"),
        ({"attn_type_list": [[0]]}, "attn_type_list holds [0]"),
        ({"attn_type_list": None, "layer_types": 5}, "layer_types is 5"),
        ({"num_hidden_layers": "80"}, "num_hidden_layers is '80'"),
        ({"attn_type_list": None, "num_hidden_layers": "80"}, "num_hidden_layers is '80'"),
        ({"head_dim": None, "hidden_size": "32"}, "hidden_size is '32'"),
        ({"head_dim": None, "num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"id2label": 3}, "id2label is 3"),
    ],
    ids=str,
)
def test_a_bad_file_gets_one_sentence(change, fragment):
    values = {**ORIGINAL, **change}
    if change.get("model_type"):
        del values["attn_type_list"]
    with pytest.raises(ValueError) as said:
        MiniMaxConfig.from_dict(values)
    assert_one_sentence(said.value, fragment)


def test_a_pad_of_minus_one_is_none_in_a_file():
    """Other projects write it so; said in code it is a mistake. A stop may lie outside a vocabulary cut short."""
    values = {"model_type": "minimax", "num_hidden_layers": 2, "pad_token_id": -1}
    assert MiniMaxConfig.from_dict(values).pad_token_id is None
    assert small(eos_token_id=200_020).eos_token_id == 200_020


@pytest.mark.parametrize(
    "text, fragment",
    [('{"model_type": ', "valid JSON"), ("[1, 2]", "list"), ("", "valid JSON"), ("[" * 200_000, "valid JSON")],
    ids=["cut short", "a list", "empty", "nested without end"],
)
def test_a_file_that_is_no_configuration(text, fragment, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError) as said:
        MiniMaxConfig.from_pretrained(tmp_path)
    assert_one_sentence(said.value, "config.json", fragment)


def test_no_file_at_all(tmp_path):
    with pytest.raises(FileNotFoundError) as said:
        MiniMaxConfig.from_pretrained(tmp_path)
    assert_one_sentence(said.value, "config.json")


def test_layers_are_said_by_nobody():
    with pytest.raises(ValueError) as said:
        MiniMaxConfig.from_dict({"model_type": "minimax", "hidden_size": 32})
    assert_one_sentence(said.value, "layer_types")
