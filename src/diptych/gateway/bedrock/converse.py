"""Converse and ConverseStream: the body as a request for the service, and the answer in Bedrock's shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from diptych.errors import InvalidRequest
from diptych.gateway.bedrock.constraints import checked_metadata, violated, within
from diptych.gateway.bedrock.conversation import template_messages
from diptych.gateway.bedrock.guardrails import moderation_in, trace_of
from diptych.gateway.bedrock.shapes import ConverseBody, InferenceConfig, OutputConfig
from diptych.gateway.bedrock.toolconfig import toolbox_of
from diptych.gateway.calls import CallBegan, CallEnded, CallInput
from diptych.gateway.generation import Generation
from diptych.gateway.output import OutputReader, Part, Reasoning
from diptych.gateway.ports import ServedModel
from diptych.gateway.prompting import chat_prompt
from diptych.gateway.reading import reader_for
from diptych.gateway.serving_class import ServingClass
from diptych.gateway.tools import Toolbox, with_tools
from diptych.types import Request, Sampling

CALL_PREFIX = "tooluse_"


class ModelFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``additionalModelRequestFields``: what the engines can do beyond ``inferenceConfig``."""

    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_eos: bool = False


def class_of(body: ConverseBody) -> ServingClass:
    """The class of service that the body asks for."""
    config, tier = body.performance_config, body.service_tier
    return ServingClass(config.latency if config else None, tier.type if tier else None)


async def converse_request(
    body: ConverseBody, model: ServedModel, request_id: str, operation: str
) -> tuple[Request, OutputReader | None]:
    """The request that ``body`` describes. Raises InvalidRequest or ContextExceeded, in Bedrock's words."""
    _check(body)
    fields = model_fields(body.additional_model_request_fields)
    toolbox = toolbox_of(body.tool_config)
    prompt = await converse_prompt(body, model, toolbox)
    room = model.context_tokens - len(prompt)
    request = Request(
        id=request_id,
        model=model.id,
        prompt=prompt,
        sampling=_sampling(body, fields, toolbox, room),
        latency=class_of(body).wanted,
        tier=class_of(body).admitted_as,
        operation=operation,
    )
    return request, reader_for(model.chat, prompt, toolbox, CALL_PREFIX)


async def converse_prompt(body: ConverseBody, model: ServedModel, toolbox: Toolbox) -> tuple[int, ...]:
    """The conversation's token ids. Raises InvalidRequest or ContextExceeded."""
    messages = template_messages(body.messages, body.system, has_tools=bool(toolbox.tools))
    return await chat_prompt(model, *with_tools(model.chat, messages, toolbox))


def _sampling(body: ConverseBody, fields: ModelFields, toolbox: Toolbox, room: int) -> Sampling:
    config = body.inference_config
    return Sampling(
        max_tokens=min(config.max_tokens or room, room),
        temperature=1.0 if config.temperature is None else config.temperature,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=fields.top_k,
        min_p=fields.min_p,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        seed=fields.seed,
        stop=tuple(config.stop_sequences),
        ignore_eos=fields.ignore_eos,
        json_schema=toolbox.forced_schema or _json_schema(body.output_config),
    )


def _check(body: ConverseBody) -> None:
    if body.prompt_variables is not None:
        raise InvalidRequest("promptVariables needs the ARN of a prompt as modelId. Remove promptVariables.")
    _check_inference(body.inference_config)
    pointers = body.additional_model_response_field_paths
    for pointer in pointers:
        if not pointer.startswith("/"):
            constraint = "Member must be a JSON Pointer, such as /stop_sequence"
            raise violated(pointer, "additionalModelResponseFieldPaths", constraint)
    if len(pointers) > 10:
        constraint = "Member must have length less than or equal to 10"
        raise violated("[...]", "additionalModelResponseFieldPaths", constraint)
    checked_metadata(body.request_metadata)


def _check_inference(config: InferenceConfig) -> None:
    within(config.max_tokens, "inferenceConfig.maxTokens", 1)
    within(config.temperature, "inferenceConfig.temperature", 0, 1)
    within(config.top_p, "inferenceConfig.topP", 0, 1)
    if len(config.stop_sequences) > 2500:
        constraint = "Member must have length less than or equal to 2500"
        raise violated("[...]", "inferenceConfig.stopSequences", constraint)
    for index, stop in enumerate(config.stop_sequences):
        if not stop:
            path = f"inferenceConfig.stopSequences.{index + 1}.member"
            raise violated("", path, "Member must have length greater than or equal to 1")


def model_fields(fields: dict[str, Any]) -> ModelFields:
    """The fields that we know, checked. Raises InvalidRequest for any other."""
    try:
        known = msgspec.convert(fields, ModelFields)
    except msgspec.ValidationError as error:
        raise InvalidRequest(
            f"Malformed input request: {error} in additionalModelRequestFields, please reformat your "
            "input and try again."
        ) from None
    within(known.top_k, "additionalModelRequestFields.top_k", 0)
    within(known.min_p, "additionalModelRequestFields.min_p", 0, 1)
    within(known.presence_penalty, "additionalModelRequestFields.presence_penalty", -2, 2)
    within(known.frequency_penalty, "additionalModelRequestFields.frequency_penalty", -2, 2)
    return known


def _json_schema(config: OutputConfig | None) -> str | None:
    if config is None:
        return None
    if config.effort is not None:
        raise InvalidRequest("This model doesn't support outputConfig.effort. Remove it and try again.")
    if config.text_format is None:
        return None
    schema = config.text_format.structure.json_schema.schema
    try:
        msgspec.json.decode(schema, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise InvalidRequest(
            f"outputConfig.textFormat.structure.jsonSchema.schema must be a JSON object as a string: {error}."
        ) from None
    return schema


def stop_reason(generation: Generation) -> str:
    """Bedrock's reason for the end of a generation."""
    if generation.ending != "length":
        return generation.ending
    emitted_all = generation.output_tokens >= generation.request.sampling.max_tokens
    full = generation.prompt_tokens + generation.output_tokens >= generation.model.context_tokens
    return "model_context_window_exceeded" if full and emitted_all else "max_tokens"


def usage(generation: Generation) -> dict[str, int]:
    read, made = generation.prompt_tokens, generation.output_tokens
    return {"inputTokens": read, "outputTokens": made, "totalTokens": read + made}


def served(generation: Generation, asked: ServingClass) -> dict[str, Any]:
    """``performanceConfig`` and ``serviceTier`` as they were served, and ``trace``, where they were asked for."""
    echo: dict[str, Any] = {}
    if latency := asked.served_latency(generation.record):
        echo["performanceConfig"] = {"latency": latency}
    if tier := asked.served_tier(generation.request.tier):
        echo["serviceTier"] = {"type": tier}
    moderation = moderation_in(generation)
    if moderation is not None and moderation.trace != "disabled":
        echo["trace"] = trace_of(moderation)
    return echo


def extra_fields(generation: Generation, body: ConverseBody) -> dict[str, Any]:
    """``additionalModelResponseFields``, where the body asks for one that there is."""
    if "/stop_sequence" not in body.additional_model_response_field_paths:
        return {}
    return {"additionalModelResponseFields": {"stop_sequence": generation.stopped_at}}


def content_blocks(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """The content of an answer. Raises InvalidRequest never: a call that was cut off has the input it came to."""
    blocks: list[dict[str, Any]] = []
    text = thought = written = ""
    for part in parts:
        if isinstance(part, str):
            text += part
        elif isinstance(part, Reasoning):
            thought += part.text
        elif isinstance(part, CallBegan):
            written = ""
            blocks.append({"toolUse": {"toolUseId": part.id, "name": part.name, "input": {}}})
        elif isinstance(part, CallInput):
            written += part.json
        elif isinstance(part, CallEnded):
            blocks[-1]["toolUse"]["input"] = _object(written)
    said = [{"text": text}] if text or not blocks else []
    reasoned = [{"reasoningContent": {"reasoningText": {"text": thought}}}] if thought else []
    return [*reasoned, *said, *blocks]


def _object(written: str) -> Any:
    try:
        return msgspec.json.decode(written, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


def converse_answer(generation: Generation, parts: Sequence[Part], body: ConverseBody) -> dict[str, Any]:
    """Converse's response body."""
    return {
        "output": {"message": {"role": "assistant", "content": content_blocks(parts)}},
        "stopReason": stop_reason(generation),
        "usage": usage(generation),
        "metrics": {"latencyMs": generation.elapsed_ms},
        **extra_fields(generation, body),
        **served(generation, class_of(body)),
    }
