"""Anthropic's Messages over HTTP, where Bedrock has them and where their own clients look."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import Route

from diptych.errors import InvalidRequest
from diptych.gateway.anthropic.failures import error_event, error_response
from diptych.gateway.anthropic.messages import content_blocks, message_object, messages_request
from diptych.gateway.anthropic.shapes import decoder
from diptych.gateway.anthropic.stream import message_events
from diptych.gateway.intake import parse
from diptych.gateway.responses import EventStream, json_response
from diptych.gateway.routes import Call, Endpoint, Gateway

_PATHS = ("/anthropic/v1/messages", "/v1/messages")


def anthropic_routes(gateway: Gateway) -> list[Route]:
    return [Route(path, Endpoint(gateway, "POST", messages, error_response)) for path in _PATHS]


async def messages(call: Call) -> Response:
    body = parse(await call.body(), decoder)
    if body.model is None:
        raise InvalidRequest("model: field required")
    model = call.model(body.model)
    request, reader = await messages_request(body, model, call.id, "Messages")
    generation = call.generation(model, request, reader)
    headers = {"request-id": call.id}
    if body.stream:
        return EventStream(
            message_events(generation, body.model),
            failure=error_event,
            in_flight=call.gateway.in_flight,
            request_id=call.id,
            media_type="text/event-stream",
            headers=headers,
        )
    parts, _ = await call.gateway.in_flight.run(call.http.receive, generation.whole())
    answer = message_object(generation, body.model, content_blocks(parts), done=True)
    return json_response(answer, call.id, headers=headers)
