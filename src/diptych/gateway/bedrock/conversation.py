"""Converse's messages in the chat template's form, or what Bedrock says is wrong with them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec

from diptych.errors import InvalidRequest
from diptych.gateway import ports
from diptych.gateway.bedrock.shapes import ContentBlock, GuardContent, Message, SystemBlock, ToolResult
from diptych.gateway.responses import to_json
from diptych.gateway.tools import tool_call

_NO_USER = (
    "A conversation must start with a user message. Try again with a conversation that starts with a user message."
)
_NOT_ALTERNATING = (
    "A conversation must alternate between user and assistant roles. Make sure the conversation alternates "
    "between user and assistant roles and try again."
)
_PREFILL = "This model does not support assistant message prefill. The conversation must end with a user message."
_NO_TOOL_CONFIG = "The toolConfig field must be defined when using toolUse and toolResult content blocks."


def template_messages(messages: list[Message], system: list[SystemBlock], *, has_tools: bool) -> list[ports.Message]:
    """The conversation for the chat template. Raises InvalidRequest."""
    talk = [message for message in messages if message.role != "system"]
    _check_turns([message.role for message in talk])
    _check_results(messages, has_tools=has_tools)
    texts = [_system_text(block, index) for index, block in enumerate(system)]
    turns: list[ports.Message] = []
    if instructions := _joined(texts):
        turns.append({"role": "system", "content": instructions})
    for index, message in enumerate(messages):
        turns += _turns(message, f"messages.{index}")
    return turns


def _check_turns(roles: list[str]) -> None:
    if not roles or roles[0] != "user":
        raise InvalidRequest(_NO_USER)
    if any(role == following for role, following in pairwise(roles)):
        raise InvalidRequest(_NOT_ALTERNATING)
    if roles[-1] != "user":
        raise InvalidRequest(_PREFILL)


def _check_results(messages: list[Message], *, has_tools: bool) -> None:
    """Every call is answered in the next turn, and nothing else is."""
    asked: list[str] = []
    for index, message in enumerate(messages):
        results = [block.tool_result.tool_use_id for block in message.content if block.tool_result]
        uses = [block.tool_use.tool_use_id for block in message.content if block.tool_use]
        if (results or uses) and not has_tools:
            raise InvalidRequest(_NO_TOOL_CONFIG)
        path = f"messages.{index}.content"
        if message.role == "user":
            _check_answers(asked, results, path)
        asked = uses if message.role == "assistant" else asked


def _check_answers(asked: list[str], results: list[str], path: str) -> None:
    if len(results) > len(asked):
        raise InvalidRequest(
            f"The number of toolResult blocks at {path} exceeds the number of toolUse blocks of previous turn."
        )
    if missing := [call for call in asked if call not in results]:
        raise InvalidRequest(f"Expected toolResult blocks at {path} for the following Ids: {', '.join(missing)}")


def _turns(message: Message, path: str) -> list[ports.Message]:
    if not message.content:
        raise InvalidRequest(
            f"The content field in the Message object at {path} is empty. Add a ContentBlock object to the "
            "content field and try again."
        )
    blocks = [(block, f"{path}.content.{index}") for index, block in enumerate(message.content)]
    texts = [_block_text(block, where) for block, where in blocks]
    if message.role == "assistant":
        return [_assistant(message, _joined(texts))]
    results = [_result(block.tool_result, where) for block, where in blocks if block.tool_result is not None]
    said = _joined(texts)
    spoken: list[ports.Message] = [{"role": message.role, "content": said}] if said or not results else []
    return results + spoken


def _assistant(message: Message, text: str) -> ports.Message:
    calls = [
        tool_call(block.tool_use.tool_use_id, block.tool_use.name, block.tool_use.input)
        for block in message.content
        if block.tool_use is not None
    ]
    turn: ports.Message = {"role": "assistant", "content": text}
    return {**turn, "tool_calls": calls} if calls else turn


def _joined(texts: Sequence[str | None]) -> str:
    return "\n".join(text for text in texts if text is not None)


def _system_text(block: SystemBlock, index: int) -> str | None:
    path = f"system.{index}"
    member = _only_member(block, path)
    if member == "guardContent":
        return _guarded(block.guard_content, path)
    if member == "text" and not (block.text or "").strip():
        raise _blank(f"SystemContentBlock object at {path}")
    return block.text


def _block_text(block: ContentBlock, path: str) -> str | None:
    member = _only_member(block, path)
    if member == "text":
        if not (block.text or "").strip():
            raise _blank(f"ContentBlock object at {path}")
        return block.text
    if member == "guardContent":
        return _guarded(block.guard_content, path)
    if member in ("cachePoint", "reasoningContent", "toolUse", "toolResult"):
        return None
    raise _unsupported(member, path)


def _result(result: ToolResult, path: str) -> ports.Message:
    texts = []
    for index, block in enumerate(result.content):
        where = f"{path}.toolResult.content.{index}"
        member = _only_member(block, where)
        if member not in ("text", "json"):
            raise _unsupported(member, where)
        texts.append(block.text if block.text is not None else to_json(block.json).decode())
    return {"role": "tool", "tool_call_id": result.tool_use_id, "content": "\n".join(texts)}


def _only_member(block: msgspec.Struct, path: str) -> str:
    names = zip(block.__struct_encode_fields__, block.__struct_fields__, strict=True)
    members = [wire for wire, attribute in names if _is_set(getattr(block, attribute))]
    if len(members) != 1:
        raise InvalidRequest(
            f"The ContentBlock object at {path} must set exactly one member, not {len(members)}. Send each "
            "content in a block of its own."
        )
    return members[0]


def _is_set(value: Any) -> bool:
    return value is not None and value is not msgspec.UNSET


def _guarded(content: GuardContent | None, path: str) -> str:
    if content is None or content.text is None:
        raise InvalidRequest(f"This model doesn't support images. Send text in guardContent at {path}.")
    return content.text.text


def _blank(where: str) -> InvalidRequest:
    return InvalidRequest(f"The text field in the {where} is blank. Add text to the text field, and try again.")


def _unsupported(member: str, path: str) -> InvalidRequest:
    return InvalidRequest(
        f"This model doesn't support the {member} content block at {path}. Remove it, or send its content as "
        "text, and try again."
    )
