"""Bedrock Runtime's operations over HTTP."""

from __future__ import annotations

from urllib.parse import unquote

from starlette.responses import Response
from starlette.routing import Route

from diptych.errors import InvalidRequest
from diptych.gateway.bedrock.converse import converse_answer, converse_request
from diptych.gateway.bedrock.failures import error_frame, error_response
from diptych.gateway.bedrock.shapes import ConverseBody, decoder
from diptych.gateway.bedrock.stream import MEDIA_TYPE, converse_events
from diptych.gateway.catalog import find_model
from diptych.gateway.generation import Generation
from diptych.gateway.intake import parse, read_body
from diptych.gateway.responses import EventStream, json_response
from diptych.gateway.routes import Call, Endpoint, Gateway


def bedrock_routes(gateway: Gateway) -> list[Route]:
    return [
        Route(path, Endpoint(gateway, "POST", handler, error_response))
        for path, handler in (
            ("/model/{model_id:path}/converse", converse),
            ("/model/{model_id:path}/converse-stream", converse_stream),
        )
    ]


async def _begin(call: Call, operation: str) -> tuple[Generation, ConverseBody]:
    raw = await read_body(call.http, call.gateway.limits)
    model = find_model(call.gateway.service.models(), unquote(call.http.path_params["model_id"]))
    try:
        body = parse(raw, decoder)
    except InvalidRequest as error:
        detail = str(error).rstrip(".")
        raise InvalidRequest(f"Malformed input request: {detail}, please reformat your input and try again.") from None
    request, reader = await converse_request(body, model, call.id, operation)
    return Generation(call.gateway.service, model, request, reader), body


async def converse(call: Call) -> Response:
    generation, body = await _begin(call, "Converse")
    parts, _ = await call.gateway.in_flight.run(call.http.receive, generation.whole())
    return json_response(converse_answer(generation, parts, body), call.id)


async def converse_stream(call: Call) -> Response:
    generation, body = await _begin(call, "ConverseStream")
    events = converse_events(generation, body)
    return EventStream(
        events,
        failure=error_frame,
        in_flight=call.gateway.in_flight,
        request_id=call.id,
        media_type=MEDIA_TYPE,
    )
