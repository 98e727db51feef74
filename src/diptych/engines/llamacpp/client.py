"""HTTP to llama-server, made for streams: every token of every request passes here.

One connection for each call. A stream's connection is closed to cancel it; the server then frees the slot.
Parsing is httptools' (C) and msgspec's; general clients cost several times as much processor time per token.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec

from diptych.engines.llamacpp import wire
from diptych.errors import EngineError, WorkerLost

log = logging.getLogger(__name__)

EVENT_END = b"\n\n"
EVENT_START = b"data: "
STOPPED_S = 0.5
"""A timer that is later than this was held up by this process itself."""


class _Exchange(asyncio.Protocol):
    """One request and its answer. ``body`` grows as it arrives; :meth:`more` waits for growth or the end."""

    def __init__(self, request: bytes, silence_s: float | None, on_silence: Callable[[], None]) -> None:
        self._request = request
        self._silence_s = silence_s
        self._on_silence = on_silence
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._due = self._heard
        self._watch: asyncio.TimerHandle | None = None
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
        self._watch_silence()

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._lost = f"it sent something that is not HTTP: {error}"
        self._notify()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
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

    def _watch_silence(self) -> None:
        """One timer an exchange, not one an event: it looks when the last event was."""
        if self._silence_s is None or self.complete:
            return
        now = self._loop.time()
        if now - self._due > STOPPED_S:
            self._heard = now  # it was us who stood still, and what the server said meanwhile is yet to be read
        self._due = self._heard + self._silence_s
        if self._due > now:
            self._watch = self._loop.call_at(self._due, self._watch_silence)
            return
        self._lost = f"nothing came for {self._silence_s:g} s"
        self._notify()
        self._on_silence()

    def _notify(self) -> None:
        self._fresh = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Client:
    """Calls to one server. ``address`` is "http://host:port".

    A server that says nothing for ``silence_s`` seconds within a stream or an action on a slot counts as gone;
    ``on_silence`` is then called.
    """

    def __init__(
        self,
        address: str,
        api_key: str | None,
        silence_s: float | None = None,
        on_silence: Callable[[], None] = lambda: None,
    ) -> None:
        self._silence_s, self._hung = silence_s, on_silence
        url = urlsplit(address)
        self._host, self._port = url.hostname or "127.0.0.1", url.port or 8080
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = f"Host: {self._host}:{self._port}\r\nConnection: close\r\n{key}Content-Type: application/json\r\n"

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[wire.Event, None]:
        """The events of a streamed completion. Closing the generator ends it in the server too.

        Raises WorkerLost, and the server's refusals as InvalidRequest, ContextExceeded or EngineError.
        """
        exchange = await self._open("POST", "/completion", body, self._silence_s)
        try:
            ended = False
            while not ended:
                await exchange.more()
                ended = exchange.complete
                for event in _events(exchange):
                    yield event
        finally:
            exchange.close()

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, patient: bool = True
    ) -> bytes:
        """One answer, however long it takes if ``patient``. Raises as :meth:`stream` does."""
        exchange = await self._open(method, path, body, None if patient else self._silence_s)
        try:
            while not exchange.complete:
                await exchange.more()
        finally:
            exchange.close()
        _check(exchange)
        return bytes(exchange.body)

    async def slot(self, index: int, action: str, filename: str = "") -> wire.SlotReply:
        """Saves ("save"), restores or erases a slot."""
        path = f"/slots/{index}?action={action}"
        answer = await self.call("POST", path, {"filename": filename}, patient=False)
        return wire.slot_reply.decode(answer)

    async def _open(self, method: str, path: str, body: Mapping[str, Any] | None, silence_s: float | None) -> _Exchange:
        payload = b"" if body is None else msgspec.json.encode(body)
        head = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(payload)}\r\n\r\n"
        loop = asyncio.get_running_loop()
        try:
            _, exchange = await loop.create_connection(
                lambda: _Exchange(head.encode() + payload, silence_s, self._on_silence), self._host, self._port
            )
        except OSError as error:
            raise WorkerLost(f"llama-server does not answer at {self._host}:{self._port}: {error}") from error
        return exchange

    def _on_silence(self) -> None:
        log.warning("llama-server at %s:%d has said nothing for %g s", self._host, self._port, self._silence_s)
        self._hung()


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
