"""The events of a streamed response."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from diptych.gateway.calls import CallBegan, CallEnded, CallInput
from diptych.gateway.generation import Generation
from diptych.gateway.openai.responses import Items, final_status, response_object
from diptych.gateway.openai.responses_shapes import ResponsesBody
from diptych.gateway.output import Part, Reasoning
from diptych.gateway.responses import to_json


class Events:
    """Numbers the events and names the item that each belongs to."""

    def __init__(self) -> None:
        self.items = Items()
        self._number = -1
        self._delta_head = b""

    def event(self, kind: str, **members: Any) -> bytes:
        self._number += 1
        data = to_json({"type": kind, **members, "sequence_number": self._number})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)

    def part(self, part: Part) -> bytes:
        """The events of one part of the output."""
        if isinstance(part, CallEnded):
            return self.close()
        if isinstance(part, str) and self.items.open == "message":
            return self._text(part)
        opened = b"" if isinstance(part, CallInput) else self._open(part)
        if isinstance(part, str):
            return opened + self._text(part)
        self.items.add(part)
        return opened + self._delta(part)

    def _open(self, part: Part) -> bytes:
        wanted = "reasoning" if isinstance(part, Reasoning) else "message"
        closed = b"" if self.items.open == wanted and not isinstance(part, CallBegan) else self.close()
        item = self.items.begin(part)
        if item is None:
            return closed
        at = self._at()
        added = closed + self.event("response.output_item.added", output_index=at["output_index"], item=item)
        if isinstance(part, CallBegan):
            return added
        kind = "reasoning_text" if isinstance(part, Reasoning) else "output_text"
        empty: dict[str, Any] = {"type": kind, "text": ""}
        if isinstance(part, str):
            empty["annotations"] = []
            self._delta_head = self._text_head(at)
        return added + self.event("response.content_part.added", **at, content_index=0, part=empty)

    def _text_head(self, at: dict[str, Any]) -> bytes:
        kind = "response.output_text.delta"
        members = to_json({"type": kind, **at, "content_index": 0, "logprobs": []})[:-1]
        return b"event: %b\ndata: %b" % (kind.encode(), members)

    def _text(self, text: str) -> bytes:
        self.items.add(text)
        self._number += 1
        return b'%b,"sequence_number":%d,"delta":%b}\n\n' % (self._delta_head, self._number, to_json(text))

    def _delta(self, part: Part) -> bytes:
        if isinstance(part, CallInput):
            return self.event("response.function_call_arguments.delta", **self._at(), delta=part.json)
        if isinstance(part, Reasoning):
            return self.event("response.reasoning_text.delta", **self._at(), content_index=0, delta=part.text)
        return b""

    def _at(self) -> dict[str, Any]:
        return {"item_id": self.items.made[-1]["id"], "output_index": len(self.items.made) - 1}

    def close(self) -> bytes:
        """The events that end the item that is open."""
        item = self.items.end()
        if item is None:
            return b""
        at = self._at()
        done = b""
        if item["type"] == "function_call":
            done += self.event(
                "response.function_call_arguments.done", **at, name=item["name"], arguments=item["arguments"]
            )  # fmt: skip
        elif item["content"]:
            (content,) = item["content"]
            kind = "output_text" if item["type"] == "message" else "reasoning_text"
            extra: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
            done += self.event(f"response.{kind}.done", **at, content_index=0, text=content["text"], **extra)
            done += self.event("response.content_part.done", **at, content_index=0, part=content)
        return done + self.event("response.output_item.done", output_index=at["output_index"], item=item)


async def response_events(generation: Generation, created: int, body: ResponsesBody) -> AsyncGenerator[bytes, None]:
    """created, in_progress, the items as they grow, completed or incomplete."""
    events = Events()
    begun = response_object(generation, created, body, [], "in_progress")
    opening = events.event("response.created", response=begun) + events.event("response.in_progress", response=begun)
    async with aclosing(generation.pieces()) as pieces:
        async for parts, _ in pieces:
            if parts or opening:
                yield opening + b"".join([events.part(part) for part in parts])
                opening = b""
    closed = events.close()
    status = final_status(generation)
    final = response_object(generation, created, body, events.items.made, status)
    yield closed + events.event(f"response.{status}", response=final)
