"""Mistral 7B and Mixtral: ``prompt`` and ``max_tokens``, answered in ``outputs``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from diptych.gateway.bedrock.constraints import within
from diptych.gateway.bedrock.families.schema import Asked, plain, text_request
from diptych.gateway.generation import Generation
from diptych.gateway.intake import parse
from diptych.gateway.output import OutputReader, Part
from diptych.gateway.responses import to_json
from diptych.types import Request


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prompt: str
    max_tokens: int = 512
    stop: list[str] = []
    temperature: float = 0.5
    top_p: float = 0.9
    top_k: int = 0


_decoder = msgspec.json.Decoder(_Body)


def _outputs(text: str, stop: str | None) -> dict[str, Any]:
    return {"outputs": [{"text": text, "stop_reason": stop}]}


def _stop_reason(generation: Generation) -> str:
    return "length" if generation.ending == "length" else "stop"


class _Chunks:
    def push(self, parts: Sequence[Part]) -> list[bytes]:
        return [to_json(_outputs(plain(parts), None))] if parts else []

    def last(self, generation: Generation) -> list[dict[str, Any]]:
        return [_outputs("", _stop_reason(generation))]


class _Mistral:
    async def request(self, raw: bytes, asked: Asked) -> tuple[Request, OutputReader | None]:
        body = parse(raw, _decoder)
        within(body.max_tokens, "max_tokens", 1)
        within(body.temperature, "temperature", 0, 1)
        within(body.top_p, "top_p", 0, 1)
        within(body.top_k, "top_k", 0, 200)
        return await text_request(
            asked, body.prompt, body.max_tokens, temperature=body.temperature, top_p=body.top_p, top_k=body.top_k,
            stop=tuple(stop for stop in body.stop if stop),
        )  # fmt: skip

    def answer(self, generation: Generation, parts: Sequence[Part]) -> dict[str, Any]:
        return _outputs(plain(parts), _stop_reason(generation))

    def chunks(self, generation: Generation) -> _Chunks:  # noqa: ARG002 - the schema's signature
        return _Chunks()


SCHEMA = _Mistral()
