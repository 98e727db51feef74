"""The events of a streamed message."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from diptych.gateway.anthropic.messages import message_object, stop_reason, usage
from diptych.gateway.calls import CallBegan, CallEnded, CallInput
from diptych.gateway.generation import Generation
from diptych.gateway.output import Part, Reasoning
from diptych.gateway.responses import to_json


def event(kind: str, **members: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), to_json({"type": kind, **members}))


class Blocks:
    """Numbers the content blocks. A block begins with its first piece and ends where another begins."""

    def __init__(self) -> None:
        self._index = -1
        self._open: str | None = None
        self._text_head = b""

    def part(self, part: Part) -> bytes:
        """The events of one part."""
        if isinstance(part, str):
            return self._switch("text", {"type": "text", "text": ""}) + self._text_head + to_json(part) + b"}}\n\n"
        if isinstance(part, Reasoning):
            empty = {"type": "thinking", "thinking": "", "signature": ""}
            return self._switch("thinking", empty) + self._delta({"type": "thinking_delta", "thinking": part.text})
        if isinstance(part, CallBegan):
            call = {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
            return self.close() + self._switch("tool_use", call)
        if isinstance(part, CallInput):
            return self._delta({"type": "input_json_delta", "partial_json": part.json})
        assert isinstance(part, CallEnded)
        return self.close()

    def _switch(self, kind: str, block: dict[str, Any]) -> bytes:
        if self._open == kind:
            return b""
        closed = self.close()
        self._index += 1
        self._open = kind
        head = b'{"type":"content_block_delta","index":%d,"delta":{"type":"text_delta","text":' % self._index
        self._text_head = b"event: content_block_delta\ndata: " + head
        return closed + event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return event("content_block_delta", index=self._index, delta=delta)

    def close(self) -> bytes:
        """The end of the block that is open, if one is."""
        if self._open is None:
            return b""
        self._open = None
        return event("content_block_stop", index=self._index)


async def message_events(generation: Generation, model: str) -> AsyncGenerator[bytes, None]:
    """message_start, the blocks as they grow, message_delta, message_stop."""
    blocks = Blocks()
    opening = event("message_start", message=message_object(generation, model, [], done=False)) + event("ping")
    async with aclosing(generation.pieces()) as pieces:
        async for parts, _ in pieces:
            if parts or opening:
                yield opening + b"".join([blocks.part(part) for part in parts])
                opening = b""
    end = {"stop_reason": stop_reason(generation), "stop_sequence": generation.stopped_at}
    yield blocks.close() + event("message_delta", delta=end, usage=usage(generation)) + event("message_stop")
