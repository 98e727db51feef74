"""OpenAI's chat schema: Qwen3, DeepSeek V3, gpt-oss, Mistral Large and whatever has no schema of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from diptych.errors import InvalidRequest
from diptych.gateway.bedrock.families.schema import Asked
from diptych.gateway.catalog import bare_id
from diptych.gateway.generation import Generation
from diptych.gateway.intake import parse
from diptych.gateway.openai.answers import ChunkForm, finish_reason, message, usage
from diptych.gateway.openai.chat import chat_request
from diptych.gateway.openai.shapes import decoder
from diptych.gateway.output import OutputReader, Part
from diptych.types import Request

_PREFIX = b"data: "


def _common(generation: Generation, kind: str) -> dict[str, Any]:
    request = generation.request
    return {"id": f"chatcmpl-{request.id}", "object": kind, "created": int(time.time()), "model": request.model}


class _Chunks:
    """Chat completion chunks, without the framing of server-sent events."""

    def __init__(self, generation: Generation) -> None:
        self._form = ChunkForm(_common(generation, "chat.completion.chunk"), 0, include_usage=False)
        self._opening = [self._form.event({"role": "assistant", "content": ""}, None)]

    def push(self, parts: Sequence[Part]) -> list[bytes]:
        events, self._opening = self._opening + [self._form.part(part) for part in parts], []
        return [_bare(event) for event in events if event]

    def last(self, generation: Generation) -> list[dict[str, Any]]:
        final = msgspec.json.decode(_bare(self._form.event({}, finish_reason(generation))))
        return [{**final, "usage": usage([generation])}]


def _bare(event: bytes) -> bytes:
    return event.removeprefix(_PREFIX).rstrip()


class _Chat:
    async def request(self, raw: bytes, asked: Asked) -> tuple[Request, OutputReader | None]:
        body = parse(raw, decoder)
        if body.model is not None and bare_id(body.model) != bare_id(asked.model_id):
            raise InvalidRequest(f"'model' is '{body.model}', but the path names '{asked.model_id}'. Omit it.")
        if body.stream is not None and body.stream != asked.streams:
            raise InvalidRequest(f"'stream' is {str(body.stream).lower()}, which {asked.operation} is not. Omit it.")
        if body.n not in (None, 1):
            raise InvalidRequest("'n' must be 1 for InvokeModel.")
        request, reader = await chat_request(body, asked.model, asked.request_id, asked.operation, asked.serving)
        return request, reader()

    def answer(self, generation: Generation, parts: Sequence[Part]) -> dict[str, Any]:
        choice = {"index": 0, "message": message(parts), "logprobs": None, "finish_reason": finish_reason(generation)}
        return {**_common(generation, "chat.completion"), "choices": [choice], "usage": usage([generation])}

    def chunks(self, generation: Generation) -> _Chunks:
        return _Chunks(generation)


SCHEMA = _Chat()
