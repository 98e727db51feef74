"""Converse's request as Bedrock's service model has it. Unknown members are refused by name."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class _Shape(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    pass


class GuardedText(_Shape, frozen=True):
    text: str
    qualifiers: list[Literal["grounding_source", "query", "guard_content"]] = []


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


class ReasoningText(_Shape, frozen=True):
    text: str
    signature: str | None = None


class ReasoningContent(_Shape, frozen=True):
    reasoning_text: ReasoningText | None = None
    redacted_content: str | None = None


class ToolUse(_Shape, frozen=True):
    tool_use_id: str
    name: str
    input: dict[str, Any]
    type: Literal["server_tool_use"] | None = None


class ToolResultBlock(_Shape, frozen=True):
    """A union: exactly one member is set."""

    text: str | None = None
    json: Any = msgspec.UNSET
    image: dict[str, Any] | None = None
    document: dict[str, Any] | None = None
    video: dict[str, Any] | None = None
    search_result: dict[str, Any] | None = None


class ToolResult(_Shape, frozen=True):
    tool_use_id: str
    content: list[ToolResultBlock] = []
    status: Literal["success", "error"] | None = None
    type: str | None = None


class ContentBlock(_Shape, frozen=True):
    """A union: exactly one member is set."""

    text: str | None = None
    image: dict[str, Any] | None = None
    document: dict[str, Any] | None = None
    video: dict[str, Any] | None = None
    audio: dict[str, Any] | None = None
    tool_use: ToolUse | None = None
    tool_result: ToolResult | None = None
    guard_content: GuardContent | None = None
    cache_point: CachePoint | None = None
    reasoning_content: ReasoningContent | None = None
    citations_content: dict[str, Any] | None = None
    search_result: dict[str, Any] | None = None
    tool_addition: dict[str, Any] | None = None
    tool_removal: dict[str, Any] | None = None


class Message(_Shape, frozen=True):
    role: Literal["user", "assistant", "system"]
    content: list[ContentBlock]


class InputSchema(_Shape, frozen=True):
    json: dict[str, Any]


class ToolSpec(_Shape, frozen=True):
    name: str
    input_schema: InputSchema
    description: str = ""
    strict: bool | None = None


class SystemTool(_Shape, frozen=True):
    name: str


class ToolEntry(_Shape, frozen=True):
    """A union: exactly one member is set."""

    tool_spec: ToolSpec | None = None
    system_tool: SystemTool | None = None
    cache_point: CachePoint | None = None


class NamedTool(_Shape, frozen=True):
    name: str


class ToolChoice(_Shape, frozen=True):
    """A union: exactly one member is set."""

    auto: dict[str, Any] | None = None
    any: dict[str, Any] | None = None
    tool: NamedTool | None = None


class ToolConfig(_Shape, frozen=True):
    tools: list[ToolEntry] = []
    tool_choice: ToolChoice | None = None


class InferenceConfig(_Shape, frozen=True):
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop_sequences: list[str] = []


class PerformanceConfig(_Shape, frozen=True):
    latency: Literal["standard", "optimized"] = "standard"


class ServiceTier(_Shape, frozen=True):
    type: Literal["priority", "default", "flex", "reserved"]


class GuardrailConfig(_Shape, frozen=True):
    guardrail_identifier: str | None = None
    guardrail_version: str | None = None
    trace: Literal["enabled", "disabled", "enabled_full"] = "disabled"
    stream_processing_mode: Literal["sync", "async"] | None = None


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
    tool_config: ToolConfig | None = None
    guardrail_config: GuardrailConfig | None = None
    additional_model_request_fields: dict[str, Any] = {}
    additional_model_response_field_paths: list[str] = []
    prompt_variables: dict[str, Any] | None = None
    request_metadata: dict[str, str] = {}
    performance_config: PerformanceConfig | None = None
    service_tier: ServiceTier | None = None
    output_config: OutputConfig | None = None


class CountedConversation(_Shape, frozen=True):
    messages: list[Message] = []
    system: list[SystemBlock] = []
    tool_config: ToolConfig | None = None
    additional_model_request_fields: dict[str, Any] = {}


class CountedBody(_Shape, frozen=True):
    body: str


class CountTokensInput(_Shape, frozen=True):
    """A union: exactly one member is set."""

    converse: CountedConversation | None = None
    invoke_model: CountedBody | None = None


class CountTokensBody(_Shape, frozen=True):
    input: CountTokensInput


count_tokens_decoder = msgspec.json.Decoder(CountTokensBody)
decoder = msgspec.json.Decoder(ConverseBody)
