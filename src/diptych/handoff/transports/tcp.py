"""TCP: control over ZeroMQ with CURVE, bytes over several plain connections, sealed with AES-GCM; frames are sent
again after a cut.

The bytes do not go through ZeroMQ because its cipher (libsodium's, in its one I/O thread) reaches a fraction of a
socket's speed; docs/handoff.md has the figures and what this means for the threat model.
"""

from __future__ import annotations

import socket
import time

import msgspec
import numpy as np
import zmq

from diptych.errors import CorruptKV, StaleWrite
from diptych.handoff.landing import Landing
from diptych.handoff.region import Bytes, Region
from diptych.handoff.ticket import Ticket, sign
from diptych.handoff.transports import wire
from diptych.handoff.transports.bulk import BUFFER_BYTES, BulkLink, Place
from diptych.handoff.transports.door import SocketDoor
from diptych.handoff.transports.link import CONNECTIONS, Conversation, Links
from diptych.handoff.transports.records import Box, Header
from diptych.handoff.transports.stream import Stream

FRAME_BYTES = 1 << 20
STREAMS = 256
FRESH_S = 10.0
"""How many bulk connections a door keeps, and how long one may be open before its first record."""

_END = wire.Entry(0, 0, 0)
_NOTHING = np.empty(0, np.uint8)


class Transport:
    def __init__(self, key: bytes) -> None:
        self._key, self._links = key, Links(BulkLink)
        self._spare: list[Bytes] = []

    def open_channel(self, ticket: Ticket) -> _Channel:
        return _Channel(self._links, ticket.address, sign(ticket, self._key), self._spare)

    def close(self) -> None:
        self._links.close()


class Door(SocketDoor):
    """``via`` goes into :meth:`Landing.offer`. ``port`` is for control, ``bulk_port`` for bytes; 0 takes a free one."""

    def __init__(
        self,
        landing: Landing,
        key: bytes,
        host: str = "127.0.0.1",
        *,
        port: int = 0,
        bulk_port: int = 0,
        encrypted: bool = True,
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host.strip("[]"), bulk_port), family=family)
        self._listener.setblocking(False)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._streams: dict[int, Stream] = {}
        super().__init__(landing, key, host, port=port, encrypted=encrypted, listener=self._listener)
        place = Place(self.address, f"{host}:{self._listener.getsockname()[1]}")
        self.via = ("tcp", msgspec.json.encode(place).decode())

    def close(self) -> None:
        super().close()
        self._listener.close()
        for stream in self._streams.values():
            stream.socket.close()

    def readable(self, descriptor: int) -> None:
        if descriptor == self._listener.fileno():
            self._accept()
            return
        stream = self._streams[descriptor]
        try:
            alive = stream.read()
            for header, record in stream.records(self._check):
                self._take_record(stream, header, record)
        except StaleWrite:
            alive = False
        except CorruptKV as error:
            self.refuse(f"a bulk connection that is not ours, or broken: {error}")
            alive = False
        if not alive:
            self._drop(descriptor)

    def idle(self) -> None:
        super().idle()
        now = time.monotonic()
        for descriptor, stream in list(self._streams.items()):
            if stream.fresh and now - stream.since > FRESH_S:
                self.refuse("a bulk connection that said nothing")
                self._drop(descriptor)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if len(self._streams) >= STREAMS:
            self.refuse(f"more than {STREAMS} bulk connections")
            connection.close()
            return
        stream = Stream(connection, time.monotonic())
        self._streams[connection.fileno()] = stream
        self.poller.register(connection.fileno(), zmq.POLLIN)

    def _drop(self, descriptor: int) -> None:
        self.poller.unregister(descriptor)
        self._streams.pop(descriptor).socket.close()

    def _check(self, header: Header) -> None:
        """Raises StaleWrite, CorruptKV for a header that no writer of ours would send now."""
        session = self.in_force(header.session)
        size = 0
        if not header.ends_frame:
            (size,) = wire.sizes(session.region, session.ticket.tokens, (header.entry,))
        if header.length != size + session.box.tag_bytes:
            raise CorruptKV(f"a record of {header.length} bytes names {size}")

    def _take_record(self, stream: Stream, header: Header, record: Bytes) -> None:
        session = self.in_force(header.session)
        number, seq, records, tokens = stream.frame
        if header.index == 0:
            number, seq, records, tokens = header.session, header.seq, 0, 0
        if (number, seq, records) != (header.session, header.seq, header.index):
            raise CorruptKV("a frame whose records are not in order")
        stream.fresh = False
        if header.ends_frame:
            session.box.read(header, record, _NOTHING)
            self.came(number, seq, tokens)
            return
        if seq not in session.placed:
            _place(session.region, session.box, header, record)
        if header.entry.image == len(session.region.images) - 1:
            tokens += header.entry.tokens
        stream.frame = (number, seq, records + 1, tokens)


def _place(region: Region, box: Box, header: Header, record: Bytes) -> None:
    """Opens a record straight into the region where its place is one run. Raises CorruptKV."""
    entry = header.entry
    place = region.dense(entry.image, entry.token_start, entry.tokens)
    if place is not None:
        box.read(header, record, place)
        return
    opened = np.empty(header.length - box.tag_bytes, np.uint8)
    box.read(header, record, opened)
    region.put(entry.image, entry.token_start, entry.tokens, opened)


class _Channel(Conversation[BulkLink]):
    """A frame is sealed once into a buffer of its own, which is kept until the frame is acknowledged: after a cut the
    same bytes are sent again. The window bounds what is kept; 8 and 32 MiB were not told apart by measurement.
    """

    window_bytes = 8 << 20

    def __init__(self, links: Links[BulkLink], address: str, signed: bytes, spare: list[Bytes]) -> None:
        self._spare = spare
        self._frames: dict[int, Bytes] = {}
        self._on: dict[int, int] = {}
        self._lost: set[int] = set()
        self._sending = -1
        self._buffer: Bytes | None = None
        self._filled, self._records = 0, 0
        super().__init__(links, address, signed)
        self._box = Box(self._welcome.key)

    def put(self, image: int, token_start: int, tokens: int, staged: Bytes) -> None:
        end = self._filled + staged.nbytes + 2 * self._box.overhead
        if self._filled and end > FRAME_BYTES:
            self.flush()
        self._add(wire.Entry(image, token_start, tokens), staged)

    def flush(self) -> None:
        if not self._filled:
            return
        self._add(_END, _NOTHING)
        assert self._buffer is not None
        frame = self._buffer[: self._filled]
        self._buffer, self._filled, self._records = None, 0, 0
        seq = self.under_way(frame.nbytes)
        self._frames[seq] = frame
        self._send(seq, seq % CONNECTIONS)
        self.listen(0.0)

    def listen(self, timeout_s: float) -> None:
        super().listen(timeout_s)
        for index in list(self._link.broken):
            self._link.broken.discard(index)
            if lost := [seq for seq, on in self._on.items() if on == index]:
                self._lost.update(lost)
                self.send(index, wire.Ask(self._welcome.session, tuple(lost)))

    def hear(self, replies: list[wire.ToWriter]) -> None:
        """After a cut, a word of the receiver says that it lives: what was lost is sent again."""
        super().hear(replies)
        if self._lost and any(isinstance(reply, wire.Ack) for reply in replies):
            self._window.lost(self._lost)
            self._lost.clear()

    def again(self, seq: int) -> None:
        if seq in self._frames:
            self._send(seq, (self._on[seq] + 1) % CONNECTIONS)

    def settled(self, seq: int) -> None:
        whole = self._frames.pop(seq).base
        del self._on[seq]
        if seq != self._sending and isinstance(whole, np.ndarray) and whole.nbytes == FRAME_BYTES:
            self._spare.append(whole)

    def _add(self, entry: wire.Entry, payload: Bytes) -> None:
        end = self._filled + payload.nbytes + self._box.overhead
        if self._buffer is None:  # a chunk that is larger than a frame is alone in one
            self._buffer = self._take_buffer(end + self._box.overhead)
        place = self._buffer[self._filled : end]
        self._box.write(place, self._welcome.session, self._seq, self._records, entry, payload)
        self._filled, self._records = end, self._records + 1

    def _take_buffer(self, needed: int) -> Bytes:
        if needed > FRAME_BYTES:
            return np.empty(needed, np.uint8)
        return self._spare.pop() if self._spare else np.empty(FRAME_BYTES, np.uint8)

    def _send(self, seq: int, index: int) -> None:
        """The frame on one connection, as fast as the receiver takes it; what a cut leaves is sent again later."""
        self._on[seq], self._sending = index, seq
        rest = self._frames[seq].data
        sent = self._link.push(index, rest, fresh=True)
        while sent is not None and len(rest := rest[sent:]):
            if not sent:
                self.hear(self._link.receive(0.1, index))
                self._window.check(time.monotonic())
            sent = self._link.push(index, rest)
        self._sending = -1
