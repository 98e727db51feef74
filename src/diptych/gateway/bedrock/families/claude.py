"""Anthropic Claude: Messages without ``model`` and ``stream``, under ``anthropic_version``; its events as chunks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from diptych.errors import InvalidRequest
from diptych.gateway.anthropic.messages import content_blocks, message_object, messages_request, stop_reason, usage
from diptych.gateway.anthropic.shapes import MessagesBody
from diptych.gateway.anthropic.stream import Blocks, event
from diptych.gateway.bedrock.families.schema import Asked
from diptych.gateway.generation import Generation
from diptych.gateway.intake import parse
from diptych.gateway.output import OutputReader, Part
from diptych.types import Request

_VERSION = re.compile(r"bedrock-2023-05-31|\d{4}-\d\d-\d\d")
"""Bedrock's own, or the date that Anthropic's client puts in its place since its version 2."""


class _Body(MessagesBody, frozen=True):
    anthropic_beta: tuple[str, ...] = ()


_decoder = msgspec.json.Decoder(_Body)


def _bare(events: bytes) -> list[bytes]:
    """The JSON of server-sent events."""
    return [one.partition(b"\ndata: ")[2] for one in events.split(b"\n\n") if one]


class _Chunks:
    def __init__(self, generation: Generation) -> None:
        message = message_object(generation, generation.request.model, [], done=False)
        self._blocks = Blocks()
        self._opening = event("message_start", message=message)

    def push(self, parts: Sequence[Part]) -> list[bytes]:
        opening, self._opening = self._opening, b""
        return _bare(opening + b"".join([self._blocks.part(part) for part in parts]))

    def last(self, generation: Generation) -> list[dict[str, Any]]:
        end = {"stop_reason": stop_reason(generation), "stop_sequence": generation.stopped_at}
        delta = event("message_delta", delta=end, usage=usage(generation))
        return [msgspec.json.decode(one) for one in _bare(self._blocks.close() + delta + event("message_stop"))]


class _Claude:
    async def request(self, raw: bytes, asked: Asked) -> tuple[Request, OutputReader | None]:
        body = parse(raw, _decoder)
        if not _VERSION.fullmatch(body.anthropic_version or ""):
            raise InvalidRequest("anthropic_version: must be 'bedrock-2023-05-31'")
        if body.model is not None or body.stream:
            raise InvalidRequest("model, stream: extra inputs are not permitted; the operation and its path say both")
        request, reader = await messages_request(body, asked.model, asked.request_id, asked.operation)
        serving = asked.serving
        return msgspec.structs.replace(request, latency=serving.wanted, tier=serving.admitted_as), reader

    def answer(self, generation: Generation, parts: Sequence[Part]) -> dict[str, Any]:
        return message_object(generation, generation.request.model, content_blocks(parts), done=True)

    def chunks(self, generation: Generation) -> _Chunks:
        return _Chunks(generation)


SCHEMA = _Claude()
