"""Converse and ConverseStream: the body as a request for the service, and the answer in Bedrock's shape."""

from __future__ import annotations

from typing import Any

import msgspec

from diptych.errors import InvalidRequest
from diptych.gateway.bedrock.constraints import violated, within
from diptych.gateway.bedrock.conversation import template_messages
from diptych.gateway.bedrock.shapes import ConverseBody, InferenceConfig, OutputConfig
from diptych.gateway.generation import Generation
from diptych.gateway.ports import ServedModel
from diptych.gateway.prompting import chat_prompt
from diptych.types import Request, Sampling


class ModelFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``additionalModelRequestFields``: what the engines can do beyond ``inferenceConfig``."""

    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_eos: bool = False


async def converse_request(body: ConverseBody, model: ServedModel, request_id: str, operation: str) -> Request:
    """The request that ``body`` describes. Raises InvalidRequest or ContextExceeded, in Bedrock's words."""
    _refuse_unsupported(body)
    fields = _model_fields(body.additional_model_request_fields)
    _check(body)
    prompt = await chat_prompt(model, template_messages(body.messages, body.system))
    room = model.context_tokens - len(prompt)
    return Request(
        id=request_id,
        model=model.id,
        prompt=prompt,
        sampling=_sampling(body, fields, room),
        latency="optimized" if _wants_optimized(body) else "standard",
        operation=operation,
    )


def _sampling(body: ConverseBody, fields: ModelFields, room: int) -> Sampling:
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
        json_schema=_json_schema(body.output_config),
    )


def _wants_optimized(body: ConverseBody) -> bool:
    latency = body.performance_config is not None and body.performance_config.latency == "optimized"
    return latency or (body.service_tier is not None and body.service_tier.type == "priority")


def _refuse_unsupported(body: ConverseBody) -> None:
    if body.tool_config is not None:
        raise InvalidRequest("This model doesn't support tool use. Remove toolConfig and try again.")
    if body.guardrail_config is not None:
        raise InvalidRequest("The guardrail identifier or version provided in the request does not exist.")
    if body.prompt_variables is not None:
        raise InvalidRequest("promptVariables needs the ARN of a prompt as modelId. Remove promptVariables.")


def _check(body: ConverseBody) -> None:
    _check_inference(body.inference_config)
    for pointer in body.additional_model_response_field_paths:
        if not pointer.startswith("/"):
            raise violated(
                pointer,
                "additionalModelResponseFieldPaths",
                "Member must be a JSON Pointer, such as /stop_sequence",
            )
    if len(body.additional_model_response_field_paths) > 10:
        raise violated("[...]", "additionalModelResponseFieldPaths", "Member must have length less than or equal to 10")
    if len(body.request_metadata) > 16:
        raise violated("{...}", "requestMetadata", "Member must have length less than or equal to 16")


def _check_inference(config: InferenceConfig) -> None:
    within(config.max_tokens, "inferenceConfig.maxTokens", 1)
    within(config.temperature, "inferenceConfig.temperature", 0, 1)
    within(config.top_p, "inferenceConfig.topP", 0, 1)
    if len(config.stop_sequences) > 2500:
        raise violated("[...]", "inferenceConfig.stopSequences", "Member must have length less than or equal to 2500")
    for index, stop in enumerate(config.stop_sequences):
        if not stop:
            path = f"inferenceConfig.stopSequences.{index + 1}.member"
            raise violated("", path, "Member must have length greater than or equal to 1")


def _model_fields(fields: dict[str, Any]) -> ModelFields:
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


def served(generation: Generation, body: ConverseBody) -> dict[str, Any]:
    """The echo of ``performanceConfig`` (what was served) and ``serviceTier``, where they were asked for."""
    echo: dict[str, Any] = {}
    if body.performance_config is not None:
        record = generation.record
        echo["performanceConfig"] = {"latency": record.served_latency if record else "standard"}
    if body.service_tier is not None:
        echo["serviceTier"] = {"type": body.service_tier.type}
    return echo


def converse_answer(generation: Generation, text: str, body: ConverseBody) -> dict[str, Any]:
    """Converse's response body."""
    return {
        "output": {"message": {"role": "assistant", "content": [{"text": text}]}},
        "stopReason": stop_reason(generation),
        "usage": usage(generation),
        "metrics": {"latencyMs": generation.elapsed_ms},
        **served(generation, body),
    }
