"""``/v1/responses``: its items as a chat, and the chat's output as items. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from diptych.gateway.calls import CallBegan, CallEnded, CallInput
from diptych.gateway.generation import Generation
from diptych.gateway.openai import shapes
from diptych.gateway.openai.parameters import InvalidParameter
from diptych.gateway.openai.responses_shapes import FlatTool, Item, NamedTool, ResponsesBody, TextConfig
from diptych.gateway.output import Part, Reasoning

_UNSUPPORTED = ("background", "previous_response_id", "conversation", "prompt", "top_logprobs")


def as_chat(body: ResponsesBody) -> shapes.ChatBody:
    """The chat completion that does the same. Raises InvalidParameter."""
    for name in _UNSUPPORTED:
        if getattr(body, name):
            raise InvalidParameter(name, f"'{name}' is not supported: responses are not stored. Remove it.")
    if body.max_output_tokens is not None and body.max_output_tokens < 1:
        raise InvalidParameter("max_output_tokens", "'max_output_tokens' must be at least 1.")
    messages = [shapes.ChatMessage(role="system", content=body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        messages.append(shapes.ChatMessage(role="user", content=body.input))
    else:
        messages += _messages(body.input)
    return shapes.ChatBody(
        model=body.model,
        messages=messages,
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        stream=body.stream,
        tools=[_tool(tool, index) for index, tool in enumerate(body.tools or [])] or None,
        tool_choice=_choice(body.tool_choice),
        response_format=_format(body.text),
        service_tier=body.service_tier,
    )


def _messages(items: Sequence[Item]) -> list[shapes.ChatMessage]:
    messages: list[shapes.ChatMessage] = []
    for index, item in enumerate(items):
        path = f"input[{index}]"
        if item.type == "message" and item.role is not None:
            messages.append(shapes.ChatMessage(role=item.role, content=item.content))
        elif item.type == "function_call" and item.call_id and item.name:
            _add_call(messages, item.call_id, shapes.CalledFunction(item.name, item.arguments or "{}"))
        elif item.type == "function_call_output" and item.call_id:
            messages.append(shapes.ChatMessage(role="tool", tool_call_id=item.call_id, content=item.output))
        elif item.type != "reasoning":
            raise InvalidParameter(path, f"{path} is no message, function call or function call output.")
    return messages


def _add_call(messages: list[shapes.ChatMessage], call_id: str, function: shapes.CalledFunction) -> None:
    """Calls of one turn are one message, together with the text before them."""
    call = shapes.ToolCall(call_id, function)
    last = messages.pop() if messages and messages[-1].role == "assistant" else None
    text = last.content if last else ""
    calls = [*(last.tool_calls or []), call] if last else [call]
    messages.append(shapes.ChatMessage(role="assistant", content=text, tool_calls=calls))


def _tool(tool: FlatTool, index: int) -> shapes.ToolSpec:
    if tool.type != "function" or tool.name is None:
        path = f"tools[{index}]"
        raise InvalidParameter(path, f"{path} has the type '{tool.type}'; only functions are supported.")
    return shapes.ToolSpec(
        "function", shapes.FunctionSpec(tool.name, tool.description, tool.parameters, tool.strict)
    )  # fmt: skip


def _choice(choice: Any) -> Any:
    if not isinstance(choice, NamedTool):
        return choice
    if choice.type != "function" or choice.name is None:
        raise InvalidParameter("tool_choice", f"'tool_choice' has the type '{choice.type}'; name a function.")
    return shapes.NamedTool(shapes.NamedFunction(choice.name))


def _format(text: TextConfig | None) -> shapes.ResponseFormat | None:
    if text is None or text.format is None:
        return None
    wanted = text.format
    schema = shapes.JsonSchemaFormat(wanted.name or "answer", wanted.schema or {}) if wanted.schema else None
    return shapes.ResponseFormat(wanted.type, schema)


def new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(20)


class Items:
    """Output items as they grow. Each is a dict in its final form; the last one may be open."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.open: str | None = None

    def begin(self, part: Part) -> dict[str, Any] | None:
        """The item that ``part`` begins, or None when it goes on with the one that is open."""
        kind = "message" if isinstance(part, str) else "reasoning" if isinstance(part, Reasoning) else "function_call"
        item: dict[str, Any]
        if isinstance(part, CallBegan):
            item = {"id": new_id("fc_"), "type": kind, "call_id": part.id, "name": part.name, "arguments": ""}
        elif kind == self.open:
            return None
        elif kind == "message":
            item = {"id": new_id("msg_"), "type": kind, "role": "assistant", "content": []}
        else:
            item = {"id": new_id("rs_"), "type": kind, "summary": [], "content": []}
        self.open = kind
        self.made.append({**item, "status": "in_progress"})
        return self.made[-1]

    def add(self, part: Part) -> None:
        """Puts a part into the item that is open."""
        item = self.made[-1]
        if isinstance(part, CallInput):
            item["arguments"] += part.json
        elif isinstance(part, str):
            item["content"] = item["content"] or [{"type": "output_text", "text": "", "annotations": []}]
            item["content"][0]["text"] += part
        elif isinstance(part, Reasoning):
            item["content"] = item["content"] or [{"type": "reasoning_text", "text": ""}]
            item["content"][0]["text"] += part.text

    def end(self) -> dict[str, Any] | None:
        """Closes the item that is open and returns it."""
        if self.open is None:
            return None
        self.open = None
        self.made[-1]["status"] = "completed"
        return self.made[-1]


def items_of(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """The items of a whole output."""
    items = Items()
    for part in parts:
        if isinstance(part, CallEnded):
            items.end()
            continue
        if isinstance(part, CallBegan) or (items.open and _other(items.open, part)):
            items.end()
        if not isinstance(part, CallInput):
            items.begin(part)
        items.add(part)
    items.end()
    return items.made


def _other(kind: str, part: Part) -> bool:
    return (kind == "message") != isinstance(part, str)


def response_object(
    generation: Generation, created: int, body: ResponsesBody, output: list[dict[str, Any]], status: str
) -> dict[str, Any]:
    """The response, finished or not."""
    done = status not in ("in_progress", "queued")
    return {
        "id": f"resp_{generation.request.id}",
        "object": "response",
        "created_at": created,
        "status": status,
        "model": body.model,
        "output": output,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "service_tier": body.service_tier or "default",
        "store": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": body.text or TextConfig(),
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": _usage(generation) if done else None,
    }


def final_status(generation: Generation) -> str:
    return "incomplete" if generation.ending == "length" else "completed"


def _usage(generation: Generation) -> dict[str, Any]:
    record = generation.record
    read, made = generation.prompt_tokens, generation.output_tokens
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": record.cached_tokens if record else 0, "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + made,
    }
