"""The request of Anthropic's Messages. Unknown members are refused by name."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class _Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Block(msgspec.Struct, frozen=True):
    """A content block. Types that the model cannot take are refused by their name."""

    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None


class Message(msgspec.Struct, frozen=True):
    role: Literal["user", "assistant"]
    content: str | list[Block]


class Tool(msgspec.Struct, frozen=True):
    name: str
    input_schema: dict[str, Any] | None = None
    description: str = ""
    type: str | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class MessagesBody(_Shape, frozen=True):
    max_tokens: int
    messages: list[Message]
    model: str | None = None
    system: str | list[Block] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] = []
    stream: bool = False
    tools: list[Tool] = []
    tool_choice: ToolChoice | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    thinking: dict[str, Any] | None = None
    anthropic_version: str | None = None


decoder = msgspec.json.Decoder(MessagesBody)
