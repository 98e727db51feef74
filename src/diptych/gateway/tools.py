"""Tools on their way into a prompt, and how a model is held to calling one. Pure.

A chat template that knows tools gets them; for one that does not, they are described in the system message and calls
and results are written out in the form that :mod:`diptych.gateway.output` reads back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from diptych.gateway.output import CALL, CALL_END
from diptych.gateway.ports import ChatFormat, Message
from diptych.gateway.responses import to_json

Choice = Literal["auto", "any", "none"]


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call. ``schema`` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    schema: dict[str, Any] = {}


class Toolbox(msgspec.Struct, frozen=True):
    """The tools of a request. ``only`` names the one that must be called; with ``choice`` "any" some one must."""

    tools: tuple[Tool, ...] = ()
    choice: Choice = "auto"
    only: str | None = None

    @property
    def offered(self) -> tuple[Tool, ...]:
        """The tools that the model hears of."""
        return () if self.choice == "none" else self.tools

    @property
    def forced_schema(self) -> str | None:
        """The JSON schema of a turn that must be a call, or None."""
        if self.choice != "any" and self.only is None:
            return None
        calls = [_call_schema(tool) for tool in self.tools if self.only in (None, tool.name)]
        return to_json(calls[0] if len(calls) == 1 else {"anyOf": calls}).decode()


def _call_schema(tool: Tool) -> dict[str, Any]:
    """A schema that names its properties and is silent on others is taken to mean no others: a small model would
    invent them until its tokens are used up."""
    arguments = tool.schema or {"type": "object"}
    if "properties" in arguments:
        arguments = {"additionalProperties": False, **arguments}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def tool_call(call_id: str, name: str, arguments: dict[str, Any]) -> Message:
    """A call in the chat template's form."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def function(tool: Tool) -> Message:
    """A tool in the chat template's form."""
    parameters = tool.schema or {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


_PROBE_MESSAGES: list[Message] = [{"role": "user", "content": "x"}]
_native: dict[int, tuple[ChatFormat, bool]] = {}


def knows_tools(chat: ChatFormat) -> bool:
    """Whether the model's template does anything with tools."""
    known = _native.get(id(chat))
    if known is None or known[0] is not chat:
        probe = [function(Tool("probe", "a probe"))]
        native = chat.prompt_tokens(_PROBE_MESSAGES, probe) != chat.prompt_tokens(_PROBE_MESSAGES)
        known = _native[id(chat)] = (chat, native)
    return known[1]


def with_tools(
    chat: ChatFormat, messages: Sequence[Message], toolbox: Toolbox
) -> tuple[list[Message], list[Message] | None]:
    """(messages, tools) for the chat template."""
    functions = [function(tool) for tool in toolbox.offered]
    if knows_tools(chat):
        return list(messages), functions or None
    return _written_out(messages, functions), None


_INSTRUCTIONS = """\
# Tools

You may call one or more functions to assist with the user query. They are described here:
<tools>
{tools}
</tools>

For each function call, return a JSON object with the function's name and arguments within {call}{end} tags:
{call}
{{"name": <function-name>, "arguments": <args-json-object>}}
{end}"""


def _written_out(messages: Sequence[Message], functions: Sequence[Message]) -> list[Message]:
    turns = [_as_text(message) for message in messages]
    if functions:
        described = "\n".join(to_json(tool).decode() for tool in functions)
        instructions = _INSTRUCTIONS.format(tools=described, call=CALL, end=CALL_END)
        if turns and turns[0]["role"] == "system":
            turns[0] = {"role": "system", "content": f"{turns[0]['content']}\n\n{instructions}"}
        else:
            turns.insert(0, {"role": "system", "content": instructions})
    return _merged(turns)


def _as_text(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if calls := message.get("tool_calls"):
        said = [message["content"]] if message["content"] else []
        made = [f"{CALL}\n{to_json(call['function']).decode()}\n{CALL_END}" for call in calls]
        return {"role": message["role"], "content": "\n".join(said + made)}
    return message


def _merged(turns: Sequence[Message]) -> list[Message]:
    """One message for several user messages in a row: results of calls are user messages here."""
    merged: list[Message] = []
    for turn in turns:
        if merged and turn["role"] == merged[-1]["role"] == "user":
            merged[-1] = {"role": "user", "content": f"{merged[-1]['content']}\n{turn['content']}"}
        else:
            merged.append(turn)
    return merged
