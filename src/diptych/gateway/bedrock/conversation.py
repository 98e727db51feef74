"""Converse's messages in the chat template's form, or what Bedrock says is wrong with them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from diptych.errors import InvalidRequest
from diptych.gateway import ports
from diptych.gateway.bedrock.shapes import ContentBlock, GuardContent, Message, SystemBlock

_NO_USER = (
    "A conversation must start with a user message. Try again with a conversation that starts with a user message."
)
_NOT_ALTERNATING = (
    "A conversation must alternate between user and assistant roles. Make sure the conversation alternates "
    "between user and assistant roles and try again."
)
_PREFILL = "This model does not support assistant message prefill. The conversation must end with a user message."


def template_messages(messages: list[Message], system: list[SystemBlock]) -> list[ports.Message]:
    """The conversation for the chat template. Raises InvalidRequest."""
    _check_turns([message.role for message in messages if message.role != "system"])
    instructions = _joined(_system_text(block, index) for index, block in enumerate(system))
    turns: list[ports.Message] = [{"role": "system", "content": instructions}] if instructions else []
    return turns + [_turn(message, f"messages.{index}") for index, message in enumerate(messages)]


def _check_turns(roles: list[str]) -> None:
    if not roles or roles[0] != "user":
        raise InvalidRequest(_NO_USER)
    if any(role == following for role, following in pairwise(roles)):
        raise InvalidRequest(_NOT_ALTERNATING)
    if roles[-1] != "user":
        raise InvalidRequest(_PREFILL)


def _turn(message: Message, path: str) -> ports.Message:
    if not message.content:
        raise InvalidRequest(
            f"The content field in the Message object at {path} is empty. Add a ContentBlock object to the "
            "content field and try again."
        )
    texts = (_block_text(block, f"{path}.content.{index}") for index, block in enumerate(message.content))
    return {"role": message.role, "content": _joined(texts)}


def _joined(texts: Iterable[str | None]) -> str:
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
    if member in ("cachePoint", "reasoningContent"):
        return None
    raise InvalidRequest(
        f"This model doesn't support the {member} content block at {path}. Remove it, or send its content as "
        "text, and try again."
    )


def _only_member(block: ContentBlock | SystemBlock, path: str) -> str:
    names = zip(block.__struct_encode_fields__, block.__struct_fields__, strict=True)
    members = [wire for wire, attribute in names if getattr(block, attribute) is not None]
    if len(members) != 1:
        raise InvalidRequest(
            f"The ContentBlock object at {path} must set exactly one member, not {len(members)}. Send each "
            "content in a block of its own."
        )
    return members[0]


def _guarded(content: GuardContent | None, path: str) -> str:
    if content is None or content.text is None:
        raise InvalidRequest(f"This model doesn't support images. Send text in guardContent at {path}.")
    return content.text.text


def _blank(where: str) -> InvalidRequest:
    return InvalidRequest(f"The text field in the {where} is blank. Add text to the text field, and try again.")
