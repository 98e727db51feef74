"""ZeroMQ over TCP: CURVE encryption, several connections, frames sent again after a cut.

The receiver's door places frames in its own landing region; from there on everything is as with shared
memory.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable

import msgspec
import numpy as np
import zmq

from diptych.errors import CorruptKV, HandoffError, StaleWrite, WorkerLost
from diptych.handoff.arena import Row
from diptych.handoff.landing import Landing
from diptych.handoff.region import Bytes, Region
from diptych.handoff.ticket import Ticket, sign, verify
from diptych.handoff.transports import wire

CONNECTIONS = 2
FRAME_BYTES = 1 << 20
MESSAGE_BYTES = 256 << 20
WINDOW_BYTES = 16 << 20
RESEND_S = 1.0
LOST_S = 10.0
_HELLO_RETRY_S = 0.5
_POLL_MS = 100

_log = logging.getLogger(__name__)


class Transport:
    """Keeps connections to every receiver between handoffs; a connection serves one handoff at a time."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._context = zmq.Context(io_threads=CONNECTIONS)
        self._idle: dict[str, list[_Link]] = {}
        self._lock = threading.Lock()

    def open_channel(self, ticket: Ticket) -> _Channel:
        return _Channel(self._link(ticket.address), sign(ticket, self._key), self._take_back)

    def close(self) -> None:
        with self._lock:
            links = [link for links in self._idle.values() for link in links]
            self._idle.clear()
        for link in links:
            link.close()
        self._context.destroy(linger=0)

    def _link(self, address: str) -> _Link:
        with self._lock:
            idle = self._idle.get(address)
            return idle.pop() if idle else _Link(self._context, address)

    def _take_back(self, link: _Link) -> None:
        with self._lock:
            if not self._context.closed:
                self._idle.setdefault(link.address, []).append(link)
                return
        link.close()


class _Link:
    """Several connections to one receiver. Replies may come on any of them."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self.address = address
        endpoint, _, server_key = address.partition(" ")
        self._poller = zmq.Poller()
        self._sockets = [self._connect(context, endpoint, server_key) for _ in range(CONNECTIONS)]

    def _connect(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, server_key: str
    ) -> zmq.Socket[bytes]:
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


class _Channel:
    """Gathers chunks of images into frames and keeps each frame until it is acknowledged."""

    def __init__(self, link: _Link, signed: bytes, take_back: Callable[[_Link], None]) -> None:
        self._link, self._take_back = link, take_back
        self._window = wire.Window(WINDOW_BYTES, RESEND_S, LOST_S)
        self._frames: dict[int, tuple[wire.Data, memoryview]] = {}
        self._entries: list[wire.Entry] = []
        self._buffer, self._filled, self._seq = bytearray(FRAME_BYTES), 0, 0
        self._open, self._delivered = True, False
        try:
            self._session = self._greet(signed)
        except BaseException:
            link.close()
            raise

    def put(self, image: int, token_start: int, tokens: int, staged: Bytes) -> None:
        if self._filled and self._filled + staged.nbytes > FRAME_BYTES:
            self._flush()
        if staged.nbytes > len(self._buffer):
            self._buffer = bytearray(staged.nbytes)
        memoryview(self._buffer)[self._filled : self._filled + staged.nbytes] = staged.data
        self._filled += staged.nbytes
        self._entries.append(wire.Entry(image, token_start, tokens))

    def finish(self) -> None:
        self._flush()
        while not self._window.empty:
            self._listen(0.1)
        self._delivered = True

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        if self._delivered:
            self._take_back(self._link)
            return
        with contextlib.suppress(zmq.ZMQError):
            self._link.send(0, wire.GiveUp(self._session))
        self._link.close(linger_ms=200)

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

    def _flush(self) -> None:
        if not self._entries:
            return
        while self._window.full:
            self._listen(0.1)
        message = wire.Data(self._session, self._seq, tuple(self._entries))
        payload = memoryview(self._buffer)[: self._filled]
        self._window.sent(self._seq, self._filled, time.monotonic())
        self._frames[self._seq] = (message, payload)
        self._link.send(self._seq, message, payload)
        self._buffer, self._filled, self._entries = bytearray(FRAME_BYTES), 0, []
        self._seq += 1
        self._listen(0.0)

    def _listen(self, timeout_s: float) -> None:
        """Takes what the receiver says and sends again what is late. Raises StaleWrite, WorkerLost."""
        replies = self._link.receive(timeout_s)
        now = time.monotonic()
        for reply in replies:
            if isinstance(reply, wire.Over) and reply.session == self._session:
                raise StaleWrite(reply.why)
            if not isinstance(reply, wire.Ack) or reply.session != self._session:
                continue
            if self._window.acknowledged(reply.seq, now):
                del self._frames[reply.seq]
        for seq in self._window.due(now):
            self._link.send(seq + 1, *self._frames[seq])


class _Session:
    """One handoff's frames at the receiver."""

    def __init__(self, ticket: Ticket, nonce: bytes, region: Region, row: Row) -> None:
        self.ticket, self.nonce, self.region, self.row = ticket, nonce, region, row
        self.placed: set[int] = set()


class Door:
    """The receiver's end: a socket and a thread that places frames in the landing's regions.

    ``via`` goes into :meth:`Landing.offer`. ``encrypted`` False is for networks that are trusted as a whole.
    """

    def __init__(
        self, landing: Landing, key: bytes, host: str = "127.0.0.1", *, port: int = 0, encrypted: bool = True
    ) -> None:
        self.refused = 0
        self._landing, self._key = landing, key
        self._sessions: dict[int, _Session] = {}
        self._context = zmq.Context(io_threads=CONNECTIONS)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.router_handover = True
        self._socket.maxmsgsize = MESSAGE_BYTES
        self._socket.rcvhwm = 64
        self._socket.heartbeat_ivl, self._socket.heartbeat_timeout = 1000, 3000
        public = b""
        if encrypted:
            public, secret = zmq.curve_keypair()
            self._socket.curve_secretkey, self._socket.curve_server = secret, True
        self._socket.bind(f"tcp://{host}:{port or '*'}")
        port = int(bytes(self._socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").rpartition(b":")[2])
        self.via = ("tcp", f"tcp://{host}:{port} {public.decode()}".strip())
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="handoff-door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._socket.close(linger=0)
        self._context.term()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._socket.poll(_POLL_MS):
                    self._take(self._socket.recv_multipart(copy=False))
                else:
                    self._forget()
            except Exception:  # noqa: BLE001  one frame must not end the door for all others
                _log.exception("a frame could not be handled")

    def _take(self, parts: list[zmq.Frame]) -> None:
        sender = parts[0].bytes
        try:
            message = wire.to_receiver.decode(parts[1].buffer)
            payload = np.frombuffer(parts[2].buffer, np.uint8) if len(parts) > 2 else np.empty(0, np.uint8)
            reply = self._answer(message, payload)
        except (msgspec.MsgspecError, IndexError, CorruptKV) as error:
            self._refuse(f"a frame that is not ours: {error}")
            return
        if reply is not None:
            self._socket.send_multipart([sender, wire.encode(reply)])

    def _answer(self, message: wire.ToReceiver, payload: Bytes) -> wire.ToWriter | None:
        if isinstance(message, wire.Hello):
            return self._greet(message)
        session = self._sessions.get(message.session)
        if session is None or not session.row.holds(session.ticket.epoch):
            self._sessions.pop(message.session, None)
            if isinstance(message, wire.GiveUp):
                return None
            self._refuse("a frame for a handoff that is unknown or over")
            return wire.Over(message.session, "the handoff is unknown or over")
        if isinstance(message, wire.GiveUp):
            session.row.give_up(session.ticket.epoch)
            return None
        self._place(session, message, payload)
        return wire.Ack(message.session, message.seq)

    def _greet(self, message: wire.Hello) -> wire.ToWriter:
        try:
            ticket = verify(message.ticket, self._key, time.time())
            region, row = self._landing.open(ticket)
            for number, known in self._sessions.items():
                if known.ticket.handoff_id == ticket.handoff_id and known.nonce == message.nonce:
                    return wire.Welcome(message.nonce, number)
            if not row.claim(secrets.randbits(63) + 1):
                raise StaleWrite(f"handoff {ticket.handoff_id} has a writer already")
        except HandoffError as error:
            self._refuse(str(error))
            return wire.NotWelcome(message.nonce, str(error))
        number = secrets.randbits(62)
        self._sessions[number] = _Session(ticket, message.nonce, region, row)
        return wire.Welcome(message.nonce, number)

    def _place(self, session: _Session, message: wire.Data, payload: Bytes) -> None:
        """Raises CorruptKV for a frame whose bytes are not what its entries say; nothing of it is placed
        then.
        """
        sizes = wire.sizes(session.region, session.ticket.tokens, message.entries)
        if sum(sizes) != payload.nbytes:
            raise CorruptKV(f"a frame of {payload.nbytes} bytes names {sum(sizes)}")
        if message.seq in session.placed:
            return
        start = 0
        for entry, size in zip(message.entries, sizes, strict=True):
            part = payload[start : start + size]
            session.region.put(entry.image, entry.token_start, entry.tokens, part)
            if entry.image == len(session.region.images) - 1:
                session.row.wrote(entry.tokens)
            start += size
        session.placed.add(message.seq)

    def _forget(self) -> None:
        over = [n for n, session in self._sessions.items() if not session.row.holds(session.ticket.epoch)]
        for number in over:
            del self._sessions[number]

    def _refuse(self, why: str) -> None:
        self.refused += 1
        _log.warning("refused: %s", why)
