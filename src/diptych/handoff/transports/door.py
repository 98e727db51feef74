"""The receiver's end of the network transports: answers writers, places what they send, refuses all else."""

from __future__ import annotations

import logging
import secrets
import threading
import time

import msgspec
import numpy as np
import zmq

from diptych.errors import CorruptKV, HandoffError, StaleWrite
from diptych.handoff.arena import Row
from diptych.handoff.landing import Landing
from diptych.handoff.region import Bytes, Region
from diptych.handoff.ticket import Ticket, verify
from diptych.handoff.transports import wire
from diptych.handoff.transports.link import CONNECTIONS

MESSAGE_BYTES = 256 << 20
_POLL_MS = 100

_log = logging.getLogger(__name__)


class _Session:
    """One handoff's frames at the receiver."""

    def __init__(self, ticket: Ticket, nonce: bytes, region: Region, row: Row) -> None:
        self.ticket, self.nonce, self.region, self.row = ticket, nonce, region, row
        self.placed: set[int] = set()


class SocketDoor:
    """A socket and a thread that answers writers and places their frames in the landing's regions.

    ``encrypted`` False is for networks that are trusted as a whole.
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
        self.address = f"tcp://{host}:{port} {public.decode()}".strip()
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
        if message.seq not in session.placed:
            self._place(session, message, payload)
            session.placed.add(message.seq)
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

    def _place(self, session: _Session, message: wire.Data | wire.Placed, payload: Bytes) -> None:
        """Raises CorruptKV for a frame whose bytes are not what its entries say; nothing of it is placed
        then.
        """
        sizes = wire.sizes(session.region, session.ticket.tokens, message.entries)
        if isinstance(message, wire.Data):
            if sum(sizes) != payload.nbytes:
                raise CorruptKV(f"a frame of {payload.nbytes} bytes names {sum(sizes)}")
            start = 0
            for entry, size in zip(message.entries, sizes, strict=True):
                part = payload[start : start + size]
                session.region.put(entry.image, entry.token_start, entry.tokens, part)
                start += size
        last = len(session.region.images) - 1
        session.row.wrote(sum(entry.tokens for entry in message.entries if entry.image == last))

    def _forget(self) -> None:
        over = [n for n, session in self._sessions.items() if not session.row.holds(session.ticket.epoch)]
        for number in over:
            del self._sessions[number]

    def _refuse(self, why: str) -> None:
        self.refused += 1
        _log.warning("refused: %s", why)
