"""The decode worker: it owns the landing area and the engine's slots, and streams tokens.

A request's life here, each step a message or the engine's own:

    Offer  -> [wait for room] -> Offered(ticket)
    Decode -> [slot] -> admit: landing -> private image, digest -> restore -> Tokens...    region released on admit
                 any doubt before the first token -> the same prompt, read by the engine itself, counted
    Cancel, a lost client, an expired lease -> the same release
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections import deque
from collections.abc import Coroutine
from typing import Any

from diptych.config import Deadlines, DecodeSettings
from diptych.engines.verification import VerifiableDecode
from diptych.errors import DiptychError, HandoffError, LandingFull
from diptych.fleet import messages as m
from diptych.fleet.endpoint import Endpoint
from diptych.handoff.landing import Landing

Key = tuple[bytes, str]


class DecodeWorker:
    """Serves one engine at ``address``; all of it runs on the event loop."""

    def __init__(
        self, engine: VerifiableDecode, landing: Landing, settings: DecodeSettings, deadlines: Deadlines
    ) -> None:
        self._engine = engine
        self._landing = landing
        self._deadlines = deadlines
        self._welcome = m.Welcome(settings.id, "decode", uuid.uuid4().hex, engine.describe(), os.getpid())
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._handoffs: dict[Key, str] = {}
        self._room: deque[asyncio.Event] = deque()

    async def serve(self, address: str, stop: asyncio.Event) -> None:
        """Runs until ``stop`` or until the engine is lost, which raises WorkerLost."""
        self._endpoint = Endpoint(address, self, self._deadlines)
        expiry = asyncio.create_task(self._expire())
        try:
            await self._engine.running(stop)
        finally:
            expiry.cancel()
            for task in list(self._tasks.values()):
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            self._endpoint.close()
            self._landing.close()
            await self._engine.close()

    def welcome(self) -> m.Welcome:
        return self._welcome

    def on_message(self, client: bytes, message: m.ToWorker) -> None:
        if isinstance(message, m.Offer):
            self._start((client, message.id), self._offer(client, message))
        elif isinstance(message, m.Decode):
            self._start((client, message.id), self._decode(client, message))
        elif isinstance(message, m.Canary):
            self._start((client, message.id), self._canary(client, message))
        elif isinstance(message, m.Cancel):
            self._drop((client, message.id))

    def on_client_lost(self, client: bytes) -> None:
        for key in {key for key in (*self._tasks, *self._handoffs) if key[0] == client}:
            self._drop(key)

    def _start(self, key: Key, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(key, work))
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key, None) if self._tasks.get(key) is task else None)

    async def _guarded(self, key: Key, work: Coroutine[Any, Any, None]) -> None:
        """Whatever goes wrong in one request is answered to its client and ends nothing else."""
        try:
            await work
        except DiptychError as exc:
            self._release(key)
            self._endpoint.send(key[0], m.Failed.of(key[1], exc))
        except asyncio.CancelledError:
            self._release(key)
            raise

    def _drop(self, key: Key) -> None:
        task = self._tasks.get(key)
        if task is not None:
            task.cancel()
        self._release(key)

    def _release(self, key: Key) -> None:
        handoff = self._handoffs.pop(key, None)
        if handoff is not None:
            self._landing.release(handoff)
            self._wake_next()

    def _wake_next(self) -> None:
        if self._room:
            self._room[0].set()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if self._landing.expire():
                self._wake_next()

    async def _offer(self, client: bytes, message: m.Offer) -> None:
        began = time.monotonic()
        ticket = await self._find_room(message)
        self._handoffs[client, message.id] = ticket.handoff_id
        waited_ms = (time.monotonic() - began) * 1e3
        self._endpoint.send(client, m.Offered(message.id, ticket, waited_ms))

    async def _find_room(self, message: m.Offer) -> Any:
        """The landing place, first come first served. Raises HandoffError when none will ever do."""
        turn = asyncio.Event()
        if not self._room:
            turn.set()
        self._room.append(turn)
        try:
            while True:
                await turn.wait()
                try:
                    return self._landing.offer(message.id, message.tokens, message.source)
                except LandingFull:
                    turn.clear()
        finally:
            self._room.remove(turn)
            self._wake_next()

    async def _decode(self, client: bytes, message: m.Decode) -> None:
        recomputed: str | None = None
        landed = self._landed(client, message) if message.seal is not None else None
        try:
            await self._stream(client, message, landed, None)
        except HandoffError as exc:
            recomputed = exc.reason
        if recomputed is not None:
            self._release((client, message.id))
            await self._stream(client, message, None, recomputed)

    async def _stream(self, client: bytes, message: m.Decode, landed: Any, recomputed: str | None) -> None:
        chunks = self._engine.decode(message.id, message.prompt, landed, message.sampling)
        try:
            async for chunk in chunks:
                self._endpoint.send(client, m.Tokens(message.id, chunk, recomputed))
                recomputed = None
        finally:
            await chunks.aclose()
