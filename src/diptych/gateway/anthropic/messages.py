"""Anthropic's Messages: the body as a request for the service, and the answer's content. Pure but for tokenizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from diptych.errors import InvalidRequest
from diptych.gateway import ports
from diptych.gateway.anthropic.shapes import Block, Message, MessagesBody
from diptych.gateway.calls import CallBegan, CallEnded, CallInput
from diptych.gateway.generation import Generation
from diptych.gateway.output import OutputReader, Part, Reasoning
from diptych.gateway.ports import ServedModel
from diptych.gateway.prompting import chat_prompt
from diptych.gateway.reading import reader_for
from diptych.gateway.tools import Tool, Toolbox, tool_call, with_tools
from diptych.types import Request, Sampling

CALL_PREFIX = "toolu_"
_STOP = {
    "end_turn": "end_turn", "length": "max_tokens", "stop_sequence": "stop_sequence", "tool_use": "tool_use",
    "guardrail_intervened": "end_turn",
}  # fmt: skip


async def messages_request(
    body: MessagesBody, model: ServedModel, request_id: str, operation: str
) -> tuple[Request, OutputReader | None]:
    """The request that ``body`` describes. Raises InvalidRequest or ContextExceeded."""
    _check(body)
    toolbox = _toolbox(body)
    messages, tools = with_tools(model.chat, _template_messages(body), toolbox)
    prompt = await chat_prompt(model, messages, tools)
    sampling = Sampling(
        max_tokens=min(body.max_tokens, model.context_tokens - len(prompt)),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        stop=tuple(body.stop_sequences),
        json_schema=toolbox.forced_schema,
    )
    request = Request(id=request_id, model=model.id, prompt=prompt, sampling=sampling, operation=operation)
    return request, reader_for(model.chat, prompt, toolbox, CALL_PREFIX)


def _check(body: MessagesBody) -> None:
    if body.max_tokens < 1:
        raise InvalidRequest("max_tokens: must be greater than or equal to 1")
    for name, value in (("temperature", body.temperature), ("top_p", body.top_p)):
        if value is not None and not 0 <= value <= 1:
            raise InvalidRequest(f"{name}: range: 0..1")
    if body.top_k is not None and body.top_k < 0:
        raise InvalidRequest("top_k: must be greater than or equal to 0")
    if body.thinking is not None and body.thinking.get("type") != "disabled":
        raise InvalidRequest("thinking: this model decides by itself; remove it")
    if not all(stop.strip() for stop in body.stop_sequences):
        raise InvalidRequest("stop_sequences: each stop sequence must contain non-whitespace")
    if not body.messages:
        raise InvalidRequest("messages: at least one message is required")
    if body.messages[-1].role == "assistant":
        raise InvalidRequest("messages: this model does not support prefill; the last message must be the user's")


def _toolbox(body: MessagesBody) -> Toolbox:
    for index, tool in enumerate(body.tools):
        if tool.input_schema is None:
            raise InvalidRequest(f"tools.{index}: the type '{tool.type}' is not supported; give an input_schema")
    tools = tuple(Tool(tool.name, tool.description, tool.input_schema or {}) for tool in body.tools)
    choice = body.tool_choice
    if choice is None or choice.type == "auto":
        return Toolbox(tools)
    if choice.type == "none":
        return Toolbox(tools, "none")
    if choice.type == "tool" and choice.name not in {tool.name for tool in tools}:
        raise InvalidRequest(f"tool_choice: the tool '{choice.name}' is not among tools")
    return Toolbox(tools, "any", choice.name if choice.type == "tool" else None)


def _template_messages(body: MessagesBody) -> list[ports.Message]:
    turns: list[ports.Message] = []
    if body.system:
        system = body.system if isinstance(body.system, str) else _text(body.system, "system")
        turns.append({"role": "system", "content": system})
    for index, message in enumerate(body.messages):
        turns += _turns(message, f"messages.{index}")
    return turns


def _turns(message: Message, path: str) -> list[ports.Message]:
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    if not message.content:
        raise InvalidRequest(f"{path}.content: at least one block is required")
    blocks = [block for block in message.content if block.type not in ("thinking", "redacted_thinking")]
    said = [block for block in blocks if block.type not in ("tool_use", "tool_result")]
    text = _text(said, path)
    if message.role == "assistant":
        calls = [
            tool_call(block.id or "", block.name or "", block.input or {})
            for block in blocks
            if block.type == "tool_use"
        ]  # fmt: skip
        return [{"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}]
    results = [_result(block, path) for block in blocks if block.type == "tool_result"]
    return [*results, *([{"role": "user", "content": text}] if said or not results else [])]


def _result(block: Block, path: str) -> ports.Message:
    content = block.content or ""
    text = content if isinstance(content, str) else _text(content, path)
    return {"role": "tool", "tool_call_id": block.tool_use_id or "", "content": text}


def _text(blocks: Sequence[Block], path: str) -> str:
    for index, block in enumerate(blocks):
        if block.type != "text" or block.text is None:
            raise InvalidRequest(f"{path}.content.{index}: this model does not take blocks of type '{block.type}'")
    return "\n".join(block.text or "" for block in blocks)


def stop_reason(generation: Generation) -> str:
    return _STOP[generation.ending]


def usage(generation: Generation) -> dict[str, int]:
    return {"input_tokens": generation.prompt_tokens, "output_tokens": generation.output_tokens}


def content_blocks(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """The content of a whole answer."""
    blocks: list[dict[str, Any]] = []
    written = ""
    for part in parts:
        if isinstance(part, CallBegan):
            written = ""
            blocks.append({"type": "tool_use", "id": part.id, "name": part.name, "input": {}})
        elif isinstance(part, CallInput):
            written += part.json
        elif isinstance(part, CallEnded):
            blocks[-1]["input"] = _object(written)
        else:
            _grow(blocks, part)
    return blocks


def _grow(blocks: list[dict[str, Any]], part: str | Reasoning) -> None:
    kind, member, text = ("text", "text", part) if isinstance(part, str) else ("thinking", "thinking", part.text)
    if not blocks or blocks[-1]["type"] != kind:
        blocks.append({"type": kind, member: "", **({"signature": ""} if kind == "thinking" else {})})
    blocks[-1][member] += text


def _object(written: str) -> Any:
    try:
        return msgspec.json.decode(written, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


def message_object(generation: Generation, model: str, content: list[dict[str, Any]], *, done: bool) -> dict[str, Any]:
    """The message, finished or not."""
    return {
        "id": f"msg_{generation.request.id.replace('-', '')}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop_reason(generation) if done else None,
        "stop_sequence": generation.stopped_at if done else None,
        "usage": usage(generation),
    }
