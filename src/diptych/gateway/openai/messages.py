"""Chat messages and tools of OpenAI's form in the chat template's. Pure."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from diptych.gateway import ports
from diptych.gateway.openai.parameters import InvalidParameter
from diptych.gateway.openai.shapes import ChatBody, ChatMessage, NamedTool, ToolCall
from diptych.gateway.tools import Tool, Toolbox, tool_call

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def template_messages(messages: list[ChatMessage]) -> list[ports.Message]:
    """The conversation for the chat template. Raises InvalidParameter."""
    return [_turn(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _turn(message: ChatMessage, path: str) -> ports.Message:
    if message.role == "tool":
        if not message.tool_call_id:
            raise InvalidParameter(path, f"{path} has no 'tool_call_id'. Say which call it answers.")
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": _text(message, path)}
    if message.tool_calls:
        calls = [_call(call, f"{path}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls)]
        content = _text(message, path) if message.content else ""
        return {"role": message.role, "content": content, "tool_calls": calls}
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": _text(message, path)}


def _call(call: ToolCall, path: str) -> ports.Message:
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])
    except msgspec.DecodeError:
        where = f"{path}.function.arguments"
        raise InvalidParameter(where, f"{where} is not a JSON object.") from None
    return tool_call(call.id, call.function.name, arguments)


def _text(message: ChatMessage, path: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if not message.content:
        raise InvalidParameter(path, f"{path} has no content. Send a text.")
    for index, part in enumerate(message.content):
        if part.type not in ("text", "input_text", "output_text") or part.text is None:
            where = f"{path}.content[{index}]"
            raise InvalidParameter(where, f"{where} has the type '{part.type}'; this model takes 'text' only.")
    return "\n".join(part.text or "" for part in message.content)


def toolbox_of(body: ChatBody) -> Toolbox:
    """The tools and the choice. Raises InvalidParameter."""
    tools = tuple(_tool(spec.type, spec.function, f"tools[{index}]") for index, spec in enumerate(body.tools or []))
    choice = body.tool_choice
    if choice is None or choice == "auto":
        return Toolbox(tools)
    if choice == "none":
        return Toolbox(tools, "none")
    if not tools:
        raise InvalidParameter("tool_choice", "'tool_choice' is only allowed when 'tools' are given.")
    if not isinstance(choice, NamedTool):
        return Toolbox(tools, "any")
    name = choice.function.name
    if name not in {tool.name for tool in tools}:
        raise InvalidParameter("tool_choice", f"The tool '{name}' in 'tool_choice' is not among 'tools'.")
    return Toolbox(tools, "any", name)


def _tool(kind: str, spec: Any, path: str) -> Tool:
    if kind != "function" or spec is None:
        raise InvalidParameter(path, f"{path} has the type '{kind}'; only functions are supported.")
    if not _NAME.fullmatch(spec.name):
        where = f"{path}.function.name"
        raise InvalidParameter(where, f"{where} is '{spec.name}'; use up to 64 of a-z, A-Z, 0-9, _ and -.")
    return Tool(spec.name, spec.description or "", spec.parameters or {})
