"""What a native schema must do: read its body, and write its answer whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from diptych.gateway.generation import Generation
from diptych.gateway.output import OutputReader, Part, Reasoning
from diptych.gateway.ports import ServedModel
from diptych.gateway.prompting import text_prompt
from diptych.gateway.serving_class import ServingClass
from diptych.types import Request, Sampling


class Asked(msgspec.Struct, frozen=True):
    """What is known of a request besides its body."""

    model: ServedModel
    model_id: str
    request_id: str
    operation: str
    streams: bool
    serving: ServingClass

    def request(self, prompt: tuple[int, ...], sampling: Sampling) -> Request:
        return Request(
            id=self.request_id, model=self.model.id, prompt=prompt, sampling=sampling, latency=self.serving.wanted,
            tier=self.serving.admitted_as, operation=self.operation,
        )  # fmt: skip


class Chunks(Protocol):
    """The chunks of one stream, each a JSON object."""

    def push(self, parts: Sequence[Part]) -> list[bytes]:
        """Chunks for parts as they come; the first call may be without any."""

    def last(self, generation: Generation) -> list[dict[str, Any]]:
        """The chunks that end the stream. The last one takes the invocation's metrics."""


class Schema(Protocol):
    async def request(self, raw: bytes, asked: Asked) -> tuple[Request, OutputReader | None]:
        """The request that the body describes. Raises InvalidRequest or ContextExceeded."""

    def answer(self, generation: Generation, parts: Sequence[Part]) -> dict[str, Any]: ...

    def chunks(self, generation: Generation) -> Chunks: ...


def plain(parts: Sequence[Part]) -> str:
    """Reasoning and text as one, for schemas that have no place for the former."""
    said = [part.text if isinstance(part, Reasoning) else part for part in parts]
    return "".join(text for text in said if isinstance(text, str))


async def text_request(
    asked: Asked, prompt: str, max_tokens: int | None, **sampling: Any
) -> tuple[Request, OutputReader | None]:
    """A request over a plain prompt, which the client has written in the model's own format."""
    tokens = await text_prompt(asked.model, prompt)
    room = asked.model.context_tokens - len(tokens)
    return asked.request(tokens, Sampling(max_tokens=min(max_tokens or room, room), **sampling)), None
