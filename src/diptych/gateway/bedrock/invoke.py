"""InvokeModel and InvokeModelWithResponseStream: a native body in its model's schema, in and out."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.datastructures import Headers

from diptych.errors import InvalidRequest
from diptych.gateway.bedrock.constraints import checked_metadata, violated
from diptych.gateway.bedrock.families.schema import Schema
from diptych.gateway.bedrock.guardrails import moderation_in, named, trace_of
from diptych.gateway.event_stream import event_encoder
from diptych.gateway.generation import Generation
from diptych.gateway.guardrails.moderation import Moderation
from diptych.gateway.guardrails.policy import Guardrails
from diptych.gateway.responses import to_json
from diptych.gateway.serving_class import ServingClass

_PREFIX = "x-amzn-bedrock-"
_TRACES = ("ENABLED", "DISABLED", "ENABLED_FULL")
_chunk_frame = event_encoder("chunk")


def class_of(headers: Headers) -> ServingClass:
    """The class of service that the headers ask for. Raises InvalidRequest."""
    asked = {
        "latency": headers.get(f"{_PREFIX}performanceconfig-latency"),
        "tier": headers.get(f"{_PREFIX}service-tier"),
    }
    try:
        return msgspec.convert(asked, ServingClass)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"A header of the request is wrong: {error}.") from None


def moderation_of(guardrails: Guardrails, headers: Headers) -> Moderation | None:
    """The moderation that the headers ask for. Raises InvalidRequest."""
    trace = headers.get(f"{_PREFIX}trace", "DISABLED")
    if trace not in _TRACES:
        raise violated(trace, "trace", f"Member must satisfy enum value set: [{', '.join(_TRACES)}]")
    identifier, version = headers.get(f"{_PREFIX}guardrailidentifier"), headers.get(f"{_PREFIX}guardrailversion")
    found = named(guardrails, identifier, version)
    return None if found is None else Moderation(found, trace=trace.lower())


def metadata_of(headers: Headers) -> dict[str, str]:
    """``requestMetadata``, which the invocation log keeps. Raises InvalidRequest."""
    raw = headers.get(f"{_PREFIX}request-metadata")
    if not raw:
        return {}
    try:
        found = msgspec.json.decode(raw, type=dict[str, str])
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"requestMetadata must be a JSON object of strings: {error}.") from None
    return checked_metadata(found)


def guardrail_members(generation: Generation) -> dict[str, Any]:
    """What a guardrail adds to a native answer, or to the last chunk of one."""
    moderation = moderation_in(generation)
    if moderation is None:
        return {}
    members: dict[str, Any] = {"amazon-bedrock-guardrailAction": "INTERVENED" if moderation.intervened else "NONE"}
    if moderation.trace != "disabled":
        members["amazon-bedrock-trace"] = trace_of(moderation)
    return members


def served_headers(generation: Generation, asked: ServingClass) -> dict[str, str]:
    """The echo of the class of service, as headers."""
    headers: dict[str, str] = {}
    if latency := asked.served_latency(generation.record):
        headers[f"{_PREFIX}performanceconfig-latency"] = latency
    if tier := asked.served_tier(generation.request.tier):
        headers[f"{_PREFIX}service-tier"] = tier
    return headers


def usage_headers(generation: Generation) -> dict[str, str]:
    """What an invocation took; clients read their usage from here."""
    return {
        f"{_PREFIX}invocation-latency": str(generation.elapsed_ms),
        f"{_PREFIX}input-token-count": str(generation.prompt_tokens),
        f"{_PREFIX}output-token-count": str(generation.output_tokens),
        f"{_PREFIX}cache-read-input-token-count": "0",
        f"{_PREFIX}cache-write-input-token-count": "0",
    }


def _metrics(generation: Generation) -> dict[str, Any]:
    return {
        "inputTokenCount": generation.prompt_tokens,
        "outputTokenCount": generation.output_tokens,
        "invocationLatency": generation.elapsed_ms,
        "firstByteLatency": generation.first_ms,
    }


def _framed(chunk: bytes) -> bytes:
    return _chunk_frame(b'{"bytes":"' + b64encode(chunk) + b'"}')


async def invoke_events(generation: Generation, schema: Schema) -> AsyncGenerator[bytes, None]:
    """A frame for each chunk; the last one carries the invocation's metrics."""
    chunks = schema.chunks(generation)
    async with aclosing(generation.pieces()) as pieces:
        async for parts, _ in pieces:
            if made := chunks.push(parts):
                yield b"".join([_framed(chunk) for chunk in made])
    last = chunks.last(generation)
    last[-1].update(guardrail_members(generation))
    last[-1]["amazon-bedrock-invocationMetrics"] = _metrics(generation)
    yield b"".join([_framed(to_json(chunk)) for chunk in last])
