"""The forms of an answer: JSON, and a stream of events. Every one carries the request's id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from diptych.gateway.lifetime import InFlight, ServerStopping

to_json = msgspec.json.Encoder().encode


def id_headers(request_id: str) -> dict[str, str]:
    """The request's id under the names that Bedrock's and OpenAI's clients read."""
    return {"x-amzn-RequestId": request_id, "x-request-id": request_id}


def json_response(value: Any, request_id: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        to_json(value), status, {**id_headers(request_id), **(headers or {})}, media_type="application/json"
    )


class EventStream(Response):
    """Sends events as they are made.

    The status is decided by the first event: an error before it propagates and becomes an ordinary error
    response; one after it becomes the stream's last event (``failure``). A stream never just closes.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        failure: Callable[[Exception], bytes],
        in_flight: InFlight,
        request_id: str,
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self._events = events
        self._failure = failure
        self._in_flight = in_flight
        self.late_headers: Callable[[], Mapping[str, str]] = dict
        """Headers that are known when the first event is."""
        self.init_headers({**id_headers(request_id), "cache-control": "no-store", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        await self._in_flight.run(receive, self._pump(send))

    async def _pump(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events)
            self.headers.update(self.late_headers())
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            last = b""
            try:
                await send({"type": "http.response.body", "body": first, "more_body": True})
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            except asyncio.CancelledError:
                if not self._in_flight.stopping:
                    raise
                last = self._failure(ServerStopping())
            except Exception as error:  # noqa: BLE001 - the stream has begun: any error is its last event
                last = self._failure(error)
            await send({"type": "http.response.body", "body": last, "more_body": False})
