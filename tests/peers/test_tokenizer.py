"""transformers' AutoTokenizer reads the shipped tokenizer and template, and makes the same ids of everything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minimax_numpy.config import MiniMaxConfig
from minimax_numpy.shipped import TINY
from minimax_numpy.text import Tokenizer
from transformers import AutoTokenizer, GenerationConfig

OURS, THEIRS = Tokenizer(TINY), AutoTokenizer.from_pretrained(TINY)
contents = st.text() | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}), min_size=1)
turns = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": contents}))
chats = st.builds(
    lambda system, first, rest: [*system, first, *rest],
    st.lists(st.fixed_dictionaries({"role": st.just("system"), "content": contents}), max_size=1),
    st.fixed_dictionaries({"role": st.just("user"), "content": contents}),
    turns,
)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=3))
def test_the_same_ids_and_mask(texts):
    theirs = THEIRS(texts, padding=True)
    ids, mask = OURS.encode(texts)
    assert ids.tolist() == theirs["input_ids"] and mask.tolist() == theirs["attention_mask"]


@given(chats, st.booleans())
def test_the_same_chat(messages, prompt):
    text = OURS.render(messages, add_generation_prompt=prompt)
    assert text == THEIRS.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    ids = OURS.encode(text, add_special_tokens=False)[0][0].tolist()
    assert ids == THEIRS.apply_chat_template(messages, add_generation_prompt=prompt)["input_ids"]


@given(st.lists(st.integers(0, 511)), st.booleans())
def test_the_same_text(ids, skip):
    assert OURS.decode(ids, skip) == THEIRS.decode(ids, skip_special_tokens=skip)


def test_the_same_special_tokens():
    """In the tokenizer, in the model's configuration and in what transformers' generate goes by."""
    config, generation = MiniMaxConfig.from_pretrained(TINY), GenerationConfig.from_pretrained(TINY)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert getattr(THEIRS, name) == getattr(config, name) == getattr(generation, name)
    assert len(THEIRS) == config.vocab_size and THEIRS.model_max_length == config.max_position_embeddings
    assert THEIRS.padding_side == "left"


@pytest.mark.parametrize(
    "message", [{"role": "tool", "content": "x"}, {"role": "user", "content": [{"type": "image"}]}]
)
def test_the_template_itself_refuses_what_it_cannot_write(message):
    with pytest.raises(Exception, match="A role is|This model reads text alone"):
        THEIRS.apply_chat_template([message])
