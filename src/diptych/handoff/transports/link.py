"""The writer's end of a network transport, but for the bytes: connections, greeting, acknowledgements,
notices.

How a frame's bytes get into the receiver's region is the transport's own affair.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import zmq

from diptych.errors import StaleWrite, WorkerLost
from diptych.handoff.region import Bytes
from diptych.handoff.transports import wire

CONNECTIONS = 2
WINDOW_BYTES = 32 << 20
RESEND_S = 1.0
LOST_S = 10.0
_HELLO_RETRY_S = 0.5


class Link:
    """Several connections to one receiver. Replies may come on any of them."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self.address = address
        endpoint, _, server_key = address.partition(" ")
        self._poller = zmq.Poller()
        self._sockets = [self._connect(context, endpoint, server_key) for _ in range(CONNECTIONS)]

    def _connect(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, server_key: str) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.sndhwm = 0  # the window bounds what is under way
        socket.identity = b"w" + secrets.token_bytes(12)
        socket.reconnect_ivl, socket.reconnect_ivl_max = 50, 500
        socket.heartbeat_ivl, socket.heartbeat_timeout = 1000, 3000
        if server_key:
            socket.curve_serverkey = server_key.encode()
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.connect(endpoint)
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def send(self, index: int, message: wire.ToReceiver) -> None:
        self._sockets[index % len(self._sockets)].send(wire.encode(message))

    def receive(self, timeout_s: float) -> list[wire.ToWriter]:
        """What has come, waiting at most ``timeout_s`` for the first."""
        found = []
        for source, events in self._poller.poll(int(timeout_s * 1e3)):
            if isinstance(source, int):
                self.other(source, events)
                continue
            while source.poll(0):
                found.append(wire.to_writer.decode(source.recv()))
        return found

    def other(self, source: int, events: int) -> None:
        """A file descriptor that a subclass has put into the poller is ready."""

    def close(self, linger_ms: int = 0) -> None:
        for socket in self._sockets:
            socket.close(linger=linger_ms)


AnyLink = TypeVar("AnyLink", bound=Link)


class Links(Generic[AnyLink]):
    """Keeps connections to every receiver between handoffs; a link serves one handoff at a time."""

    def __init__(self, kind: type[AnyLink]) -> None:
        self._kind = kind
        self._context = zmq.Context(io_threads=CONNECTIONS)
        self._idle: dict[str, list[AnyLink]] = {}
        self._lock = threading.Lock()

    def take(self, address: str) -> AnyLink:
        with self._lock:
            idle = self._idle.get(address)
            return idle.pop() if idle else self._kind(self._context, address)

    def give_back(self, link: AnyLink) -> None:
        with self._lock:
            if not self._context.closed:
                self._idle.setdefault(link.address, []).append(link)
                return
        link.close()

    def close(self) -> None:
        with self._lock:
            links = [link for links in self._idle.values() for link in links]
            self._idle.clear()
        for link in links:
            link.close()
        self._context.destroy(linger=0)


class Conversation(ABC, Generic[AnyLink]):
    """One handoff at the writer: a Channel whose frames are acknowledged one by one, in any order."""

    window_bytes = WINDOW_BYTES

    def __init__(self, links: Links[AnyLink], address: str, signed: bytes) -> None:
        self._links, self._link = links, links.take(address)
        self._window = wire.Window(self.window_bytes, RESEND_S, LOST_S)
        self._seq = 0
        self._open, self._delivered = True, False
        try:
            self._welcome = self._greet(signed)
        except BaseException:
            self._link.close()
            raise

    @abstractmethod
    def put(self, image: int, token_start: int, tokens: int, staged: Bytes) -> None: ...

    @abstractmethod
    def flush(self) -> None:
        """Sends the frame at hand on its way, if there is one."""

    @abstractmethod
    def again(self, seq: int) -> None:
        """Sends a frame again that was not acknowledged in time."""

    @abstractmethod
    def settled(self, seq: int) -> None:
        """The frame is in its place; what was kept for it may go."""

    def finish(self) -> None:
        self.flush()
        while not self._window.empty:
            self.listen(0.1)
        self._delivered = True

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        if self._delivered:
            self._links.give_back(self._link)
            return
        with contextlib.suppress(zmq.ZMQError):
            self._link.send(0, wire.GiveUp(self._welcome.session))
        self._link.close(linger_ms=200)

    def send(self, index: int, message: wire.ToReceiver) -> None:
        self._link.send(index, message)

    def under_way(self, filled: int) -> int:
        """Takes note of a frame that is about to be sent, once there is room for it; returns its number."""
        while self._window.full:
            self.listen(0.1)
        seq, self._seq = self._seq, self._seq + 1
        self._window.sent(seq, filled, time.monotonic())
        return seq

    def listen(self, timeout_s: float) -> None:
        """Takes what the receiver says and sends again what is late. Raises StaleWrite, WorkerLost."""
        self.hear(self._link.receive(timeout_s))
        for seq in self._window.due(time.monotonic()):
            self.again(seq)

    def hear(self, replies: list[wire.ToWriter]) -> None:
        now = time.monotonic()
        for reply in replies:
            if isinstance(reply, wire.Over) and reply.session == self._welcome.session:
                raise StaleWrite(reply.why)
            if not isinstance(reply, wire.Ack) or reply.session != self._welcome.session:
                continue
            self._window.heard(now)
            for seq in reply.seqs:
                if self._window.acknowledged(seq):
                    self.settled(seq)

    def _greet(self, signed: bytes) -> wire.Welcome:
        nonce, began = secrets.token_bytes(12), time.monotonic()
        attempt = 0
        while time.monotonic() - began < LOST_S:
            self._link.send(attempt, wire.Hello(signed, nonce))
            attempt += 1
            for reply in self._link.receive(_HELLO_RETRY_S):
                if isinstance(reply, wire.Welcome) and reply.nonce == nonce:
                    return reply
                if isinstance(reply, wire.NotWelcome) and reply.nonce == nonce:
                    raise StaleWrite(reply.why)
        raise WorkerLost(f"no receiver answers at {self._link.address.partition(' ')[0]}")
