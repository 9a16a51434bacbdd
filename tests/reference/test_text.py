"""Text and chats: the released format to the letter, and nothing lost on the way to ids and back."""

import json
import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minimax_numpy.shipped import TINY
from minimax_numpy.text import Tokenizer, check_messages

TOKENIZER = Tokenizer(TINY)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello!\n\n  How are you?"},
    {"role": "assistant", "content": "Well."},
    {"role": "user", "content": "{{ 7 * 7 }} {% raw %}"},
]
WRITTEN_OUT = (
    "<beginning_of_sentence>system ai_setting=assistant\nBe brief.<end_of_sentence>\n"
    "<beginning_of_sentence>user name=user\nHello!\n\n  How are you?<end_of_sentence>\n"
    "<beginning_of_sentence>ai name=assistant\nWell.<end_of_sentence>\n"
    "<beginning_of_sentence>user name=user\n{{ 7 * 7 }} {% raw %}<end_of_sentence>\n"
)
any_ids = st.lists(st.integers(0, TOKENIZER.backend.get_vocab_size() - 1), max_size=40)


def user(content):
    return [{"role": "user", "content": content}]


@pytest.fixture
def folder(tmp_path):
    """A folder with a copy of the shipped tokenizer, to be changed."""
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / file, tmp_path)
    return tmp_path


def test_a_chat_is_written_as_the_release_has_it():
    """What is said is passed through as it is, spaces, blank lines and braces included; then the assistant's name."""
    assert TOKENIZER.render(CHAT) == WRITTEN_OUT + "<beginning_of_sentence>ai name=assistant\n"
    assert TOKENIZER.render(CHAT, add_generation_prompt=False) == WRITTEN_OUT


def test_a_content_in_parts_is_the_same_text():
    parts = [
        {**message, "content": [{"type": "text", "text": t} for t in (message["content"][:3], message["content"][3:])]}
        for message in CHAT
    ]
    assert TOKENIZER.render(parts) == TOKENIZER.render(CHAT)
    assert TOKENIZER.encode_chat([parts])[0].tolist() == TOKENIZER.encode_chat([CHAT])[0].tolist()


def test_markers_are_single_tokens():
    """A turn begins with id 1 and ends with id 2, the model's own stop."""
    ids, mask = TOKENIZER.encode_chat([user("Hi")])
    assert mask.all() and ids[0, 0] == 1
    assert ids[0].tolist().count(1) == 2 and ids[0].tolist().count(2) == 1
    assert TOKENIZER.decode(ids[0], skip_special_tokens=False) == TOKENIZER.render(user("Hi"))


def test_a_released_template_works():
    """It indexes parts, marks what the assistant says for training, and lies in tokenizer_config.json."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% for part in m['content'] | "
        "selectattr('type', 'equalto', 'text') %}{% generation %}{{ part['text'] }}{% endgeneration %}{% endfor %}"
        "{% else %}{{ bos_token + m['content'][0]['text'] }}{% endif %}{{ eos_token }}{% endfor %}"
    )
    tokenizer = Tokenizer(TINY)
    tokenizer._template = lambda: template
    wanted = "<beginning_of_sentence>a b<end_of_sentence>c<end_of_sentence>"
    ab = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert tokenizer.render([*user(ab), {"role": "assistant", "content": "c"}]) == wanted


def test_a_template_in_the_settings_is_read(folder):
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"chat_template": "{{ messages[0].content[0].text }}{{ eos_token }}", "eos_token": {"content": "."}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert Tokenizer(folder).render(user("Hi")) == "Hi."


def test_a_template_can_change_and_reach_nothing(folder):
    """It comes with a checkpoint from somewhere: jinja's sandbox refuses the ways out of it."""
    for escape in ("{{ messages.append(1) }}", "{{ messages.__class__.__mro__ }}", "{{ ''.__class__.__base__ }}"):
        (folder / "chat_template.jinja").write_text(escape)
        with pytest.raises(ValueError, match="The chat template of .* fails: .*(unsafe|not safely callable)"):
            Tokenizer(folder).render(user("Hi"))


@given(st.text())
def test_any_text_comes_back(text):
    ids, mask = TOKENIZER.encode(text)
    assert mask.all() and TOKENIZER.decode(ids[0]) == text


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_a_batch_is_each_text_behind_pads(texts):
    ids, mask = TOKENIZER.encode(texts)
    for row, real, text in zip(ids, mask, texts):
        assert row[real].tolist() == TOKENIZER.encode(text)[0][0].tolist()
        assert real.tolist() == sorted(real.tolist()) and set(row[~real]) <= {0}


@given(any_ids)
def test_decoding_as_tokens_come_is_decoding_them_all(ids):
    """Any ids, those that a wild model makes included: halves of characters, stray bytes, special tokens."""
    stream = TOKENIZER.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == TOKENIZER.decode(ids)


@given(st.text())
def test_what_has_been_shown_is_never_taken_back(text):
    """A character of several bytes waits for its last one, so no replacement character flickers by."""
    stream, shown = TOKENIZER.stream(), ""
    for token in TOKENIZER.encode(text)[0][0]:
        shown += stream.push(token)
        assert text.startswith(shown)
    assert shown + stream.finish() == text


def test_a_character_is_shown_with_its_last_byte():
    ids = TOKENIZER.encode("a€b")[0][0]  # the euro sign has three bytes, which no merge joins here
    stream = TOKENIZER.stream()
    assert [stream.push(token) for token in ids] == ["a", "", "", "€", "b"]
    stream.push(ids[1])
    assert stream.finish() == "\ufffd"


PART = {"type": "text", "text": "x"}
BAD_CHATS = {
    "no messages": ([], "at least one"),
    "no list": ({"role": "user", "content": "x"}, "A chat is a list"),
    "a string": ("Hi", "A chat is a list"),
    "no message": (["Hi"], "Message 0 should be"),
    "no content": ([{"role": "user"}], "Message 0 should be"),
    "no role": ([{"content": "x"}], "Message 0 should be"),
    "an unknown role": ([*user("x"), {"role": "tool", "content": "x"}], "Message 1 has the role 'tool'"),
    "a list for a role": ([{"role": [], "content": "x"}], r"Message 0 has the role \[\]"),
    "the system not first": ([*user("x"), {"role": "system", "content": "x"}], "Message 1 is the system's"),
    "content of nothing": (user(None), "The content of message 0"),
    "content a number": (user(5), "The content of message 0"),
    "no parts": (user([]), "The content of message 0"),
    "an image": (user([PART, {"type": "image_url", "image_url": "x"}]), "a part of type 'image_url'"),
    "a part without type": (user([{"text": "x"}]), "a part of type None"),
    "a bare string for a part": (user(["x"]), "a part of type 'str'"),
    "a text that is none": (user([{"type": "text", "text": 5}]), "Message 0 holds a text that is 5"),
}


@pytest.mark.parametrize("title", BAD_CHATS)
def test_a_bad_chat_is_told_in_one_sentence(title):
    chat, told = BAD_CHATS[title]
    with pytest.raises(ValueError, match=told) as error:
        check_messages(chat)
    assert len(str(error.value).splitlines()) == 1


def test_bad_texts_are_refused():
    for text, told in ((5, "Text 1 is a int"), (None, "Text 1 is a NoneType"), ("\ud83d", "Text 1 is no Unicode")):
        with pytest.raises(ValueError, match=told):
            TOKENIZER.encode(["fine", text])
    with pytest.raises(ValueError, match="no text"):
        TOKENIZER.encode([])
    with pytest.raises(ValueError, match="Token id -1 is below 0"):
        TOKENIZER.decode([5, -1])


def test_a_folder_without_tokenizer_or_template_says_so(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        Tokenizer(folder).render(user("Hi"))
    (folder / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ValueError, match="tokenizer_config.json is damaged"):
        Tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer"):
        Tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no tokenizer.json"):
        Tokenizer(folder)


@pytest.mark.parametrize("library", ["tokenizers", "jinja2"])
def test_without_the_extra_the_install_line_is_told(library, monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == library] + [library]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'minimax-twin\[text\]'"):
        Tokenizer(TINY).render(user("Hi"))
