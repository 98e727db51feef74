"""Messages to prompt tokens and tokens to text, with ``tokenizers`` and ``jinja2`` alone."""

from __future__ import annotations

import codecs
import contextlib
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer, decoders

from diptych.errors import ConfigError, InvalidRequest
from diptych.models.control import ControlTokens
from diptych.models.resolve import ModelBundle

# For a base model without a template: who speaks, a colon, what is said.
_PLAIN: Final = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}assistant:"

_HALF_A_PAIR: Final = "the text is not valid Unicode: it holds half of a surrogate pair"


class ChatFormat:
    """One model's way of writing a conversation, and its tokens' text."""

    def __init__(self, tokenizer: Tokenizer, template: str | None, bundle: ModelBundle) -> None:
        self.end_tokens: frozenset[int] = frozenset(bundle.end_tokens)
        self._tokenizer = tokenizer
        self._control = ControlTokens(tokenizer)
        self._bytes = _TokenBytes(tokenizer)
        special = {"bos_token": bundle.bos_token, "eos_token": bundle.eos_token}
        self._special = {k: "" if v is None else tokenizer.id_to_token(v) or "" for k, v in special.items()}
        try:
            self._template = _environment().from_string(template or _PLAIN)
        except jinja2.TemplateError as error:
            raise ConfigError(f"the chat template of {bundle.id} cannot be used: {error}") from error

    @classmethod
    def load(cls, bundle: ModelBundle) -> ChatFormat:
        """Reads the tokenizer that ``resolve_model`` prepared."""
        return cls(Tokenizer.from_file(bundle.tokenizer), bundle.chat_template, bundle)

    def prompt_tokens(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[int, ...]:
        """The conversation as the model reads it, up to where its answer begins.

        Control tokens written out in messages or tools are read as ordinary text. Raises InvalidRequest when the
        model's template refuses the messages (an order of roles that it does not know, content that is not text, ...).
        """
        mark = self._control.mark(messages, tools)
        if mark is None:
            return self.encode(self._rendered(messages, tools))
        text = self._rendered(self._control.guarded(messages, mark), self._control.guarded(tools, mark))
        try:
            return tuple(self._control.encode(text, mark))
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequest(_HALF_A_PAIR) from error

    def _rendered(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str:
        try:
            return self._template.render(
                messages=list(messages),
                tools=list(tools) if tools else None,
                add_generation_prompt=True,
                **self._special,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise InvalidRequest(f"the model's chat template refuses the messages: {error}") from error

    def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of ``text`` as it stands; control tokens written out in it are read as such."""
        try:
            return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequest(_HALF_A_PAIR) from error

    def decoder(self) -> TokenDecoder:
        """A new decoder for one stream of tokens."""
        return TokenDecoder(self._bytes)

    def token_text(self, token: int) -> bytes:
        """The bytes that ``token`` stands for; none for a control token."""
        return self._bytes[token]


class TokenDecoder:
    """Text of a stream of tokens. A character spread over several tokens comes with the last of them."""

    def __init__(self, token_bytes: _TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._texts = token_bytes.texts
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._between_characters = True

    def push(self, token: int) -> str:
        """The text that is complete with ``token``."""
        if self._between_characters and (text := self._texts.get(token)) is not None:
            return text
        text = self._bytes.decode(self._token_bytes[token])
        self._between_characters = not self._bytes.getstate()[0]
        return text

    def flush(self) -> str:
        """What is left at the end: a replacement character for a character that was never completed."""
        return self._bytes.decode(b"", True)


class _TokenBytes(dict[int, bytes]):
    """Token id -> bytes, worked out at a token's first use; ``texts`` has those that are whole characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.texts: dict[int, str] = {}
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._whole = {i: b"" if token.special else token.content.encode() for i, token in added.items()}
        self._byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)

    def __missing__(self, token: int) -> bytes:
        text = self._tokenizer.id_to_token(token)
        if text is None:
            raise InvalidRequest(f"token {token} is not in the model's vocabulary")
        if token in self._whole:
            found = self._whole[token]
        else:
            found = _from_byte_alphabet(text) if self._byte_level else _from_piece(text)
        self[token] = found
        with contextlib.suppress(UnicodeDecodeError):
            self.texts[token] = found.decode()
        return found


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself where it is printable, else 256 + a running number."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in set(printable))
    return {chr(b): b for b in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_ALPHABET: Final = _byte_alphabet()


def _from_byte_alphabet(text: str) -> bytes:
    return b"".join(bytes((_ALPHABET[c],)) if c in _ALPHABET else c.encode() for c in text)


def _from_piece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    return piece.replace("▁", " ").encode()


def _environment() -> jinja2.Environment:
    """The environment that chat templates are written for: transformers' names, in a sandbox."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(layout: str) -> str:
    return datetime.datetime.now().astimezone().strftime(layout)
