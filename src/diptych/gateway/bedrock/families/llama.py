"""Meta Llama: ``prompt`` and ``max_gen_len``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from diptych.errors import InvalidRequest
from diptych.gateway.bedrock.constraints import within
from diptych.gateway.bedrock.families.schema import Asked, plain, text_request
from diptych.gateway.generation import Generation
from diptych.gateway.intake import parse
from diptych.gateway.output import OutputReader, Part
from diptych.gateway.responses import to_json
from diptych.types import Request


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prompt: str
    max_gen_len: int = 512
    temperature: float = 0.5
    top_p: float = 0.9
    images: list[str] = []


_decoder = msgspec.json.Decoder(_Body)


def _stop_reason(generation: Generation) -> str:
    return "length" if generation.ending == "length" else "stop"


class _Chunks:
    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._prompt_tokens: int | None = generation.prompt_tokens

    def push(self, parts: Sequence[Part]) -> list[bytes]:
        return [to_json(self._chunk(plain(parts), None))] if parts else []

    def last(self, generation: Generation) -> list[dict[str, Any]]:
        return [self._chunk("", _stop_reason(generation))]

    def _chunk(self, text: str, stop: str | None) -> dict[str, Any]:
        """The prompt's tokens stand in the first chunk only."""
        counted, self._prompt_tokens = self._prompt_tokens, None
        return {
            "generation": text,
            "prompt_token_count": counted,
            "generation_token_count": self._generation.output_tokens,
            "stop_reason": stop,
        }


class _Llama:
    async def request(self, raw: bytes, asked: Asked) -> tuple[Request, OutputReader | None]:
        body = parse(raw, _decoder)
        if body.images:
            raise InvalidRequest("This model doesn't support images. Remove 'images' and try again.")
        within(body.max_gen_len, "max_gen_len", 1)
        within(body.temperature, "temperature", 0, 1)
        within(body.top_p, "top_p", 0, 1)
        return await text_request(
            asked, body.prompt, body.max_gen_len, temperature=body.temperature, top_p=body.top_p
        )  # fmt: skip

    def answer(self, generation: Generation, parts: Sequence[Part]) -> dict[str, Any]:
        return {
            "generation": plain(parts),
            "prompt_token_count": generation.prompt_tokens,
            "generation_token_count": generation.output_tokens,
            "stop_reason": _stop_reason(generation),
        }

    def chunks(self, generation: Generation) -> _Chunks:
        return _Chunks(generation)


SCHEMA = _Llama()
