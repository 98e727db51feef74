"""The writer's end of a network transport, but for the bytes: connections, greeting, acknowledgements,
notices.

Frames gather in a buffer; how a full one gets into the receiver's region is the transport's own affair.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from abc import ABC, abstractmethod

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

    def send(self, index: int, message: wire.ToReceiver, payload: memoryview | None = None) -> None:
        parts: list[bytes | memoryview] = [wire.encode(message)]
        if payload is not None:
            parts.append(payload)
        self._sockets[index % len(self._sockets)].send_multipart(parts, copy=payload is None)

    def receive(self, timeout_s: float) -> list[wire.ToWriter]:
        """What has come, waiting at most ``timeout_s`` for the first."""
        ready = self._poller.poll(int(timeout_s * 1e3))
        found = []
        for socket, _ in ready:
            while socket.poll(0):
                found.append(wire.to_writer.decode(socket.recv()))
        return found

    def close(self, linger_ms: int = 0) -> None:
        for socket in self._sockets:
            socket.close(linger=linger_ms)


class Links:
    """Keeps connections to every receiver between handoffs; a link serves one handoff at a time."""

    def __init__(self) -> None:
        self._context = zmq.Context(io_threads=CONNECTIONS)
        self._idle: dict[str, list[Link]] = {}
        self._lock = threading.Lock()

    def take(self, address: str) -> Link:
        with self._lock:
            idle = self._idle.get(address)
            return idle.pop() if idle else Link(self._context, address)

    def give_back(self, link: Link) -> None:
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


class Conversation(ABC):
    """One handoff at the writer: a Channel whose frames are acknowledged one by one, in any order."""

    def __init__(self, links: Links, address: str, signed: bytes, frame_bytes: int) -> None:
        self._links, self._link = links, links.take(address)
        self._window = wire.Window(WINDOW_BYTES, RESEND_S, LOST_S)
        self._frame_bytes = frame_bytes
        self._entries: list[wire.Entry] = []
        self._filled, self._seq = 0, 0
        self._open, self._delivered = True, False
        try:
            self._session = self._greet(signed)
        except BaseException:
            self._link.close()
            raise

    @abstractmethod
    def buffer(self, needed: int) -> Bytes:
        """Where the frame at hand gathers: at least ``needed`` bytes, the same memory until it is carried."""

    @abstractmethod
    def carry(self, seq: int, entries: tuple[wire.Entry, ...], filled: int) -> None:
        """Sends a full frame on its way; its acknowledgement may come at any time from now on."""

    @abstractmethod
    def again(self, seq: int) -> None:
        """Sends a frame again that was not acknowledged in time."""

    @abstractmethod
    def settled(self, seq: int) -> None:
        """The frame is in its place; what was kept for it may go."""

    def put(self, image: int, token_start: int, tokens: int, staged: Bytes) -> None:
        if self._filled and self._filled + staged.nbytes > self._frame_bytes:
            self._flush()
        end = self._filled + staged.nbytes
        self.buffer(end)[self._filled : end] = staged
        self._filled = end
        self._entries.append(wire.Entry(image, token_start, tokens))

    def finish(self) -> None:
        self._flush()
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
            self._link.send(0, wire.GiveUp(self._session))
        self._link.close(linger_ms=200)

    def send(self, index: int, message: wire.ToReceiver, payload: memoryview | None = None) -> None:
        self._link.send(index, message, payload)

    def listen(self, timeout_s: float) -> None:
        """Takes what the receiver says and sends again what is late. Raises StaleWrite, WorkerLost."""
        replies = self._link.receive(timeout_s)
        now = time.monotonic()
        for reply in replies:
            if isinstance(reply, wire.Over) and reply.session == self._session:
                raise StaleWrite(reply.why)
            if not isinstance(reply, wire.Ack) or reply.session != self._session:
                continue
            if self._window.acknowledged(reply.seq, now):
                self.settled(reply.seq)
        for seq in self._window.due(now):
            self.again(seq)

    def _flush(self) -> None:
        if not self._entries:
            return
        while self._window.full:
            self.listen(0.1)
        self._window.sent(self._seq, self._filled, time.monotonic())
        self.carry(self._seq, tuple(self._entries), self._filled)
        self._filled, self._entries = 0, []
        self._seq += 1
        self.listen(0.0)

    def _greet(self, signed: bytes) -> int:
        nonce, began = secrets.token_bytes(12), time.monotonic()
        attempt = 0
        while time.monotonic() - began < LOST_S:
            self._link.send(attempt, wire.Hello(signed, nonce))
            attempt += 1
            for reply in self._link.receive(_HELLO_RETRY_S):
                if isinstance(reply, wire.Welcome) and reply.nonce == nonce:
                    return reply.session
                if isinstance(reply, wire.NotWelcome) and reply.nonce == nonce:
                    raise StaleWrite(reply.why)
        raise WorkerLost(f"no receiver answers at {self._link.address.partition(' ')[0]}")
