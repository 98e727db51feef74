"""The writer's connections for bulk, beside those for control: plain TCP, made when first used and after a cut."""

from __future__ import annotations

import contextlib
import socket
import time

import msgspec
import zmq

from diptych.handoff.transports import wire
from diptych.handoff.transports.link import CONNECTIONS, Link

BUFFER_BYTES = 2 << 20
"""Of the kernel, for either direction."""
_CONNECT_S = 1.0
_RETRY_S = 0.1


class Place(msgspec.Struct, frozen=True, array_like=True):
    """A tcp ticket's address: the door's ZeroMQ endpoint with its public key, and host:port for bulk."""

    control: str
    bulk: str


class BulkLink(Link):
    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        place = msgspec.json.decode(address, type=Place)
        super().__init__(context, place.control)
        self.address = address
        host, _, port = place.bulk.rpartition(":")
        self._bulk = (host.strip("[]"), int(port))
        self._pipes: list[socket.socket | None] = [None] * CONNECTIONS
        self._retry_at = 0.0
        self.broken: set[int] = set()

    def push(self, index: int, rest: memoryview, *, fresh: bool = False) -> int | None:
        """Sends as much as there is room for now, 0 where there is none; None where the connection is broken.

        A ``fresh`` frame may begin on a new connection; the rest of one goes where it began.
        """
        pipe = self._pipes[index]
        if pipe is None and fresh:
            pipe = self._connect_bulk(index)
        if pipe is None:
            return None
        try:
            return pipe.send(rest)
        except BlockingIOError:
            return 0
        except OSError:
            self._drop(index)
            return None

    def receive(self, timeout_s: float, waiting: int | None = None) -> list[wire.ToWriter]:
        """As :meth:`Link.receive`; returns early when the pipe ``waiting`` has room."""
        pipe = None if waiting is None else self._pipes[waiting]
        if pipe is not None:
            self._poller.modify(pipe, zmq.POLLIN | zmq.POLLOUT)
        replies = super().receive(timeout_s)
        if pipe is not None and pipe in self._pipes:
            self._poller.modify(pipe, zmq.POLLIN)
        return replies

    def close(self, linger_ms: int = 0) -> None:
        for index in range(CONNECTIONS):
            self._drop(index)
        super().close(linger_ms)

    def other(self, source: int, events: int) -> None:
        """A receiver sends nothing on a bulk connection: whatever there is to read, it is over."""
        if events & ~zmq.POLLOUT:
            self._drop(next(n for n, pipe in enumerate(self._pipes) if pipe is not None and pipe.fileno() == source))

    def _connect_bulk(self, index: int) -> socket.socket | None:
        if time.monotonic() < self._retry_at:
            return None
        try:
            pipe = socket.create_connection(self._bulk, timeout=_CONNECT_S)
        except OSError:
            self._retry_at = time.monotonic() + _RETRY_S
            self.broken.add(index)
            return None
        pipe.setblocking(False)
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        pipe.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poller.register(pipe, zmq.POLLIN)
        self._pipes[index] = pipe
        return pipe

    def _drop(self, index: int) -> None:
        pipe, self._pipes[index] = self._pipes[index], None
        if pipe is not None:
            self.broken.add(index)
            with contextlib.suppress(KeyError):
                self._poller.unregister(pipe)
            pipe.close()
