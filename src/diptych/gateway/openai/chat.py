"""Chat completions: the body as requests for the service, one a choice."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from diptych.gateway.generation import Generation
from diptych.gateway.openai.messages import template_messages, toolbox_of
from diptych.gateway.openai.parameters import InvalidParameter, check_range, stops_of
from diptych.gateway.openai.shapes import ChatBody, ResponseFormat
from diptych.gateway.output import OutputReader
from diptych.gateway.ports import ServedModel, Service
from diptych.gateway.prompting import chat_prompt
from diptych.gateway.reading import reader_for
from diptych.gateway.responses import to_json
from diptych.gateway.serving_class import ServingClass
from diptych.gateway.tools import with_tools
from diptych.types import Request, Sampling

MAX_CHOICES = 16
CALL_PREFIX = "call_"
_UNSUPPORTED = ("functions", "function_call", "logit_bias", "audio", "prediction", "web_search_options")


async def chat_generations(
    service: Service, body: ChatBody, model: ServedModel, request_id: str, operation: str, asked: ServingClass
) -> list[Generation]:
    """A generation for each of the ``n`` choices. Raises InvalidRequest or ContextExceeded."""
    request, reader = await chat_request(body, model, request_id, operation, asked)
    return choices(service, model, request, body.n or 1, reader)


async def chat_request(
    body: ChatBody, model: ServedModel, request_id: str, operation: str, asked: ServingClass
) -> tuple[Request, Callable[[], OutputReader | None]]:
    """The request that ``body`` describes, and what makes a reader of its output. Raises as the above."""
    _check(body)
    toolbox = toolbox_of(body)
    messages, tools = with_tools(model.chat, template_messages(body.messages), toolbox)
    prompt = await chat_prompt(model, messages, tools)
    room = model.context_tokens - len(prompt)
    sampling = _sampling(body, toolbox.forced_schema or _json_schema(body.response_format), room)
    request = Request(
        id=request_id, model=model.id, prompt=prompt, sampling=sampling, latency=asked.wanted, tier=asked.admitted_as,
        operation=operation,
    )  # fmt: skip
    return request, lambda: reader_for(model.chat, prompt, toolbox, CALL_PREFIX)


def choices(
    service: Service, model: ServedModel, request: Request, n: int, reader: Callable[[], OutputReader | None]
) -> list[Generation]:
    """``n`` generations of one request. Each has its own id and, where a seed was given, its own seed."""
    requests = [request]
    for index in range(1, n):
        seed = request.sampling.seed
        sampling = msgspec.structs.replace(request.sampling, seed=None if seed is None else seed + index)
        requests.append(msgspec.structs.replace(request, id=f"{request.id}-{index}", sampling=sampling))
    return [Generation(service, model, one, reader()) for one in requests]


def _sampling(body: ChatBody, schema: str | None, room: int) -> Sampling:
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    return Sampling(
        max_tokens=min(asked or room, room),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        seed=body.seed,
        stop=stops_of(body.stop),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        ignore_eos=body.ignore_eos,
        json_schema=schema,
    )


def _json_schema(wanted: ResponseFormat | None) -> str | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return '{"type":"object"}'
    if wanted.json_schema is None:
        raise InvalidParameter("response_format", "'response_format' of type json_schema needs 'json_schema'.")
    return to_json(wanted.json_schema.schema).decode()


def _check(body: ChatBody) -> None:
    for name in _UNSUPPORTED:
        if getattr(body, name):
            raise InvalidParameter(name, f"'{name}' is not supported by this model. Remove it.")
    if body.modalities and body.modalities != ["text"]:
        raise InvalidParameter("modalities", "Only the modality 'text' is supported.")
    if not body.messages:
        raise InvalidParameter("messages", "'messages' is empty. Send at least one message.")
    _check_ranges(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidParameter("top_logprobs", "'top_logprobs' needs 'logprobs' to be true.")
    if body.stream_options is not None and not body.stream:
        raise InvalidParameter("stream_options", "'stream_options' needs 'stream' to be true.")


def _check_ranges(body: ChatBody) -> None:
    check_range("max_tokens", body.max_tokens, 1)
    check_range("max_completion_tokens", body.max_completion_tokens, 1)
    check_range("temperature", body.temperature, 0, 2)
    check_range("top_p", body.top_p, 0, 1)
    check_range("n", body.n, 1, MAX_CHOICES)
    check_range("presence_penalty", body.presence_penalty, -2, 2)
    check_range("frequency_penalty", body.frequency_penalty, -2, 2)
    check_range("top_logprobs", body.top_logprobs, 0, 20)
    check_range("top_k", body.top_k, 0)
    check_range("min_p", body.min_p, 0, 1)
