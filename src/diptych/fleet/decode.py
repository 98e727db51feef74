"""The decode worker: it owns the landing area and the engine's slots, and streams tokens.

A request's life here, each step a message or the engine's own:

    Offer  -> [wait for room] -> Offered(ticket)
    Decode -> [slot] -> admit: landing -> private image, digest -> restore -> Tokens...    region freed on admission
                 any doubt before the first token -> the same prompt, read by the engine itself, counted
    Cancel, a lost client, an expired handoff -> the same release
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

import numpy as np

from diptych.config import Deadlines, DecodeSettings, HandoffSettings
from diptych.engines.protocol import Arrays, GivesKV, VerifiableDecode
from diptych.errors import CorruptKV, DiptychError, EngineError, HandoffError, LandingFull, StaleWrite
from diptych.fleet import messages as m
from diptych.fleet.canary import compare
from diptych.fleet.endpoint import Endpoint
from diptych.fleet.landed import AdmittedKV, Landed
from diptych.fleet.transports import Doors, Senders
from diptych.handoff.landing import Landing
from diptych.handoff.seal import Seal
from diptych.handoff.ticket import Ticket, sign, verify

log = logging.getLogger("diptych.decode")

Key = tuple[bytes, str]


class DecodeWorker:
    """Serves one engine at ``address``; all of it runs on the event loop."""

    def __init__(
        self,
        engine: VerifiableDecode,
        landing: Landing,
        settings: DecodeSettings,
        deadlines: Deadlines,
        secret: bytes,
        handoff: HandoffSettings | None = None,
    ) -> None:
        """Raises ConfigError where a transport cannot be had."""
        handoff = handoff or HandoffSettings()
        names = settings.transports or handoff.transports
        self._engine = engine
        self._landing = landing
        self._doors = Doors(landing, names, secret)
        self._senders = Senders(names, secret, handoff.fault) if handoff.returns else None
        self._deadlines = deadlines
        self._secret = secret
        self._welcome = m.Welcome(
            settings.id, "decode", uuid.uuid4().hex, engine.describe(), os.getpid(), socket.gethostname(), names
        )
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._handoffs: dict[Key, Ticket] = {}
        self._room: deque[asyncio.Event] = deque()

    async def serve(self, address: str, stop: asyncio.Event) -> None:
        """Runs until ``stop``. Raises WorkerLost when the engine ends by itself."""
        self._endpoint = Endpoint(address, self, self._deadlines)
        expiry = asyncio.create_task(self._expire())
        stopping, ended = asyncio.create_task(stop.wait()), asyncio.create_task(self._engine.ended())
        try:
            await asyncio.wait((stopping, ended), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise ended.result()
        finally:
            tasks = [expiry, stopping, ended, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._endpoint.close()
            self._doors.close()
            if self._senders is not None:
                self._senders.close()
            self._landing.close()
            await self._engine.close()

    def welcome(self) -> m.Welcome:
        return self._welcome

    def on_message(self, client: bytes, message: m.ToWorker) -> None:
        if isinstance(message, m.Offer):
            self._start((client, message.id), self._offer((client, message.id), message))
        elif isinstance(message, m.Decode):
            self._start((client, message.id), self._decode((client, message.id), message))
        elif isinstance(message, m.Canary):
            self._start((client, message.id), self._canary((client, message.id), message))
        elif isinstance(message, m.GiveBack):
            self._start((client, message.id), self._give_back((client, message.id), message))
        elif isinstance(message, m.Cancel):
            self._drop((client, message.id))

    def on_client_lost(self, client: bytes) -> None:
        for key in {key for key in (*self._tasks, *self._handoffs) if key[0] == client}:
            self._drop(key)

    def _start(self, key: Key, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(key, work))
        self._tasks[key] = task
        task.add_done_callback(lambda _: work.close())  # where it was cancelled before it began
        task.add_done_callback(lambda _: self._tasks.pop(key, None) if self._tasks.get(key) is task else None)

    async def _guarded(self, key: Key, work: Coroutine[Any, Any, None]) -> None:
        """Whatever goes wrong in one request is answered to its client and ends nothing else."""
        try:
            await work
        except Exception as exc:
            if not isinstance(exc, DiptychError):
                log.exception("request %s failed", key[1])
            self._release(key)
            self._endpoint.send(key[0], m.Failed.of(key[1], exc))

    def _drop(self, key: Key) -> None:
        task = self._tasks.get(key)
        if task is not None:
            task.cancel()
        self._release(key)

    def _release(self, key: Key) -> None:
        ticket = self._handoffs.pop(key, None)
        if ticket is not None:
            self._landing.release(ticket.handoff_id)
            self._wake_next()

    def _wake_next(self) -> None:
        if self._room:
            self._room[0].set()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if self._landing.expire():
                self._wake_next()

    async def _offer(self, key: Key, message: m.Offer) -> None:
        began = time.monotonic()
        ticket = await self._find_room(message)
        self._handoffs[key] = ticket
        signed = sign(ticket, self._secret)
        self._endpoint.send(key[0], m.Offered(message.id, signed, (time.monotonic() - began) * 1e3))

    async def _find_room(self, message: m.Offer) -> Ticket:
        """The landing place, first come first served. Raises IncompatibleForms when there never is one."""
        form, via = self._welcome.description.form, self._doors.via(message.transport)
        turn = asyncio.Event()
        if not self._room:
            turn.set()
        self._room.append(turn)
        try:
            while True:
                await turn.wait()
                try:
                    return self._landing.offer(message.id, form, message.tokens, self._deadlines.prefill_s, via)
                except LandingFull:
                    turn.clear()
        finally:
            self._room.remove(turn)
            self._wake_next()

    async def _decode(self, key: Key, message: m.Decode) -> None:
        """Tokens; a handoff that fails any proof ends in a clean read of the same prompt, with the reason."""
        recomputed: str | None = None
        if message.seal is not None:
            try:
                landed = self._landed(key, message.seal, len(message.prompt) - 1)
                await self._stream(key, message, landed, None)
            except HandoffError as exc:
                log.warning("request %s is recomputed: %s", message.id, exc)
                recomputed = exc.reason
            else:
                self._handoffs.pop(key, None)
                return
        self._release(key)
        await self._stream(key, message, None, recomputed)

    async def _stream(self, key: Key, message: m.Decode, landed: Landed | None, recomputed: str | None) -> None:
        prompt = message.prompt + message.given
        async with aclosing(self._engine.decode(message.id, prompt, landed, message.sampling)) as chunks:
            async for chunk in chunks:
                self._endpoint.send(key[0], m.Tokens(message.id, chunk, recomputed))
                recomputed = None

    def _landed(self, key: Key, seal: Seal, tokens: int) -> Landed:
        ticket = self._handoffs.get(key)
        if ticket is None:
            raise StaleWrite("the handoff's region is no longer held")
        if ticket.tokens != tokens:
            raise CorruptKV(f"{ticket.tokens} tokens were handed over, {tokens} are needed")
        loop = asyncio.get_running_loop()
        return Landed(self._landing, ticket, seal, lambda: loop.call_soon_threadsafe(self._wake_next))

    async def _give_back(self, key: Key, message: m.GiveBack) -> None:
        """The KV of a finished answer, written where the prefill worker wants it."""
        if self._senders is None or not isinstance(self._engine, GivesKV):
            raise EngineError("this worker gives no KV back")
        ticket = verify(message.ticket, self._secret, time.time())
        keys, values = await self._engine.give(message.tokens, message.start)
        seal = await asyncio.to_thread(self._write_back, ticket, keys, values)
        self._endpoint.send(key[0], m.GivenBack(message.id, seal))

    def _write_back(self, ticket: Ticket, keys: Arrays, values: Arrays) -> Seal:
        assert self._senders is not None
        writer = self._senders.open_writer(ticket, self._welcome.description.form)
        try:
            writer.write(0, keys, values)
            return writer.seal()
        finally:
            writer.abort()

    async def _canary(self, key: Key, message: m.Canary) -> None:
        """The landed KV beside the engine's own: rows, and what each makes of the next token."""
        landed = self._landed(key, message.seal, len(message.prompt) - 1)
        form = self._welcome.description.form
        shapes = [(image.outer, image.units(landed.tokens), image.unit_bytes) for image in form.images]
        blocks = [np.empty(shape, np.uint8) for shape in shapes]
        await asyncio.to_thread(landed.admit, blocks)
        self._handoffs.pop(key, None)
        own = await self._engine.own_reading(message.prompt)
        arrived = await self._engine.next_logprobs(message.prompt, AdmittedKV(landed.tokens, blocks))
        self._endpoint.send(key[0], compare(message.id, form, own, arrived, blocks))
