"""Chat completions: the body as requests for the service, one a choice."""

from __future__ import annotations

import msgspec

from diptych.gateway import ports
from diptych.gateway.openai.failures import InvalidParameter
from diptych.gateway.openai.shapes import ChatBody, ChatMessage, ResponseFormat
from diptych.gateway.ports import ServedModel
from diptych.gateway.prompting import chat_prompt
from diptych.gateway.responses import to_json
from diptych.types import Request, Sampling

_MAX_CHOICES = 16
_UNSUPPORTED = (
    "tools", "functions", "function_call", "logit_bias",
    "reasoning_effort", "audio", "prediction", "web_search_options",
)  # fmt: skip


async def chat_requests(body: ChatBody, model: ServedModel, request_id: str, operation: str) -> list[Request]:
    """One request for each of the ``n`` choices, with its own id and, where one was given, its own seed.

    Raises InvalidRequest or ContextExceeded.
    """
    _check(body)
    prompt = await chat_prompt(model, _template_messages(body.messages))
    sampling = _sampling(body, model.context_tokens - len(prompt))
    return [
        Request(
            id=request_id if index == 0 else f"{request_id}-{index}",
            model=model.id,
            prompt=prompt,
            sampling=_reseeded(sampling, index),
            latency="optimized" if body.service_tier == "priority" else "standard",
            operation=operation,
        )
        for index in range(body.n or 1)
    ]


def _reseeded(sampling: Sampling, index: int) -> Sampling:
    if sampling.seed is None or index == 0:
        return sampling
    return msgspec.structs.replace(sampling, seed=sampling.seed + index)


def _sampling(body: ChatBody, room: int) -> Sampling:
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
        stop=_stops(body.stop),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        ignore_eos=body.ignore_eos,
        json_schema=_json_schema(body.response_format),
    )


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > 4:
        raise InvalidParameter("stop", f"'stop' has {len(stops)} sequences; send at most 4.")
    if not all(stops):
        raise InvalidParameter("stop", "'stop' has an empty sequence. Remove it.")
    return tuple(stops)


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
    check_range("max_tokens", body.max_tokens, 1)
    check_range("max_completion_tokens", body.max_completion_tokens, 1)
    check_range("temperature", body.temperature, 0, 2)
    check_range("top_p", body.top_p, 0, 1)
    check_range("n", body.n, 1, _MAX_CHOICES)
    check_range("presence_penalty", body.presence_penalty, -2, 2)
    check_range("frequency_penalty", body.frequency_penalty, -2, 2)
    check_range("top_logprobs", body.top_logprobs, 0, 20)
    check_range("top_k", body.top_k, 0)
    check_range("min_p", body.min_p, 0, 1)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidParameter("top_logprobs", "'top_logprobs' needs 'logprobs' to be true.")
    if body.stream_options is not None and not body.stream:
        raise InvalidParameter("stream_options", "'stream_options' needs 'stream' to be true.")


def check_range(name: str, value: float | None, low: float, high: float | None = None) -> None:
    """Raises InvalidParameter unless ``low`` <= value <= ``high``. None, a member that is absent, passes."""
    if value is None or (value >= low and (high is None or value <= high)):
        return
    wanted = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
    raise InvalidParameter(name, f"'{name}' is {value:g}; it must be {wanted}.")


def _template_messages(messages: list[ChatMessage]) -> list[ports.Message]:
    return [_turn(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _turn(message: ChatMessage, path: str) -> ports.Message:
    if message.role in ("tool", "function") or message.tool_calls:
        raise InvalidParameter(path, f"This model doesn't support tools; {path} is part of a tool call.")
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": _text(message, path)}


def _text(message: ChatMessage, path: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if not message.content:
        raise InvalidParameter(path, f"{path} has no content. Send a text.")
    for index, part in enumerate(message.content):
        if part.type != "text" or part.text is None:
            where = f"{path}.content[{index}]"
            raise InvalidParameter(where, f"{where} has the type '{part.type}'; this model takes 'text' only.")
    return "\n".join(part.text or "" for part in message.content)
