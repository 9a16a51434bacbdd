"""Text in front of the models: token ids of sentences and chats, and back. Both twins and the command line use it.

The tokenizer of a folder is read by the ``tokenizers`` library and its chat template by ``jinja2``, in a sandbox: a
template comes with a checkpoint, so it is somebody else's program. Both come with the extra ``text``.

A chat, as MiniMax-Text-01 knows it (one line a turn, after each name a newline):

    <beginning_of_sentence>system ai_setting=assistant\\n{text}<end_of_sentence>\\n
    <beginning_of_sentence>user name=user\\n{text}<end_of_sentence>\\n
    <beginning_of_sentence>ai name=assistant\\n
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from .extras import optional

ROLES = ("system", "user", "assistant")


class Tokenizer:
    """The tokenizer of a checkpoint's folder, and its chat template.

    Raises FileNotFoundError, ValueError or ModuleNotFoundError, one sentence long, where the folder has no
    ``tokenizer.json``, where its files are damaged, or where the extra ``text`` is not installed.
    """

    def __init__(self, path: str | os.PathLike):
        self.path, library = Path(path), optional("tokenizers", "text")
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(f"{self.path} has no tokenizer.json; give ids, or put the model's tokenizer there.")
        try:
            self.backend = library.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the library knows one kind of error
            raise ValueError(f"{file} is not a tokenizer: {error}") from None
        self.settings = self._read_settings()
        self.special = {key: _content(self.settings.get(key)) for key in ("bos_token", "eos_token", "pad_token")}
        pad = self.special["pad_token"] or self.special["eos_token"]
        self.pad_token_id: int = (pad and self.backend.token_to_id(pad)) or 0
        self.backend.no_truncation()
        self.backend.enable_padding(direction="left", pad_id=self.pad_token_id)

    def encode(
        self, texts: str | Sequence[str], add_special_tokens: bool = True
    ) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
        """Ids and attention mask of some texts, padded on the left.

        ``add_special_tokens`` adds what the folder's tokenizer puts around a text of its own accord. A marker such as
        ``<end_of_sentence>`` inside a text becomes the marker, as everywhere: clean what strangers send you.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("There is no text; give at least one.")
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"Text {row} is a {type(text).__name__}; it should be a string.")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(
                    f"Text {row} is no Unicode: it holds half a surrogate pair; read it as UTF-8."
                ) from None
        rows = self.backend.encode_batch(texts, add_special_tokens=add_special_tokens)
        return np.array([row.ids for row in rows], np.int64), np.array([row.attention_mask for row in rows], bool)

    def encode_chat(self, chats: Sequence) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
        """Ids and attention mask of some chats, each a list of messages, up to where the assistant speaks."""
        return self.encode([self.render(messages) for messages in chats], add_special_tokens=False)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of one row of ids. Bytes that make no character come out as U+FFFD.

        Raises ValueError on an id below 0; one beyond the vocabulary has no text.
        """
        row = [int(i) for i in ids]
        if min(row, default=0) < 0:
            raise ValueError(f"Token id {min(row)} is below 0; ids count from 0.")
        return self.backend.decode(row, skip_special_tokens=skip_special_tokens)

    def stream(self) -> "TextStream":
        """Decode one row, token by token."""
        return TextStream(self)

    def render(self, messages: Any, add_generation_prompt: bool = True) -> str:
        """Write a chat as the folder's template has it, ending where the assistant is to speak.

        ``messages`` is a list of ``{"role": "system" | "user" | "assistant", "content": …}``, in which the content is
        a string or a list of ``{"type": "text", "text": …}``, read as one text. Raises ValueError on anything else.
        """
        chat, template, sandbox = check_messages(messages), self._template(), _sandbox()
        known = {name: token for name, token in self.special.items() if token is not None}
        try:
            return sandbox.from_string(template).render(
                messages=chat, add_generation_prompt=add_generation_prompt, **known
            )
        except Exception as error:  # a program of somebody else's
            raise ValueError(f"The chat template of {self.path} fails: {error}") from None

    def _template(self) -> str:
        """Of ``chat_template.jinja``, else of ``tokenizer_config.json``."""
        file = self.path / "chat_template.jinja"
        template = file.read_text(encoding="utf-8") if file.is_file() else self.settings.get("chat_template")
        if not isinstance(template, str):
            raise ValueError(f"{self.path} has no chat template; give it a chat_template.jinja, or give plain text.")
        return template

    def _read_settings(self) -> dict:
        file = self.path / "tokenizer_config.json"
        if not file.is_file():
            return {}
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(settings, dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise ValueError(f"{file} is damaged: it should be JSON, keys and values.") from None
        return settings


class TextStream:
    """Text as its tokens come: a character is shown when the last of its bytes is there.

    `push` returns what a token completes, possibly nothing; `finish` returns what is still held back. Put together they
    are the decoding of all tokens at once.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.stream = optional("tokenizers.decoders", "text").DecodeStream(skip_special_tokens=True)
        self.held: list[int] = []

    def push(self, token: int) -> str:
        """Take a token; return the text that it completes."""
        self.held.append(int(token))
        text = self.stream.step(self.tokenizer.backend, int(token))
        if text is None:
            return ""
        self.held.clear()
        return text

    def finish(self) -> str:
        """What is held back when no more tokens come: half a character, as U+FFFD."""
        text = self.tokenizer.decode(self.held)
        self.held.clear()
        return text


def check_messages(messages: Any) -> list[dict]:
    """The same chat with each content as one list of one text, or ValueError: one sentence, naming the message."""
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError("A chat is a list of messages, at least one, each with a role and a content.")
    return [_check_message(i, message) for i, message in enumerate(messages)]


def _check_message(i: int, message: Any) -> dict:
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        raise ValueError(f'Message {i} should be {{"role": …, "content": …}}; it is {message!r:.80}.')
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(f"Message {i} has the role {role!r}; there are {', '.join(ROLES)}.")
    if role == "system" and i > 0:
        raise ValueError(f"Message {i} is the system's; a system message comes first or not at all.")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list | tuple) or not parts:
        raise ValueError(f"The content of message {i} should be a string or a list of texts; it is {content!r:.80}.")
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text":
            raise ValueError(f"Message {i} holds a part of type {kind!r}; this model reads text alone.")
        if not isinstance(part.get("text"), str):
            raise ValueError(f"Message {i} holds a text that is {part.get('text')!r:.80}; it should be a string.")
    return {"role": role, "content": [{"type": "text", "text": "".join(part["text"] for part in parts)}]}


def _sandbox():
    """Where templates run: they see the messages, and can change nothing."""
    jinja2, sandbox, ext = (optional(module, "text") for module in ("jinja2", "jinja2.sandbox", "jinja2.ext"))

    class Generation(ext.Extension):
        """``{% generation %}`` marks what an assistant said, for training; here it is said like the rest."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(told):
        raise jinja2.TemplateError(told)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    return environment


def _content(token: Any) -> str | None:
    """A special token is written as a string or as {"content": …}."""
    return token.get("content") if isinstance(token, dict) else token
