"""Quantised twins: the same codes, the same model, every matrix of attention and experts in few bits in both."""

from copy import deepcopy
from importlib import import_module

import minimax_numpy
import numpy as np
import pytest
import torch
from close import (
    CONFIGURATIONS,
    NUMPY,
    TORCH,
    array,
    assert_one_sentence,
    assert_same,
    both,
    every_configuration,
    every_head,
    lively,
    prompts,
    small,
)
from minimax_numpy import MiniMaxConfig
from minimax_numpy.check import crosscheck
from minimax_numpy.config import LIGHTNING, SOFTMAX
from minimax_numpy.counts import quantized_bytes
from minimax_numpy.quantize import KINDS
from minimax_torch.quantize import Quantized
from safetensors.numpy import load_file, save_file

every_kind = pytest.mark.parametrize("kind", KINDS)
CONFIG = small(LIGHTNING, SOFTMAX, shared_intermediate_size=8)
NARROW = {"minimax_numpy": "float16", "minimax_torch": "bfloat16"}  # two bytes a number, in either package


def load(side, path, dtype: str | None = "float64", head: str = "MiniMaxForCausalLM", **options):
    """This package's model of a folder, in a type."""
    if dtype is not None and side.is_torch:
        dtype = getattr(torch, dtype)
    return getattr(side.package, head).from_pretrained(path, dtype, **options)


def quantizer(side):
    return import_module(f"{side.package.__name__}.quantize")


def saved(path, config: MiniMaxConfig = CONFIG, head: str = "MiniMaxForCausalLM", dtype=np.float32):
    reference = lively(config, head, dtype=dtype)
    reference.save_pretrained(path)
    return reference


def assert_same_parts(mine, theirs) -> None:
    """Codes and scales to the bit."""
    assert mine.kind == theirs.kind and mine.shape == theirs.shape and list(mine.parts) == list(theirs.parts)
    for name, part in mine.parts.items():
        assert array(part).dtype == array(theirs.parts[name]).dtype
        np.testing.assert_array_equal(array(part), array(theirs.parts[name]))


@every_kind
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 21), (5, 64), (7, 300), (3, 5, 13)], ids=str)
def test_codes_scales_and_weights_are_the_same_to_the_bit(kind, dtype, shape):
    """Whatever type the matrix comes in, and whichever type it goes back to."""
    w = torch.tensor(np.random.default_rng(0).standard_normal(shape)).to(getattr(torch, dtype))
    mine, theirs = quantizer(NUMPY).quantize(array(w), kind), quantizer(TORCH).quantize(w, kind)
    assert_same_parts(mine, theirs)
    assert theirs.dtype == theirs.dequantize().dtype == w.dtype
    np.testing.assert_array_equal(array(theirs.dequantize()), array(torch.tensor(mine.dequantize()).to(w.dtype)))
    if len(shape) == 2:
        np.testing.assert_array_equal(quantizer(NUMPY).error_bound(mine), quantizer(TORCH).error_bound(theirs))


@both
@every_kind
@every_configuration
def test_every_matrix_of_attention_and_experts_is_quantised(side, kind, config, tmp_path):
    """Whatever has two axes or more within a layer, but for routers and a shared expert's coefficient."""
    saved(tmp_path, config)
    weights = load(side, tmp_path, quantization=kind).weights
    assert set(weights) == set(config.parameter_shapes())
    for name, shape in config.parameter_shapes().items():
        wide = len(shape) == 1 or not name.startswith("model.layers.") or ".gate." in name or ".coefficient." in name
        assert hasattr(weights[name], "kind") == (not wide), name
        assert tuple(weights[name].shape) == shape


@every_head
def test_no_parameter_of_a_quantised_twin_is_a_matrix_of_a_layer(head, tmp_path):
    """Seen from torch: what is left of parameters in the layers is vectors, routers and coefficients."""
    saved(tmp_path, CONFIG, head)
    model = load(TORCH, tmp_path, head=head, quantization="nf4")
    left = [name for name, x in model.named_parameters() if "layers." in name and x.ndim > 1]
    assert len(left) == 2 * 2 and all(name.endswith(("mlp.gate.weight", "coefficient.weight")) for name in left)


@both
@every_kind
@every_configuration
def test_the_bytes_are_those_that_inspect_tells(side, kind, config, tmp_path):
    """Not an estimate: what the weights of the loaded model take, in two bytes where they are not quantised."""
    saved(tmp_path, config)
    model = load(side, tmp_path, NARROW[side.package.__name__], quantization=kind)
    assert sum(x.nbytes for x in model.weights.values()) == quantized_bytes(config, kind)[0]
    if side.is_torch:
        held = {x.data_ptr(): x.nbytes for x in (*model.parameters(), *model.buffers())}
        assert sum(held.values()) == quantized_bytes(config, kind)[0]


@both
@every_kind
@pytest.mark.parametrize("stacked", [False, True])
def test_each_expert_is_quantised_as_its_own_matrix(side, kind, stacked, tmp_path):
    """W₁'s rows and W₃'s as one matrix, however they lie on disk; 64 divides neither it nor W₂."""
    config = small(LIGHTNING, hidden_size=30, intermediate_size=7)
    reference = saved(tmp_path, config)
    names = [f"model.layers.0.mlp.experts.{part}" for part in ("gate_up_proj", "down_proj")]
    if stacked:
        tensors = load_file(tmp_path / "model.safetensors")
        tensors = {name: x for name, x in tensors.items() if ".experts." not in name}
        tensors |= {name.replace("mlp", "block_sparse_moe"): reference.weights[name] for name in names}
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load(side, tmp_path, quantization=kind)
    for name in names:
        for e, matrix in enumerate(reference.weights[name]):
            assert matrix.size % 64
            assert_same_parts(model.weights[name][e], quantizer(NUMPY).quantize(matrix, kind))


@both
@every_kind
@pytest.mark.parametrize("stored", ["float64", "float32", "float16", "bfloat16"])
def test_codes_are_those_of_the_numbers_stored(side, kind, stored, tmp_path):
    """Not of what they become in the type asked for, which is what they are dequantised to."""
    reference = lively(CONFIG)
    twin = TORCH.package.MiniMaxForCausalLM.from_reference(reference, dtype=getattr(torch, stored))
    twin.save_pretrained(tmp_path)
    name = "model.layers.1.self_attn.o_proj.weight"
    want = quantizer(NUMPY).quantize(array(twin.weights[name]), kind)
    for dtype in (None, "float16", "float32", "float64"):
        q = load(side, tmp_path, dtype, quantization=kind).weights[name]
        assert_same_parts(q, want)
        kept = dtype or ("float32" if stored == "bfloat16" and not side.is_torch else stored)
        assert str(q.dtype).removeprefix("torch.") == kept


@both
@every_kind
@every_head
def test_a_quantised_model_is_the_model_of_its_dequantised_weights(side, kind, head, tmp_path):
    """Nothing else is changed: the reference with those weights written out gives the same, in every head."""
    saved(tmp_path, CONFIG, head)
    weights = {name: np.asarray(x) for name, x in load(NUMPY, tmp_path, head=head, quantization=kind).weights.items()}
    wide = getattr(minimax_numpy, head)(CONFIG, dtype=np.float64, weights=weights)
    ids, mask = prompts(CONFIG, 2, 21), np.tri(2, 21, 14, dtype=int)
    want, got = wide(ids, mask), side.ask(load(side, tmp_path, head=head, quantization=kind), ids, mask)
    assert_same(array(got.last_hidden_state)[mask == 1], want.last_hidden_state[mask == 1])
    if head != "MiniMaxModel":
        assert_same(got.logits[:, -1], want.logits[:, -1])


@every_kind
def test_quantised_twins_pass_the_cross_check(kind, tmp_path):
    """Part by part at 1e-11: prefill, decode, padding, packing and losses, the modules where they were."""
    saved(tmp_path, CONFIG)
    truth, twin = (load(side, tmp_path, quantization=kind) for side in (NUMPY, TORCH))
    crosscheck(truth, twin, length=20).raise_if_different()


def test_the_cross_check_tells_a_quantised_model_from_the_wide_one(tmp_path):
    """The first difference is the first matrix that was quantised."""
    reference = saved(tmp_path, small(LIGHTNING))
    assert crosscheck(reference, load(TORCH, tmp_path, quantization="int8"), length=9).first.endswith("qkv_proj")


@every_kind
def test_a_quantised_twin_is_judged_in_its_type(kind, tmp_path):
    """bfloat16 with a float32 head: the type is the activations', and they pass by its allowance."""
    saved(tmp_path, CONFIG)
    truth = load(NUMPY, tmp_path, quantization=kind)
    twin = load(TORCH, tmp_path, "bfloat16", quantization=kind, lm_head_dtype=torch.float32)
    report = crosscheck(truth, twin, length=20)
    report.raise_if_different()
    assert "bfloat16" in str(report)


@every_kind
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_quantised_twins_generate_the_same_tokens(kind, dtype, tmp_path):
    """Token for token, from unequal rows."""
    saved(tmp_path, CONFIG)
    ids, mask = prompts(CONFIG, 3, 12), np.tri(3, 12, 9, dtype=int)[:, ::-1].copy()
    made = []
    for side in (NUMPY, TORCH):
        model = load(side, tmp_path, dtype, quantization=kind)
        made.append(array(model.generate(side.wrap(ids), side.wrap(mask), max_new_tokens=24)).tolist())
    assert made[0] == made[1] and len(made[0][0]) == 36


@every_kind
def test_a_quantised_reference_has_a_twin(kind, tmp_path):
    """from_reference copies codes and scales; a type asked for is what they are dequantised to."""
    saved(tmp_path, CONFIG)
    reference = load(NUMPY, tmp_path, quantization=kind)
    for dtype in (None, torch.bfloat16):
        twin = TORCH.package.MiniMaxForCausalLM.from_reference(reference, dtype)
        for name, x in reference.weights.items():
            if hasattr(x, "kind"):
                assert_same_parts(twin.weights[name], x)
                assert twin.weights[name].dtype == (dtype or torch.float64)


@every_kind
def test_a_quantised_module_moves_with_its_scales_as_they_are(kind, tmp_path):
    """.to, .half, deepcopy and state_dict: scales stay float32, codes integers, and the answers follow the type."""
    saved(tmp_path, CONFIG)
    model, ids = load(TORCH, tmp_path, quantization=kind), prompts(CONFIG, 1, 9)
    want, before = TORCH.ask(model, ids).logits, deepcopy(model)
    name = "model.layers.0.mlp.experts.down_proj"
    model.half()
    assert TORCH.ask(model, ids).logits.dtype == model.weights[name].dtype == torch.float16
    model.to("cpu", torch.float64)
    assert model.device == torch.device("cpu") and model.weights[name].dtype == torch.float64
    assert_same_parts(model.weights[name], before.weights[name])
    model.load_state_dict(before.state_dict())  # gains and embeddings were rounded on the way
    np.testing.assert_array_equal(TORCH.ask(model, ids).logits, want)


@both
@every_kind
def test_a_stack_gives_one_expert_at_a_time(side, kind):
    """A slice of it would go on with the scales of other rows, where its matrices are square."""
    stack = side.package.quantize.quantize(side.wrap(np.random.default_rng(0).standard_normal((3, 4, 4))), kind)
    np.testing.assert_array_equal(array(stack[-1].dequantize()), array(stack.dequantize())[2])
    for several in (slice(2), [0, 1]):
        with pytest.raises(TypeError):
            stack[several]


def test_functions_of_torch_take_it_by_name_too():
    q, x = TORCH.package.quantize.quantize(torch.randn(6, 5), "nf4"), torch.randn(2, 5)
    wanted = torch.nn.functional.linear(x, q.dequantize())
    for found in (torch.nn.functional.linear(x, q), torch.nn.functional.linear(x, weight=q)):
        np.testing.assert_array_equal(found, wanted)


def test_gradients_pass_through_quantised_weights(tmp_path):
    """Codes do not learn; what comes before them may."""
    saved(tmp_path, CONFIG)
    model = load(TORCH, tmp_path, quantization="nf4")
    x = torch.randn(1, 9, CONFIG.hidden_size, dtype=torch.float64, requires_grad=True)
    model(inputs_embeds=x).logits.square().sum().backward()
    assert x.grad is not None and bool((x.grad != 0).all())
    assert all(not isinstance(module, Quantized) or not list(module.parameters()) for module in model.modules())


@both
@every_kind
def test_a_quantised_model_is_not_saved(side, kind, tmp_path):
    """What would be written is not what was read: one sentence, and no file."""
    saved(tmp_path / "read")
    model = load(side, tmp_path / "read", quantization=kind)
    with pytest.raises(ValueError) as error:
        model.save_pretrained(tmp_path / "written")
    assert_one_sentence(error.value, "quantised")
    assert not (tmp_path / "written").exists()


@both
def test_an_unknown_kind_is_refused_before_anything_is_read(side):
    """The kind is looked at before the path."""
    with pytest.raises(ValueError) as error:
        load(side, "nowhere", quantization="nf3")
    assert_one_sentence(error.value, "'nf3'", "nf4-double")


@both
def test_streamed_weights_are_not_quantised(side):
    """Both options at once are refused before the path is looked at."""
    with pytest.raises(ValueError) as error:
        load(side, "nowhere", quantization="nf4", stream=True)
    assert_one_sentence(error.value, "quantization", "stream")


@both
def test_damaged_weights_are_not_quantised(side, tmp_path):
    """The tensor on disk is named."""
    reference = lively(CONFIG)
    reference.weights["model.layers.0.mlp.experts.down_proj"][1, 0, 0] = np.nan
    reference.save_pretrained(tmp_path)
    with pytest.raises(ValueError) as error:
        load(side, tmp_path, quantization="nf4")
    assert_one_sentence(error.value, "block_sparse_moe.experts.1.w2.weight")


@both
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_the_head_may_be_wider_than_the_rest(side, quantization, tmp_path):
    """Logits come out in its type, unrounded; the hidden states stay in the model's, and generate goes on as ever."""
    reference = saved(tmp_path)
    dtype = NARROW[side.package.__name__]
    wide = side.wrap(np.zeros(1), "float32").dtype
    model = load(side, tmp_path, dtype, quantization=quantization, lm_head_dtype=wide)
    ids = prompts(CONFIG, 2, 11)
    out = side.ask(model, ids)
    assert str(out.last_hidden_state.dtype).removeprefix("torch.") == dtype
    assert out.logits.dtype == model.weights["lm_head.weight"].dtype == wide
    np.testing.assert_array_equal(array(model.weights["lm_head.weight"]), reference.weights["lm_head.weight"])
    assert_same(out.logits, array(out.last_hidden_state) @ reference.weights["lm_head.weight"].T, within=1e-6)
    assert model.generate(side.wrap(ids), max_new_tokens=3).shape == (2, 14)
    kept = load(side, tmp_path, "float64", lm_head_dtype=wide)  # at least that wide, never narrower than the rest
    assert str(kept.weights["lm_head.weight"].dtype).removeprefix("torch.") == "float64"


@both
@pytest.mark.parametrize(
    "config, head, told",
    [
        (CONFIGURATIONS["tied embeddings"], "MiniMaxForCausalLM", "embedding"),
        (CONFIG, "MiniMaxForTokenClassification", "MiniMaxForTokenClassification"),
        (CONFIG, "MiniMaxModel", "MiniMaxModel"),
    ],
    ids=["tied", "a task's", "none"],
)
def test_only_a_head_of_its_own_may_be_wide(side, config, head, told, tmp_path):
    """A tied head is the embedding, and the other heads are not an lm_head: one sentence."""
    saved(tmp_path, config, head)
    with pytest.raises(ValueError) as error:
        load(side, tmp_path, head=head, lm_head_dtype=side.wrap(np.zeros(1), "float32").dtype)
    assert_one_sentence(error.value, told, "lm_head_dtype")


@both
@pytest.mark.parametrize("option", ["dtype", "lm_head_dtype"])
def test_a_type_that_is_none_of_ours_is_refused_before_anything_is_read(side, option):
    """Integers are no activations."""
    with pytest.raises(ValueError) as error:
        side.package.MiniMaxForCausalLM.from_pretrained("nowhere", **{option: torch.int8 if side.is_torch else "int8"})
    assert_one_sentence(error.value, "int8", "float16")
