"""Converse's request as Bedrock's service model has it. Unknown members are refused by name."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class _Shape(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    pass


class GuardedText(_Shape, frozen=True):
    text: str
    qualifiers: list[str] = []


class GuardContent(_Shape, frozen=True):
    text: GuardedText | None = None
    image: dict[str, Any] | None = None


class CachePoint(_Shape, frozen=True):
    type: Literal["default"]
    ttl: Literal["5m", "1h"] | None = None


class SystemBlock(_Shape, frozen=True):
    text: str | None = None
    guard_content: GuardContent | None = None
    cache_point: CachePoint | None = None


class ContentBlock(_Shape, frozen=True):
    """A union: exactly one member is set."""

    text: str | None = None
    image: dict[str, Any] | None = None
    document: dict[str, Any] | None = None
    video: dict[str, Any] | None = None
    audio: dict[str, Any] | None = None
    tool_use: dict[str, Any] | None = None
    tool_result: dict[str, Any] | None = None
    guard_content: GuardContent | None = None
    cache_point: CachePoint | None = None
    reasoning_content: dict[str, Any] | None = None
    citations_content: dict[str, Any] | None = None
    search_result: dict[str, Any] | None = None
    tool_addition: dict[str, Any] | None = None
    tool_removal: dict[str, Any] | None = None


class Message(_Shape, frozen=True):
    role: Literal["user", "assistant", "system"]
    content: list[ContentBlock]


class InferenceConfig(_Shape, frozen=True):
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop_sequences: list[str] = []


class PerformanceConfig(_Shape, frozen=True):
    latency: Literal["standard", "optimized"] = "standard"


class ServiceTier(_Shape, frozen=True):
    type: Literal["priority", "default", "flex", "reserved"]


class JsonSchema(_Shape, frozen=True):
    schema: str
    name: str | None = None
    description: str | None = None


class TextStructure(_Shape, frozen=True):
    json_schema: JsonSchema


class TextFormat(_Shape, frozen=True):
    type: Literal["json_schema"]
    structure: TextStructure


class OutputConfig(_Shape, frozen=True):
    text_format: TextFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class ConverseBody(_Shape, frozen=True):
    messages: list[Message] = []
    system: list[SystemBlock] = []
    inference_config: InferenceConfig = InferenceConfig()
    tool_config: dict[str, Any] | None = None
    guardrail_config: dict[str, Any] | None = None
    additional_model_request_fields: dict[str, Any] = {}
    additional_model_response_field_paths: list[str] = []
    prompt_variables: dict[str, Any] | None = None
    request_metadata: dict[str, str] = {}
    performance_config: PerformanceConfig | None = None
    service_tier: ServiceTier | None = None
    output_config: OutputConfig | None = None


decoder = msgspec.json.Decoder(ConverseBody)
