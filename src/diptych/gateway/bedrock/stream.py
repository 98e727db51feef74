"""ConverseStream's events for one generation."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from diptych.gateway.bedrock.converse import served, stop_reason, usage
from diptych.gateway.bedrock.shapes import ConverseBody
from diptych.gateway.event_stream import event_encoder
from diptych.gateway.generation import Generation
from diptych.gateway.responses import to_json

MEDIA_TYPE = "application/vnd.amazon.eventstream"

_message_start = event_encoder("messageStart")
_delta = event_encoder("contentBlockDelta")
_block_stop = event_encoder("contentBlockStop")
_message_stop = event_encoder("messageStop")
_metadata = event_encoder("metadata")

_OPENING = _message_start(b'{"role":"assistant"}')
_BLOCK_STOP = _block_stop(b'{"contentBlockIndex":0}')


def _text_delta(text: str) -> bytes:
    return _delta(b'{"contentBlockIndex":0,"delta":{"text":' + to_json(text) + b"}}")


async def converse_events(generation: Generation, body: ConverseBody) -> AsyncGenerator[bytes, None]:
    """messageStart, a contentBlockDelta for each chunk with text, contentBlockStop, messageStop, metadata."""
    async with aclosing(generation.pieces()) as pieces:
        text, _ = await anext(pieces)
        yield _OPENING + _text_delta(text) if text else _OPENING
        async for text, _ in pieces:
            if text:
                yield _text_delta(text)
    yield _closing(generation, body)


def _closing(generation: Generation, body: ConverseBody) -> bytes:
    metadata = {
        "usage": usage(generation),
        "metrics": {"latencyMs": generation.elapsed_ms},
        **served(generation, body),
    }
    reason = to_json({"stopReason": stop_reason(generation)})
    return _BLOCK_STOP + _message_stop(reason) + _metadata(to_json(metadata))
