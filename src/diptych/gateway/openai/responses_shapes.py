"""The request of ``/v1/responses``. Unknown members are refused by name."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from diptych.gateway.openai.shapes import ContentPart


class _Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Item(msgspec.Struct, frozen=True):
    """One item of the input: a message, a call or the result of one."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None


class TextFormat(_Shape, frozen=True):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(_Shape, frozen=True):
    format: TextFormat | None = None
    verbosity: str | None = None


class FlatTool(msgspec.Struct, frozen=True):
    """A function; tools of other types are refused."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(msgspec.Struct, frozen=True):
    type: str
    name: str | None = None


class ResponsesBody(_Shape, frozen=True):
    model: str | None = None
    input: str | list[Item] = ""
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    tools: list[FlatTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: dict[str, Any] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    include: list[str] | None = None
    truncation: str | None = None
    top_logprobs: int | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    max_tool_calls: int | None = None


decoder = msgspec.json.Decoder(ResponsesBody)
