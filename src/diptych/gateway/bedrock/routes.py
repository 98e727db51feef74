"""Bedrock Runtime's operations over HTTP."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Awaitable
from typing import Any, TypeVar
from urllib.parse import unquote

from starlette.responses import Response
from starlette.routing import Route

from diptych.errors import InvalidRequest
from diptych.gateway.bedrock import invoke
from diptych.gateway.bedrock.converse import converse_answer, converse_prompt, converse_request
from diptych.gateway.bedrock.failures import error_frame, error_response
from diptych.gateway.bedrock.families import schema_of
from diptych.gateway.bedrock.families.schema import Asked, Schema
from diptych.gateway.bedrock.guardrails import guarded_body, guarded_native, moderation_of
from diptych.gateway.bedrock.shapes import ConverseBody, count_tokens_decoder, decoder
from diptych.gateway.bedrock.stream import MEDIA_TYPE, converse_events
from diptych.gateway.bedrock.toolconfig import toolbox_of
from diptych.gateway.generation import Generation
from diptych.gateway.intake import parse
from diptych.gateway.ports import ServedModel
from diptych.gateway.refusals import MalformedBody
from diptych.gateway.responses import EventStream, json_response
from diptych.gateway.routes import Call, Endpoint, Gateway
from diptych.gateway.serving_class import ServingClass

Result = TypeVar("Result")


def bedrock_routes(gateway: Gateway) -> list[Route]:
    return [
        Route(f"/model/{{model_id:path}}/{operation}", Endpoint(gateway, "POST", handler, error_response))
        for operation, handler in (
            ("converse", converse),
            ("converse-stream", converse_stream),
            ("invoke", invoke_model),
            ("invoke-with-response-stream", invoke_model_with_response_stream),
            ("count-tokens", count_tokens),
        )
    ]


def _model_id(call: Call) -> str:
    return unquote(call.http.path_params["model_id"])


async def _read(call: Call) -> tuple[ServedModel, bytes]:
    raw = await call.body()
    return call.model(_model_id(call)), raw


async def _in_bedrocks_words(work: Awaitable[Result]) -> Result:
    """A body that does not fit its shape is a malformed input request."""
    try:
        return await work
    except MalformedBody as error:
        detail = str(error).rstrip(".")
        raise InvalidRequest(
            f"Malformed input request: {detail}, please reformat your input and try again."
        ) from None  # fmt: skip


async def _begin(call: Call, operation: str) -> tuple[Generation, ConverseBody]:
    model, raw = await _read(call)
    body = parse(raw, decoder)
    call.metadata = dict(body.request_metadata)
    moderation = moderation_of(call.gateway.guardrails, body.guardrail_config, operation)
    if moderation is not None:
        body = guarded_body(body, moderation)
    request, reader = await converse_request(body, model, call.id, operation)
    return call.generation(model, request, reader, moderation), body


async def converse(call: Call) -> Response:
    generation, body = await _in_bedrocks_words(_begin(call, "Converse"))
    parts, _ = await call.gateway.in_flight.run(call.http.receive, generation.whole())
    return json_response(converse_answer(generation, parts, body), call.id)


async def converse_stream(call: Call) -> Response:
    generation, body = await _in_bedrocks_words(_begin(call, "ConverseStream"))
    return _streamed(call, converse_events(generation, body))


def _streamed(call: Call, events: Any, headers: dict[str, str] | None = None) -> EventStream:
    return EventStream(
        events,
        failure=error_frame,
        in_flight=call.gateway.in_flight,
        request_id=call.id,
        media_type=MEDIA_TYPE,
        headers=headers,
    )


async def _invoked(call: Call, operation: str, *, streams: bool) -> tuple[Generation, Schema, ServingClass]:
    serving = invoke.class_of(call.http.headers)
    call.metadata = invoke.metadata_of(call.http.headers)
    model, raw = await _read(call)
    asked = Asked(model, _model_id(call), call.id, operation, streams, serving)
    schema = schema_of(asked.model_id)
    moderation = invoke.moderation_of(call.gateway.guardrails, call.http.headers)
    if moderation is not None:
        raw = guarded_native(raw, moderation)
    request, reader = await schema.request(raw, asked)
    return call.generation(model, request, reader, moderation), schema, serving


async def invoke_model(call: Call) -> Response:
    generation, schema, serving = await _in_bedrocks_words(_invoked(call, "InvokeModel", streams=False))
    parts, _ = await call.gateway.in_flight.run(call.http.receive, generation.whole())
    headers = {**invoke.usage_headers(generation), **invoke.served_headers(generation, serving)}
    answer = {**schema.answer(generation, parts), **invoke.guardrail_members(generation)}
    return json_response(answer, call.id, headers=headers)


async def invoke_model_with_response_stream(call: Call) -> Response:
    operation = "InvokeModelWithResponseStream"
    generation, schema, serving = await _in_bedrocks_words(_invoked(call, operation, streams=True))
    headers = {"x-amzn-bedrock-content-type": "application/json"}
    stream = _streamed(call, invoke.invoke_events(generation, schema), headers)
    stream.late_headers = lambda: invoke.served_headers(generation, serving)
    return stream


async def count_tokens(call: Call) -> Response:
    """A prompt beyond the context is refused, as an operation over it would be."""
    return json_response({"inputTokens": await _in_bedrocks_words(_count(call))}, call.id)


async def _count(call: Call) -> int:
    model, raw = await _read(call)
    asked = parse(raw, count_tokens_decoder).input
    if (asked.converse is None) == (asked.invoke_model is None):
        raise InvalidRequest("The input must set exactly one of converse and invokeModel.")
    if asked.converse is not None:
        body = ConverseBody(
            messages=asked.converse.messages, system=asked.converse.system, tool_config=asked.converse.tool_config
        )  # fmt: skip
        return len(await converse_prompt(body, model, toolbox_of(body.tool_config)))
    assert asked.invoke_model is not None
    native = _decoded(asked.invoke_model.body)
    about = Asked(model, _model_id(call), call.id, "CountTokens", streams=False, serving=ServingClass())
    request, _ = await schema_of(about.model_id).request(native, about)
    return len(request.prompt)


def _decoded(body: str) -> bytes:
    try:
        return b64decode(body, validate=True)
    except ValueError:  # of binascii, or for what is not ASCII
        raise InvalidRequest("The member invokeModel.body is not valid Base64.") from None
