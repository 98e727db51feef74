"""A small real tokenizer (byte-level BPE) with a ChatML template. Characters beyond ASCII span tokens."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from diptych.errors import InvalidRequest

START, END = "<|im_start|>", "<|im_end|>"


def make_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("h", "e"),
        ("l", "l"),
        ("ll", "o"),
        ("he", "llo"),
        ("Ġ", "t"),
        ("Ġt", "he"),
        ("a", "n"),
        ("an", "d"),
    ]
    tokens = alphabet + [left + right for left, right in merges]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(START, special=True), AddedToken(END, special=True)])
    return tokenizer


class Utf8Decoder:
    """Bytes of each token through an incremental UTF-8 decoder."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._bytes[token])

    def flush(self) -> str:
        return self._utf8.decode(b"", True)


class ChatML:
    """The chat format of the scripted model."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer()
        to_byte = {char: byte for byte, char in _byte_alphabet().items()}
        vocab = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        self._bytes = [
            token.encode() if token in (START, END) else bytes(to_byte[char] for char in token) for token, _ in vocab
        ]
        self.end_tokens = frozenset({self.tokenizer.token_to_id(END)})

    def prompt_tokens(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None
    ) -> tuple[int, ...]:
        turns = "".join(f"{START}{turn['role']}\n{turn['content']}{END}\n" for turn in messages)
        return self.encode(f"{turns}{START}assistant\n")

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decoder(self) -> Utf8Decoder:
        return Utf8Decoder(self._bytes)

    def token_text(self, token: int) -> bytes:
        if token >= len(self._bytes):
            raise InvalidRequest(f"token {token} is not in the model's vocabulary")
        return self._bytes[token]

    def text(self, tokens: Sequence[int]) -> str:
        return b"".join(self._bytes[token] for token in tokens).decode()


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(others)}
