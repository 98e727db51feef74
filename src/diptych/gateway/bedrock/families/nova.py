"""Amazon Nova's ``messages-v1``: Converse's blocks, with parameters and usage of their own names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from diptych.errors import InvalidRequest
from diptych.gateway.bedrock.converse import content_blocks, converse_request, stop_reason
from diptych.gateway.bedrock.families.schema import Asked
from diptych.gateway.bedrock.shapes import ConverseBody, InferenceConfig, Message, SystemBlock, ToolConfig
from diptych.gateway.bedrock.stream import EVENTS
from diptych.gateway.bedrock.stream import Message as StreamedMessage
from diptych.gateway.generation import Generation
from diptych.gateway.intake import parse
from diptych.gateway.output import OutputReader, Part
from diptych.types import Request


class _Inference(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    max_tokens: int | None = None
    max_new_tokens: int | None = msgspec.field(default=None, name="max_new_tokens")
    temperature: float | None = None
    top_p: float | None = None
    top_k: int = 0
    stop_sequences: list[str] = []
    reasoning_config: dict[str, Any] | None = None


class _Body(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    messages: list[Message] = []
    system: list[SystemBlock] = []
    schema_version: Literal["messages-v1"] = "messages-v1"
    inference_config: _Inference = _Inference()
    tool_config: ToolConfig | None = None


_decoder = msgspec.json.Decoder(_Body)


def _as_converse(body: _Body) -> ConverseBody:
    config = body.inference_config
    if config.reasoning_config is not None and config.reasoning_config.get("type") != "disabled":
        raise InvalidRequest("This model doesn't support reasoningConfig. Remove it and try again.")
    return ConverseBody(
        messages=body.messages,
        system=body.system,
        inference_config=InferenceConfig(
            max_tokens=config.max_tokens if config.max_new_tokens is None else config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            stop_sequences=config.stop_sequences,
        ),
        additional_model_request_fields={"top_k": config.top_k},
        tool_config=body.tool_config,
    )


def _usage(generation: Generation) -> dict[str, int]:
    read, made = generation.prompt_tokens, generation.output_tokens
    return {
        "inputTokens": read,
        "outputTokens": made,
        "totalTokens": read + made,
        "cacheReadInputTokenCount": 0,
        "cacheWriteInputTokenCount": 0,
    }


def _named(event: str, payload: bytes) -> bytes:
    """An event as a line of its own: several of one chunk are told apart again by :class:`_Chunks`."""
    return b'{"%b":%b}\n' % (event.encode(), payload)


_FORM: dict[str, Callable[[bytes], bytes]] = {event: partial(_named, event) for event in EVENTS}


class _Chunks:
    """Converse's events, each as one chunk."""

    def __init__(self) -> None:
        self._message = StreamedMessage(_FORM)
        self._opening = self._message.start

    def push(self, parts: Sequence[Part]) -> list[bytes]:
        events, self._opening = self._opening + self._message.parts(parts), b""
        return events.split(b"\n")[:-1]

    def last(self, generation: Generation) -> list[dict[str, Any]]:
        metadata = {"usage": _usage(generation), "metrics": {}, "trace": {}}
        events = self._message.end({"stopReason": stop_reason(generation)}, metadata)
        return [msgspec.json.decode(event) for event in events.split(b"\n")[:-1]]


class _Nova:
    async def request(self, raw: bytes, asked: Asked) -> tuple[Request, OutputReader | None]:
        body = _as_converse(parse(raw, _decoder))
        request, reader = await converse_request(body, asked.model, asked.request_id, asked.operation)
        serving = asked.serving
        return msgspec.structs.replace(request, latency=serving.wanted, tier=serving.admitted_as), reader

    def answer(self, generation: Generation, parts: Sequence[Part]) -> dict[str, Any]:
        return {
            "output": {"message": {"role": "assistant", "content": content_blocks(parts)}},
            "stopReason": stop_reason(generation),
            "usage": _usage(generation),
        }

    def chunks(self, generation: Generation) -> _Chunks:  # noqa: ARG002 - the schema's signature
        return _Chunks()


SCHEMA = _Nova()
