"""A call that does not fit gets one clear sentence, in both packages, before any work is done."""

from dataclasses import replace

import numpy as np
import pytest
from close import NUMPY, TORCH, assert_one_sentence, both, lively, prompts, small

pytestmark = pytest.mark.usefixtures("unchecked")
CONFIG = small()
IDS = prompts(CONFIG, 2, 5)
ONE = IDS[:1]
EMBEDS = np.zeros((2, 5, 32))

CALLS = {
    "neither ids nor embeddings": ({}, "input_ids or inputs_embeds"),
    "both ids and embeddings": ({"input_ids": IDS, "inputs_embeds": EMBEDS}, "input_ids or inputs_embeds"),
    "one row without a batch": ({"input_ids": IDS[0]}, "[B, T]"),
    "embeddings without a batch": ({"inputs_embeds": EMBEDS[0]}, "[B, T, D]"),
    "embeddings of another width": ({"inputs_embeds": EMBEDS[:, :, :31]}, "31 channels"),
    "an empty prompt": ({"input_ids": IDS[:, :0]}, "empty prompt"),
    "an empty batch": ({"input_ids": IDS[:0]}, "empty"),
    "ids that are not integers": ({"input_ids": IDS.astype(np.float32)}, "float32"),
    "an id too high": ({"input_ids": IDS * 0 + 256}, "256 is out of range"),
    "an id too low": ({"input_ids": IDS * 0 - 1}, "-1 is out of range"),
    "a mask of another length": ({"input_ids": IDS, "attention_mask": np.ones((2, 6), int)}, "attention_mask"),
    "a mask of other rows": ({"input_ids": IDS, "attention_mask": np.ones((1, 5), int)}, "attention_mask"),
    "positions of another shape": ({"input_ids": IDS, "position_ids": np.arange(5)}, "position_ids"),
    "packing that starts late": ({"input_ids": ONE, "cu_seqlens": np.array([1, 5])}, "cu_seqlens"),
    "packing that ends early": ({"input_ids": ONE, "cu_seqlens": np.array([0, 4])}, "cu_seqlens"),
    "packing that ends late": ({"input_ids": ONE, "cu_seqlens": np.array([0, 6])}, "cu_seqlens"),
    "packing that goes back": ({"input_ids": ONE, "cu_seqlens": np.array([0, 3, 2, 5])}, "cu_seqlens"),
    "an empty document": ({"input_ids": ONE, "cu_seqlens": np.array([0, 3, 3, 5])}, "cu_seqlens"),
    "no document": ({"input_ids": ONE, "cu_seqlens": np.array([0])}, "cu_seqlens"),
    "packing in two rows": ({"input_ids": IDS, "cu_seqlens": np.array([0, 5])}, "one row"),
    "packing with a mask": ({"input_ids": ONE, "attention_mask": ONE * 0 + 1, "cu_seqlens": np.array([0, 5])}, "mask"),
    "labels of another length": ({"input_ids": IDS, "labels": IDS[:, 1:]}, "labels"),
    "labels of other rows": ({"input_ids": IDS, "labels": ONE}, "labels"),
    "labels for logits that are left out": ({"input_ids": IDS, "labels": IDS, "logits_to_keep": 1}, "logits_to_keep"),
    "a label too high": ({"input_ids": IDS, "labels": IDS * 0 + 256}, "256"),
    "a label below 0 that is not −100": ({"input_ids": IDS, "labels": IDS * 0 - 1}, "-1"),
    "a negative number of logits": ({"input_ids": IDS, "logits_to_keep": -1}, "logits_to_keep"),
}


@both
@pytest.mark.parametrize("inputs, fragment", CALLS.values(), ids=CALLS.keys())
def test_a_bad_call_gets_one_sentence(side, inputs, fragment):
    """That says what was wrong; the cache that went with it is as it was."""
    cache = side.cache(CONFIG, 1 if len(inputs.get("input_ids", IDS)) == 1 else 2)
    with pytest.raises(ValueError) as said:
        side.call(lively(CONFIG), **inputs, cache=cache)
    assert_one_sentence(said.value, fragment)
    assert not np.asarray(cache.lengths).any() and cache.nbytes == 0


@both
def test_a_list_is_no_array(side):
    """In a call and in generation."""
    model = side.model(lively(CONFIG))
    for call in (model, model.generate):
        with pytest.raises(ValueError) as said:
            call(IDS.tolist())
        assert_one_sentence(said.value, "input_ids is a list")


@both
@pytest.mark.parametrize(
    "config, rows, fragment",
    [(CONFIG, 3, "3 rows"), (replace(CONFIG, block_size=4, sliding_window=2), 2, "configuration")],
    ids=["of other rows", "of another model"],
)
def test_a_cache_that_does_not_fit(side, config, rows, fragment):
    with pytest.raises(ValueError) as said:
        side.call(lively(CONFIG), IDS, cache=side.cache(config, rows))
    assert_one_sentence(said.value, fragment)


@both
@pytest.mark.parametrize("other", [[], {"keys": []}], ids=["an empty list", "a dictionary"])
def test_what_is_no_cache_at_all(side, other):
    """An empty one of another library counts as false; it is not taken for none."""
    model = side.model(lively(CONFIG))
    for call in (model, model.generate):
        with pytest.raises(ValueError) as said:
            call(side.wrap(IDS), cache=other)
        assert_one_sentence(said.value, f"cache is a {type(other).__name__}")


@pytest.mark.parametrize("side, other", [(NUMPY, TORCH), (TORCH, NUMPY)], ids=repr)
def test_a_cache_of_the_other_package(side, other):
    """Arrays and tensors do not mix."""
    with pytest.raises((ValueError, TypeError)) as said:
        side.call(lively(CONFIG), IDS, cache=other.cache(CONFIG, 2))
    assert_one_sentence(said.value, "ache")


@both
@pytest.mark.parametrize(
    "head, labels",
    [
        ("SequenceClassification", np.array([0])),  # two rows
        ("SequenceClassification", np.array([[0, 1], [1, 0]])),
        ("SequenceClassification", np.array([0, 3])),  # three labels, 0 … 2
        ("SequenceClassification", np.zeros((2, 2))),  # three outputs
        ("TokenClassification", np.zeros((2, 4), int)),
        ("TokenClassification", np.zeros((1, 5), int)),
        ("QuestionAnswering", np.array([0, 1])),
        ("QuestionAnswering", np.array([[0, 1]])),
        ("QuestionAnswering", np.array([[0, 1], [2, 5]])),  # five positions, 0 … 4
    ],
    ids=str,
)
def test_labels_that_do_not_fit_a_task_head(side, head, labels):
    """Neither broadcast nor wrapped around: refused."""
    with pytest.raises(ValueError) as said:
        side.call(lively(CONFIG, f"MiniMaxFor{head}"), IDS, labels=labels)
    assert_one_sentence(said.value, "abel")


@both
@pytest.mark.parametrize(
    "inputs, fragment",
    [
        ({"input_ids": IDS[:, :0]}, "empty prompt"),
        ({"input_ids": IDS, "attention_mask": np.array([[1] * 5, [0] * 5])}, "Row 1"),
        ({"input_ids": IDS, "attention_mask": np.ones((2, 4), int)}, "attention_mask"),
        ({"input_ids": IDS * 0 + 999}, "999"),
        ({"input_ids": IDS, "max_new_tokens": -1}, "max_new_tokens"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_prompt_that_cannot_be_continued(side, inputs, fragment):
    arrays = {name: side.wrap(x) if isinstance(x, np.ndarray) else x for name, x in inputs.items()}
    with pytest.raises(ValueError) as said:
        side.model(lively(CONFIG)).generate(**arrays)
    assert_one_sentence(said.value, fragment)


@both
@pytest.mark.parametrize(
    "op, arguments, fragment",
    [
        ("lightning_attention_direct", (4, 2, 2), "no grouped heads"),
        ("lightning_attention_recurrent", (4, 2, 2), "no grouped heads"),
        ("lightning_attention_chunked", (4, 4, 2), "no grouped heads"),
        ("softmax_attention", (3, 2, 2), "3 query heads cannot share 2"),
    ],
)
def test_heads_that_do_not_fit(side, op, arguments, fragment):
    ops = side.package.ops
    heads = [side.wrap(np.zeros((1, n, 5, 4))) for n in arguments]
    slopes = () if op == "softmax_attention" else (ops.decay_slopes(4, 0, 4),)
    with pytest.raises(ValueError) as said:
        getattr(ops, op)(*heads, *slopes)
    assert_one_sentence(said.value, fragment)


@both
def test_names_and_numbers_that_ops_do_not_know(side):
    ops, x = side.package.ops, side.wrap(np.zeros((1, 1, 3, 4)))
    for call, fragment in (
        (lambda: ops.decay_slopes(4, 0, 4, "alibi"), "'alibi'"),
        (lambda: ops.activate(x, "relu"), "'relu'"),
        (lambda: ops.lightning_attention_chunked(x, x, x, ops.decay_slopes(1, 0, 4), chunk=0), "chunk is 0"),
        (lambda: ops.using(attention=len), "'attention'"),
    ):
        with pytest.raises(ValueError) as said:
            call().__enter__()
        assert_one_sentence(said.value, fragment)


def test_types_that_a_model_cannot_have():
    """bfloat16 is not NumPy's, and no model is made of integers."""
    with pytest.raises(ValueError) as said:
        NUMPY.package.MiniMaxModel(CONFIG, dtype=np.int64)
    assert_one_sentence(said.value, "int64", "float32")
    with pytest.raises(ValueError) as said:
        TORCH.package.MiniMaxModel(CONFIG, dtype=TORCH.wrap(IDS).dtype)
    assert_one_sentence(said.value, "int64", "bfloat16")


def test_what_only_the_twin_can_be_asked():
    """A device that is not there, an implementation that is not known, a twin of another head."""
    with pytest.raises(ValueError) as said:
        TORCH.package.MiniMaxModel(CONFIG, device="meta:nowhere")
    assert_one_sentence(said.value, "nowhere")
    with pytest.raises(ValueError) as said:
        TORCH.package.MiniMaxModel(CONFIG, attn_implementation="flash")
    assert_one_sentence(said.value, "'flash'", "'flash_attention_2'")
    with pytest.raises(ValueError) as said:
        TORCH.package.MiniMaxModel.from_reference(lively(CONFIG))
    assert_one_sentence(said.value, "MiniMaxForCausalLM")
