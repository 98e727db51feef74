"""DeepSeek-R1: ``prompt`` and ``max_tokens``, answered in ``choices`` of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from diptych.gateway.bedrock.constraints import violated, within
from diptych.gateway.bedrock.families.schema import Asked, plain, text_request
from diptych.gateway.generation import Generation
from diptych.gateway.intake import parse
from diptych.gateway.output import OutputReader, Part
from diptych.gateway.responses import to_json
from diptych.types import Request


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prompt: str
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    stop: list[str] = []


_decoder = msgspec.json.Decoder(_Body)


def _choices(text: str, stop: str | None) -> dict[str, Any]:
    return {"choices": [{"text": text, "stop_reason": stop}]}


def _stop_reason(generation: Generation) -> str:
    return "length" if generation.ending == "length" else "stop"


class _Chunks:
    def push(self, parts: Sequence[Part]) -> list[bytes]:
        return [to_json(_choices(plain(parts), None))] if parts else []

    def last(self, generation: Generation) -> list[dict[str, Any]]:
        return [_choices("", _stop_reason(generation))]


class _DeepSeek:
    async def request(self, raw: bytes, asked: Asked) -> tuple[Request, OutputReader | None]:
        body = parse(raw, _decoder)
        within(body.max_tokens, "max_tokens", 1, 32768)
        within(body.temperature, "temperature", 0, 1)
        within(body.top_p, "top_p", 0, 1)
        if len(body.stop) > 10:
            raise violated("[...]", "stop", "Member must have length less than or equal to 10")
        return await text_request(
            asked, body.prompt, body.max_tokens, temperature=body.temperature, top_p=body.top_p,
            stop=tuple(stop for stop in body.stop if stop),
        )  # fmt: skip

    def answer(self, generation: Generation, parts: Sequence[Part]) -> dict[str, Any]:
        return _choices(plain(parts), _stop_reason(generation))

    def chunks(self, generation: Generation) -> _Chunks:  # noqa: ARG002 - the schema's signature
        return _Chunks()


SCHEMA = _DeepSeek()
