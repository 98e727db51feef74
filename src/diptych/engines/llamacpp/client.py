"""HTTP to llama-server, made for streams: every token of every request passes here.

One connection for each call. A stream's connection is closed to cancel it; the server then frees the slot.
Parsing is httptools' (C) and msgspec's; general clients cost several times as much processor time per token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec

from diptych.engines.llamacpp import wire
from diptych.errors import EngineError, WorkerLost

EVENT_END = b"\n\n"
EVENT_START = b"data: "


class _Exchange(asyncio.Protocol):
    """One request and its answer. ``body`` grows as it arrives; :meth:`more` waits for growth or the end."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._wake: asyncio.Future[None] | None = None
        self._fresh = False
        self._transport: asyncio.Transport | None = None
        self.body = bytearray()
        self.complete = False
        self._lost: str | None = None

    # asyncio's side
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lost = f"it sent something that is not HTTP: {error}"
        self._notify()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.complete:
            self._lost = self._lost or f"the connection ended ({exc or 'closed by the server'})"
        self._notify()

    # httptools' side
    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True

    # the caller's side
    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    async def more(self) -> None:
        """Returns when something arrived or the answer is complete; WorkerLost when it never will be."""
        if not self._fresh:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        self._fresh = False
        if self._lost is not None and not self.complete:
            raise WorkerLost(f"llama-server is gone: {self._lost}")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _notify(self) -> None:
        self._fresh = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Client:
    """Calls to one server. ``address`` is "http://host:port"."""

    def __init__(self, address: str, api_key: str | None) -> None:
        url = urlsplit(address)
        self._host, self._port = url.hostname or "127.0.0.1", url.port or 8080
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = f"Host: {self._host}:{self._port}\r\nConnection: close\r\n{key}Content-Type: application/json\r\n"

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[wire.Event, None]:
        """The events of a streamed completion. Closing the generator ends it in the server too.

        Raises WorkerLost, and the server's refusals as InvalidRequest, ContextExceeded or EngineError.
        """
        exchange = await self._open("POST", "/completion", body)
        try:
            ended = False
            while not ended:
                await exchange.more()
                ended = exchange.complete
                for event in _events(exchange):
                    yield event
        finally:
            exchange.close()

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """One answer. Raises as :meth:`stream` does."""
        exchange = await self._open(method, path, body)
        try:
            while not exchange.complete:
                await exchange.more()
        finally:
            exchange.close()
        _check(exchange)
        return bytes(exchange.body)

    async def slot(self, index: int, action: str, filename: str = "") -> wire.SlotReply:
        """Saves ("save"), restores or erases a slot."""
        answer = await self.call("POST", f"/slots/{index}?action={action}", {"filename": filename})
        return wire.slot_reply.decode(answer)

    async def _open(self, method: str, path: str, body: Mapping[str, Any] | None) -> _Exchange:
        payload = b"" if body is None else msgspec.json.encode(body)
        head = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(payload)}\r\n\r\n"
        loop = asyncio.get_running_loop()
        try:
            _, exchange = await loop.create_connection(
                lambda: _Exchange(head.encode() + payload), self._host, self._port
            )
        except OSError as error:
            raise WorkerLost(f"llama-server does not answer at {self._host}:{self._port}: {error}") from error
        return exchange


def _events(exchange: _Exchange) -> list[wire.Event]:
    """Takes the complete events out of the body, or raises the refusal that it is."""
    if exchange.status != 200:
        if exchange.complete:
            _check(exchange)
        return []
    *complete, rest = exchange.body.split(EVENT_END)
    exchange.body = rest if not exchange.complete else bytearray()
    events = [wire.event.decode(raw[len(EVENT_START) :]) for raw in complete if raw.startswith(EVENT_START)]
    for event in events:
        if event.error is not None:
            raise wire.refusal(event.error, status=500)
    return events


def _check(exchange: _Exchange) -> None:
    """Raises what an answer other than 200 means."""
    if exchange.status == 200:
        return
    try:
        refused = wire.error_reply.decode(exchange.body).error
    except msgspec.DecodeError as error:
        raise EngineError(f"llama-server answered with status {exchange.status}") from error
    raise wire.refusal(refused, exchange.status)
