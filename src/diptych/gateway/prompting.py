"""A conversation as a prompt that fits the model, without holding up the streams of others.

Tokenizing takes memory many times the text's. A text that is much longer than the context is measured by
its beginning alone; a long one is tokenized in a thread (the tokenizer lets go of the GIL).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from diptych.errors import ContextExceeded, InvalidRequest
from diptych.gateway.ports import Message, ServedModel

_INLINE_CHARS = 16_384
_PROBE_CHARS_PER_TOKEN = 32


async def chat_prompt(
    model: ServedModel, messages: Sequence[Message], tools: Sequence[Message] | None = None
) -> tuple[int, ...]:
    """Token ids of the conversation. Raises ContextExceeded when no output token would fit after them."""
    text = "".join(_texts([messages, tools]))
    return await _fitting(model, text, lambda: model.chat.prompt_tokens(messages, tools))


async def text_prompt(model: ServedModel, text: str) -> tuple[int, ...]:
    """Token ids of a plain text. Raises as :func:`chat_prompt`."""
    return await _fitting(model, text, lambda: model.chat.encode(text))


def _texts(value: object) -> list[str]:
    """Every string inside ``value``."""
    if isinstance(value, str):
        return [value]
    inner: Sequence[Any] = list(value.values()) if isinstance(value, dict) else ()
    if isinstance(value, (list, tuple)):
        inner = value
    return [text for item in inner for text in _texts(item)]


async def _fitting(model: ServedModel, text: str, tokenize: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("The text has an unpaired surrogate. Send valid Unicode.") from None
    await _refuse_hopeless(model, text)
    inline = len(text) <= _INLINE_CHARS
    prompt = tokenize() if inline else await asyncio.to_thread(tokenize)
    if len(prompt) >= model.context_tokens:
        raise _exceeded(model, f"{len(prompt)}")
    if not prompt:
        raise InvalidRequest("The prompt is empty. Send at least one token of text.")
    return prompt


async def _refuse_hopeless(model: ServedModel, text: str) -> None:
    probe = model.context_tokens * _PROBE_CHARS_PER_TOKEN
    if len(text) <= probe:
        return
    tokens = len(await asyncio.to_thread(model.chat.encode, text[:probe]))
    if tokens >= model.context_tokens:
        raise _exceeded(model, f"more than {tokens}")


def _exceeded(model: ServedModel, tokens: str) -> ContextExceeded:
    return ContextExceeded(
        f"This model's maximum context length is {model.context_tokens} tokens, but the prompt has {tokens} "
        "tokens. Shorten the prompt so that at least one output token fits."
    )
