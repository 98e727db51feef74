"""The two seams of the gateway: the service that turns token ids into token ids, and a model's text format.

Both are structural: what stands behind them need not import anything of this room.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

from diptych.types import Request, RequestRecord, TokenChunk

Message = dict[str, Any]


class TokenDecoder(Protocol):
    """Token ids of one stream in, the text that they complete out. A character split over tokens waits."""

    def push(self, token: int) -> str:
        """Text completed by ``token``; may be empty."""

    def flush(self) -> str:
        """What was still waiting when the stream ended."""


class ChatFormat(Protocol):
    """A model's tokenizer and chat template."""

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a turn. They are counted and yield no text."""

    def prompt_tokens(self, messages: Sequence[Message], tools: Sequence[Message] | None = None) -> tuple[int, ...]:
        """The prompt of a conversation, up to where the assistant's turn begins.

        Messages are in the chat template's own form: ``role``, ``content`` (a string) and, where a turn has
        them, ``tool_calls``. Raises InvalidRequest when the template refuses the conversation.
        """

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text."""

    def decoder(self) -> TokenDecoder:
        """A fresh decoder for one stream."""

    def token_text(self, token: int) -> bytes:
        """The bytes that a token stands for; not always valid UTF-8 by themselves.

        Raises InvalidRequest for an id that is not in the vocabulary.
        """


class ServedModel(Protocol):
    """One model behind the gateway. ``created`` is in Unix seconds; ``aliases`` are other ids of it."""

    @property
    def id(self) -> str: ...
    @property
    def aliases(self) -> Sequence[str]: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def created(self) -> int: ...
    @property
    def chat(self) -> ChatFormat: ...


class Service(Protocol):
    """One request's life below the gateway."""

    def models(self) -> Sequence[ServedModel]: ...

    def generate(self, request: Request) -> AsyncGenerator[TokenChunk, None]:
        """The request's tokens as they are made; the last chunk carries ``finish``.

        Closing the generator cancels the request. Raises RequestError, WorkerError or HandoffError, before
        the first chunk or after any.
        """

    def satisfied(self, request_id: str) -> None:
        """The client has all that it asked for (a stop string came): closing the generator is no cancellation."""

    def record(self, request_id: str) -> RequestRecord | None:
        """What happened to a request; ``served_latency`` is settled once generation has begun."""

    def records(self, limit: int) -> list[RequestRecord]:
        """The latest records, newest first."""

    def health(self) -> Mapping[str, Any]:
        """The fleet's state as JSON; ``status`` is "ok" when requests can be served."""
