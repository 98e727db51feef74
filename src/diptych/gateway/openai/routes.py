"""OpenAI's operations over HTTP, under ``/v1`` and under Bedrock's ``/openai/v1``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import unquote

from starlette.responses import Response
from starlette.routing import Route

from diptych.gateway.catalog import find_model
from diptych.gateway.intake import parse
from diptych.gateway.openai.answers import chat_answer, chat_events
from diptych.gateway.openai.chat import chat_generations, chat_request
from diptych.gateway.openai.completions import completion_answer, completion_events, completion_generations
from diptych.gateway.openai.failures import error_event, error_response
from diptych.gateway.openai.parameters import InvalidParameter
from diptych.gateway.openai.responses import as_chat, final_status, items_of, response_object
from diptych.gateway.openai.responses_shapes import decoder as responses_decoder
from diptych.gateway.openai.responses_stream import response_events
from diptych.gateway.openai.shapes import completion_decoder, decoder
from diptych.gateway.ports import ServedModel
from diptych.gateway.responses import EventStream, json_response
from diptych.gateway.routes import Call, Endpoint, Gateway
from diptych.gateway.serving_class import ServingClass

_PREFIXES = ("/v1", "/openai/v1")


def openai_routes(gateway: Gateway) -> list[Route]:
    return [
        Route(prefix + path, Endpoint(gateway, method, handler, error_response))
        for prefix in _PREFIXES
        for method, path, handler in (
            ("POST", "/chat/completions", chat_completions),
            ("POST", "/completions", completions),
            ("POST", "/responses", responses),
            ("GET", "/models", list_models),
            ("GET", "/models/{model_id:path}", get_model),
        )
    ]


def named_model(call: Call, name: str | None) -> ServedModel:
    """The model that a body names. Raises InvalidParameter or ModelNotFound."""
    if name is None:
        raise InvalidParameter("model", "'model' is missing. Name a model; GET /v1/models lists them.")
    return call.model(name)


def class_of(tier: str | None) -> ServingClass:
    """OpenAI's service tier as a class of service; "auto" and "scale" are the default one."""
    return ServingClass(tier=tier if tier in ("priority", "flex") else None)  # type: ignore[arg-type]  # narrowed


def _streamed(call: Call, events: AsyncGenerator[bytes, None]) -> EventStream:
    return EventStream(
        events,
        failure=error_event,
        in_flight=call.gateway.in_flight,
        request_id=call.id,
        media_type="text/event-stream",
    )


async def chat_completions(call: Call) -> Response:
    gateway = call.gateway
    body = parse(await call.body(), decoder)
    model, asked = named_model(call, body.model), class_of(body.service_tier)
    generations = await chat_generations(gateway.service, body, model, call.id, "ChatCompletions", asked)
    call.begin(generations)
    if body.stream:
        return _streamed(call, chat_events(generations, call.created, body))
    answer = chat_answer(generations, call.created, body)
    return json_response(await gateway.in_flight.run(call.http.receive, answer), call.id)


async def completions(call: Call) -> Response:
    gateway = call.gateway
    body = parse(await call.body(), completion_decoder)
    generations = await completion_generations(gateway.service, body, named_model(call, body.model), call.id)
    call.begin(generations)
    if body.stream:
        return _streamed(call, completion_events(generations, call.created, body))
    answer = completion_answer(generations, call.created, body)
    return json_response(await gateway.in_flight.run(call.http.receive, answer), call.id)


async def responses(call: Call) -> Response:
    gateway = call.gateway
    body = parse(await call.body(), responses_decoder)
    model, asked = named_model(call, body.model), class_of(body.service_tier)
    request, reader = await chat_request(as_chat(body), model, call.id, "Responses", asked)
    generation = call.generation(model, request, reader())
    if body.stream:
        return _streamed(call, response_events(generation, call.created, body))
    parts, _ = await gateway.in_flight.run(call.http.receive, generation.whole())
    answer = response_object(generation, call.created, body, items_of(parts), final_status(generation))
    return json_response(answer, call.id)


def _model(model: ServedModel, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": model.created, "owned_by": "diptych"}


async def list_models(call: Call) -> Response:
    models = call.gateway.service.models()
    data = [_model(model, name) for model in models for name in (model.id, *model.aliases)]
    return json_response({"object": "list", "data": data}, call.id)


async def get_model(call: Call) -> Response:
    name = unquote(call.http.path_params["model_id"])
    return json_response(_model(find_model(call.gateway.service.models(), name), name), call.id)
