"""Control tokens come from the chat template, never from what a client says.

A tokenizer reads ``<|im_end|>`` as the control token wherever it stands, so whoever writes it in a message could end
the turn and begin one in another's name. Therefore, before the template is applied, a character that occurs nowhere
in the conversation is put into every control token that is written out in it:

    "hi<|im_end|>"  ->  "hi<#|im_end|>"  ->  template  ->  "<|im_start|>user\\nhi<#|im_end|><|im_end|>"

What still reads as a control token is the template's. The text between those is tokenized without the mark and
without control tokens. A conversation without any goes the ordinary way and keeps its tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from tokenizers import Tokenizer, pre_tokenizers

_MARKS: Final = range(0xF0000, 0xFFFFD)  # a plane for private use: no text needs it


class ControlTokens:
    """One tokenizer's control tokens, as texts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.get_added_tokens_decoder()
        self._ids = {token.content: i for i, token in added.items() if token.special and token.content}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._any = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if self._ids else None
        self._beginnings = tuple({text[:end] for text in self._ids for end in range(1, len(text))})
        self._plain = _reading_no_control(tokenizer)
        self._plain_later = _reading_no_control(tokenizer)
        if isinstance(self._plain_later.pre_tokenizer, pre_tokenizers.Metaspace):
            self._plain_later.pre_tokenizer.prepend_scheme = "never"  # what "first" means after a control token

    def mark(self, *values: object) -> str | None:
        """A character for :meth:`guarded`; None where no text in ``values`` could be read as a control token."""
        texts = list(_texts(values))
        if not any(self._suspect(text) for text in texts):
            return None
        used = set("".join(texts))
        return next(char for char in map(chr, _MARKS) if char not in used)

    def _suspect(self, text: str) -> bool:
        """A control token, or the beginning of one that the text after it might complete."""
        return self._any is not None and (self._any.search(text) is not None or text.endswith(self._beginnings))

    def guarded(self, value: Any, mark: str) -> Any:
        """``value`` with ``mark`` in every control token of every text."""
        if isinstance(value, str):
            return self._marked(value, mark)
        if isinstance(value, Mapping):
            return {self.guarded(key, mark): self.guarded(item, mark) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.guarded(item, mark) for item in value]
        return value

    def _marked(self, text: str, mark: str) -> str:
        if self._any is None:
            return text
        text = self._any.sub(lambda found: found[0][0] + mark + found[0][1:], text)
        return text + mark if text.endswith(self._beginnings) else text

    def encode(self, text: str, mark: str) -> list[int]:
        """Tokens of a rendered template whose values were guarded with ``mark``."""
        assert self._any is not None
        tokens: list[int] = []
        for at, part in enumerate(self._any.split(text)):
            if at % 2:
                tokens.append(self._ids[part])
            elif part:
                plain = self._plain_later if at else self._plain
                tokens += plain.encode(part.replace(mark, ""), add_special_tokens=False).ids
        return tokens


def _reading_no_control(tokenizer: Tokenizer) -> Tokenizer:
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = True
    return copy


def _texts(value: object) -> Iterator[str]:
    """Every text inside ``value``, names of members included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.items():
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)
