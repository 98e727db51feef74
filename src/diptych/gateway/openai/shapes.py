"""The request of ``/v1/chat/completions``. Unknown members are refused by name, as OpenAI does."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class _Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message. Parts other than text are refused by their type."""

    type: str
    text: str | None = None


class CalledFunction(msgspec.Struct, frozen=True):
    """``arguments`` is a JSON object as a string."""

    name: str
    arguments: str = "{}"


class ToolCall(msgspec.Struct, frozen=True):
    id: str
    function: CalledFunction
    type: str = "function"


class ChatMessage(msgspec.Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None


class FunctionSpec(_Shape, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(msgspec.Struct, frozen=True):
    """Tools other than functions are refused by their type."""

    type: str
    function: FunctionSpec | None = None


class NamedFunction(msgspec.Struct, frozen=True):
    name: str


class NamedTool(msgspec.Struct, frozen=True):
    function: NamedFunction
    type: str = "function"


class StreamOptions(_Shape, frozen=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchemaFormat(_Shape, frozen=True):
    name: str
    schema: dict[str, Any] = {}
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Shape, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class ChatBody(_Shape, frozen=True):
    """``top_k``, ``min_p`` and ``ignore_eos`` are extensions that other open servers have too."""

    messages: list[ChatMessage] = []
    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_format: ResponseFormat | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    top_k: int = 0
    min_p: float = 0.0
    ignore_eos: bool = False
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    verbosity: str | None = None
    parallel_tool_calls: bool | None = None
    logit_bias: dict[str, float] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    reasoning_effort: str | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None


class CompletionBody(_Shape, frozen=True):
    """``/v1/completions``. ``prompt`` is a text or token ids, or a list of either."""

    model: str | None = None
    prompt: str | list[str | int | list[int]] = []
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    top_k: int = 0
    min_p: float = 0.0
    ignore_eos: bool = False


completion_decoder = msgspec.json.Decoder(CompletionBody)
decoder = msgspec.json.Decoder(ChatBody)
