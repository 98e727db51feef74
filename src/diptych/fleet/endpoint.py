"""A worker's end of its connections: one ROUTER socket, and the clients that were heard lately.

A session begins with Hello and ends with silence. A client that was dropped and does not know it (it was stopped, not
dead) is told so at its next word, so that it waits for nothing; a second Hello ends what the first session left.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Protocol

import msgspec
import zmq

from diptych.config import Deadlines
from diptych.fleet import messages as m
from diptych.fleet.outbox import Outbox
from diptych.fleet.sockets import Wire

log = logging.getLogger("diptych.endpoint")


class Handler(Protocol):
    """What a worker does with messages. ``client`` identifies a connection."""

    def welcome(self) -> m.Welcome: ...

    def on_message(self, client: bytes, message: m.ToWorker) -> None: ...

    def on_client_lost(self, client: bytes) -> None: ...


class Endpoint:
    """Binds ``address`` and serves a handler. Heartbeats are answered here."""

    def __init__(self, address: str, handler: Handler, deadlines: Deadlines) -> None:
        self._handler = handler
        self._lost_after_s = deadlines.lost_after_s
        self._loop = asyncio.get_running_loop()
        self._heard: dict[bytes, float] = {}
        self._warned: set[bytes] = set()
        self._outboxes: dict[bytes, Outbox] = {}
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        socket.set_hwm(0)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.bind(address)
        self._wire = Wire(socket, self._on_frames)
        self._sweep = asyncio.create_task(self._drop_silent_clients())

    def send(self, client: bytes, message: m.Answer) -> None:
        """Sends; a client that is gone is dropped, which cancels its requests."""
        outbox = self._outboxes.get(client)
        if outbox is None:
            outbox = self._outboxes[client] = Outbox(partial(self._send_now, client))
        outbox.put(message)

    def _send_now(self, client: bytes, message: m.FromWorker) -> None:
        if not self._wire.send(client, m.encode(message)):
            self._drop(client)

    def _on_frames(self, frames: list[bytes]) -> None:
        client = frames[0]
        try:
            message = m.decode_to_worker(frames[-1])
        except msgspec.MsgspecError as error:
            self._refuse(client, error)
            return
        if isinstance(message, m.Hello):
            self._drop(client)
        elif client not in self._heard:
            self._wire.send(client, m.encode(m.Dropped()))
            return
        self._heard[client] = self._loop.time()
        if isinstance(message, m.Hello):
            self.send(client, self._handler.welcome())
        elif isinstance(message, m.Ping):
            self.send(client, m.Pong())
        else:
            self._handler.on_message(client, message)

    def _refuse(self, client: bytes, error: Exception) -> None:
        """A message that is none of ours changes nothing; the first of each client is logged."""
        if client not in self._warned:
            self._warned.add(client)
            log.warning("refused a message that is not ours: %s", error)

    def _drop(self, client: bytes) -> None:
        if (outbox := self._outboxes.pop(client, None)) is not None:
            outbox.close()
        if self._heard.pop(client, None) is not None:
            self._handler.on_client_lost(client)

    async def _drop_silent_clients(self) -> None:
        while True:
            await asyncio.sleep(self._lost_after_s / 4)
            limit = self._loop.time() - self._lost_after_s
            for client in [name for name, heard in self._heard.items() if heard < limit]:
                self._drop(client)

    def close(self) -> None:
        self._sweep.cancel()
        for outbox in self._outboxes.values():
            outbox.close()
        self._wire.close()
