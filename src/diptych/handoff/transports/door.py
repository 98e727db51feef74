"""The receiver's end of the network transports: answers writers, knows which frames came, refuses all else."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from collections import deque

import msgspec
import zmq

from diptych.errors import CorruptKV, HandoffError, StaleWrite
from diptych.handoff.arena import Row
from diptych.handoff.landing import Landing
from diptych.handoff.region import Region
from diptych.handoff.ticket import Ticket, verify
from diptych.handoff.transports import wire
from diptych.handoff.transports.link import CONNECTIONS
from diptych.handoff.transports.records import KEY_BYTES, Box

MESSAGE_BYTES = 1 << 20
_POLL_MS = 100
_TOLD_AT_ONCE = 4

_log = logging.getLogger(__name__)


class Session:
    """One handoff's frames at the receiver: which have come, and of which its writer was not told yet.

    ``writer`` is its identity at the control socket; ``key`` seals what comes on bulk connections.
    """

    def __init__(self, hello: wire.Hello, ticket: Ticket, writer: bytes, key: bytes, region: Region, row: Row) -> None:
        self.nonce, self.ticket, self.writer, self.key = hello.nonce, ticket, writer, key
        self.region, self.row, self.box = region, row, Box(key)
        self.placed: set[int] = set()
        self.untold: list[int] = []

    @property
    def holds(self) -> bool:
        return self.row.holds(self.ticket.epoch)


class SocketDoor:
    """A socket for control, and a thread that looks after it and after whatever else is in its poller.

    ``encrypted`` False is for networks that are trusted as a whole.
    """

    def __init__(
        self,
        landing: Landing,
        key: bytes,
        host: str = "127.0.0.1",
        *,
        port: int = 0,
        encrypted: bool = True,
        listener: socket.socket | None = None,
    ) -> None:
        self.refused = 0
        self.sessions: dict[int, Session] = {}
        self.poller = zmq.Poller()
        self._landing, self._key, self._encrypted = landing, key, encrypted
        self._over: deque[int] = deque(maxlen=256)
        self._untold: set[int] = set()
        self._context = zmq.Context(io_threads=CONNECTIONS)
        self._socket = self._context.socket(zmq.ROUTER)
        self.address = self._bind(host, port)
        self.poller.register(self._socket, zmq.POLLIN)
        if listener is not None:
            self.poller.register(listener, zmq.POLLIN)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="handoff-door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._socket.close(linger=0)
        self._context.term()

    def readable(self, descriptor: int) -> None:
        """Another descriptor in the poller is ready."""

    def idle(self) -> None:
        """Nothing has come: time to look after what is over."""
        for number in [number for number, session in self.sessions.items() if not session.holds]:
            self._end(number)

    def came(self, number: int, seq: int, tokens: int) -> None:
        """A frame is in its place; its writer is told when several are, or nothing more is coming just now."""
        session = self.sessions[number]
        if seq not in session.placed:
            session.placed.add(seq)
            session.row.wrote(tokens)
        session.untold.append(seq)
        self._untold.add(number)
        if len(session.untold) >= _TOLD_AT_ONCE:
            self._tell()

    def in_force(self, number: int) -> Session:
        """Raises StaleWrite for a handoff that is unknown or over; the first time it is counted and logged, and its
        writer is told.
        """
        session = self.sessions.get(number)
        if session is not None and session.holds:
            return session
        if session is not None:
            self._say(session.writer, wire.Over(number, "the handoff is over"))
        if number not in self._over:
            self.refuse("a frame for a handoff that is unknown or over")
        self._end(number)
        raise StaleWrite("the handoff is unknown or over")

    def refuse(self, why: str) -> None:
        self.refused += 1
        _log.warning("refused: %s", why)

    def _bind(self, host: str, port: int) -> str:
        self._socket.linger = 0
        self._socket.router_handover = True
        self._socket.maxmsgsize = MESSAGE_BYTES
        self._socket.heartbeat_ivl, self._socket.heartbeat_timeout = 1000, 3000
        public = b""
        if self._encrypted:
            public, secret = zmq.curve_keypair()
            self._socket.curve_secretkey, self._socket.curve_server = secret, True
        self._socket.bind(f"tcp://{host}:{port or '*'}")
        port = int(bytes(self._socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").rpartition(b":")[2])
        return f"tcp://{host}:{port} {public.decode()}".strip()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._round()
            except Exception:  # noqa: BLE001  one frame must not end the door for all others
                _log.exception("a frame could not be handled")

    def _round(self) -> None:
        ready = self.poller.poll(0 if self._untold else _POLL_MS)
        for source, _ in ready:
            if isinstance(source, int):
                self.readable(source)
            else:
                self._take(self._socket.recv_multipart())
        if not ready:
            self._tell()
            self.idle()

    def _take(self, parts: list[bytes]) -> None:
        sender = parts[0]
        try:
            reply = self._answer(sender, wire.to_receiver.decode(parts[1]))
        except (msgspec.MsgspecError, IndexError, CorruptKV) as error:
            self.refuse(f"a frame that is not ours: {error}")
            return
        if reply is not None:
            self._say(sender, reply)

    def _say(self, to: bytes, message: wire.ToWriter) -> None:
        self._socket.send_multipart([to, wire.encode(message)])

    def _tell(self) -> None:
        for number in self._untold:
            if session := self.sessions.get(number):
                self._say(session.writer, wire.Ack(number, tuple(session.untold)))
                session.untold.clear()
        self._untold.clear()

    def _answer(self, sender: bytes, message: wire.ToReceiver) -> wire.ToWriter | None:
        if isinstance(message, wire.Hello):
            return self._greet(sender, message)
        if isinstance(message, wire.GiveUp) and message.session not in self.sessions:
            return None
        try:
            session = self.in_force(message.session)
        except StaleWrite as error:
            return None if isinstance(message, wire.GiveUp) else wire.Over(message.session, str(error))
        session.writer = sender
        if isinstance(message, wire.GiveUp):
            session.row.give_up(session.ticket.epoch)
            return None
        if isinstance(message, wire.Ask):
            return wire.Ack(message.session, tuple(seq for seq in message.seqs if seq in session.placed))
        wire.sizes(session.region, session.ticket.tokens, message.entries)
        last = len(session.region.images) - 1
        self.came(message.session, message.seq, sum(entry.tokens for entry in message.entries if entry.image == last))
        return None

    def _greet(self, sender: bytes, hello: wire.Hello) -> wire.ToWriter:
        try:
            ticket = verify(hello.ticket, self._key, time.time())
            region, row = self._landing.open(ticket)
            for number, known in self.sessions.items():
                if known.ticket.handoff_id == ticket.handoff_id and known.nonce == hello.nonce:
                    known.writer = sender
                    return wire.Welcome(hello.nonce, number, known.key)
            if not row.claim(secrets.randbits(63) + 1):
                raise StaleWrite(f"handoff {ticket.handoff_id} has a writer already")
        except HandoffError as error:
            self.refuse(str(error))
            return wire.NotWelcome(hello.nonce, str(error))
        number, key = secrets.randbits(62), secrets.token_bytes(KEY_BYTES) if self._encrypted else b""
        self.sessions[number] = Session(hello, ticket, sender, key, region, row)
        return wire.Welcome(hello.nonce, number, key)

    def _end(self, number: int) -> None:
        self.sessions.pop(number, None)
        if number not in self._over:
            self._over.append(number)
