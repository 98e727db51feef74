"""ConverseStream's events for one generation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from diptych.gateway.bedrock.converse import class_of, extra_fields, served, stop_reason, usage
from diptych.gateway.bedrock.shapes import ConverseBody
from diptych.gateway.calls import CallBegan, CallEnded, CallInput
from diptych.gateway.event_stream import event_encoder
from diptych.gateway.generation import Generation
from diptych.gateway.output import Part, Reasoning
from diptych.gateway.responses import to_json

MEDIA_TYPE = "application/vnd.amazon.eventstream"
EVENTS = ("messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata")

Form = Mapping[str, Callable[[bytes], bytes]]
"""For each event, what makes its bytes from its JSON."""

FRAMES: Form = {event: event_encoder(event) for event in EVENTS}


class Message:
    """The events of one message. A content block begins with its first piece and ends where another begins."""

    def __init__(self, form: Form) -> None:
        self.start = form["messageStart"](b'{"role":"assistant"}')
        self._form = form
        self._delta = form["contentBlockDelta"]
        self._index = -1
        self._open: str | None = None
        self._text_head = b""

    def parts(self, parts: Sequence[Part]) -> bytes:
        """The events of the parts of one chunk."""
        if len(parts) == 1:
            return self._part(parts[0])
        return b"".join([self._part(part) for part in parts])

    def _part(self, part: Part) -> bytes:
        if isinstance(part, str):
            switched = b"" if self._open == "text" else self._switch("text")
            return switched + self._delta(self._text_head + to_json(part) + b"}}")
        if isinstance(part, Reasoning):
            return self._switch("reasoning") + self._other({"reasoningContent": {"text": part.text}})
        if isinstance(part, CallBegan):
            opened = self._switch("call", anew=True)
            start = {"toolUse": {"toolUseId": part.id, "name": part.name}}
            block = {"contentBlockIndex": self._index, "start": start}
            return opened + self._form["contentBlockStart"](to_json(block))
        if isinstance(part, CallInput):
            return self._other({"toolUse": {"input": part.json}})
        assert isinstance(part, CallEnded)
        return self._close()

    def _other(self, delta: dict[str, Any]) -> bytes:
        return self._delta(to_json({"contentBlockIndex": self._index, "delta": delta}))

    def _switch(self, kind: str, *, anew: bool = False) -> bytes:
        if self._open == kind and not anew:
            return b""
        closed = self._close()
        self._index += 1
        self._open = kind
        self._text_head = b'{"contentBlockIndex":%d,"delta":{"text":' % self._index
        return closed

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return self._form["contentBlockStop"](b'{"contentBlockIndex":%d}' % self._index)

    def end(self, stop: dict[str, Any], metadata: dict[str, Any]) -> bytes:
        """The last events. A message without any content has one empty text block."""
        block = self._switch("text") if self._index < 0 else b""
        last = self._form["messageStop"](to_json(stop)) + self._form["metadata"](to_json(metadata))
        return block + self._close() + last


async def converse_events(generation: Generation, body: ConverseBody) -> AsyncGenerator[bytes, None]:
    """messageStart, an event for each chunk with content, contentBlockStop, messageStop, metadata."""
    message = Message(FRAMES)
    opening = message.start
    async with aclosing(generation.pieces()) as pieces:
        async for parts, _ in pieces:
            if parts or opening:
                yield opening + message.parts(parts)
                opening = b""
    stop = {"stopReason": stop_reason(generation), **extra_fields(generation, body)}
    yield message.end(stop, metadata(generation) | served(generation, class_of(body)))


def metadata(generation: Generation) -> dict[str, Any]:
    """Usage and time, the content of the last event."""
    return {"usage": usage(generation), "metrics": {"latencyMs": generation.elapsed_ms}}
