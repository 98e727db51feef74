"""What transports that write into the receiver's memory from afar (RDMA and its like) have in common.

    frame gathers in a registered buffer --write, run by run--> the landing region    the library's part
    Placed(entries) --ZeroMQ, CURVE--> Ack                                            link.py, door.py

A remote write cannot look at the region's epoch, so a late one may land in a region that was offered again;
the digest over admission's private copy is what makes that harmless (see landing.py). Everything else
(tickets, one writer each, notices, progress, acknowledgements) is as over tcp, on the same kind of
connection.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from diptych.errors import StaleWrite, WorkerLost
from diptych.handoff.landing import Landing
from diptych.handoff.region import Bytes, Region
from diptych.handoff.ticket import Ticket, sign
from diptych.handoff.transports import wire
from diptych.handoff.transports.door import SocketDoor
from diptych.handoff.transports.link import Conversation, Link, Links

FRAME_BYTES = 4 << 20
_POLL_S = 0.0002
_ANNOUNCE_S = 0.1

Run = tuple[int, int, int]
"""(local address, remote address, bytes)."""

Flying = tuple[Any, Bytes]
"""A transfer's handle, and the buffer that the library reads until it is done."""


class Mover(Protocol):
    """A transfer library: registered memory on both sides, and writes that complete some time later."""

    def expose(self, memory: Bytes) -> str:
        """Lets others write into ``memory``; returns what they need to know (printable, no spaces)."""

    def register(self, memory: Bytes) -> None:
        """Lets ``memory`` be written from; it stays registered until :meth:`close`."""

    def meet(self, peer: str) -> Any:
        """A peer, from what its :meth:`expose` returned. Raises WorkerLost."""

    def write(self, peer: Any, runs: Sequence[Run]) -> Any:
        """Starts one transfer and returns its handle. Raises WorkerLost."""

    def done(self, handle: Any) -> bool:
        """Whether the transfer is complete at the peer. Raises WorkerLost."""

    def close(self) -> None: ...


class Place(msgspec.Struct, frozen=True, array_like=True):
    """The ticket's address: the door's socket, the library's peer, where the arena's regions begin in its
    memory.
    """

    socket: str
    peer: str
    base: int


class RemoteTransport:
    """Keeps the library's agent and its registered buffers; registering is slow."""

    def __init__(self, key: bytes, mover: Mover) -> None:
        self._key, self._mover, self._links = key, mover, Links(Link)
        self._peers: dict[str, Any] = {}
        self._made: list[Bytes] = []  # what is registered is not freed, whatever became of its last transfer
        self._spare: list[Bytes] = []
        self._left: list[Flying] = []
        self._lock = threading.Lock()  # of the three lists: every handoff has a thread

    def open_channel(self, ticket: Ticket) -> _Channel:
        place = msgspec.json.decode(ticket.address, type=Place)
        if place.peer not in self._peers:
            self._peers[place.peer] = self._mover.meet(place.peer)
        return _Channel(self, place, ticket, sign(ticket, self._key))

    def close(self) -> None:
        self._links.close()
        self._mover.close()

    def take_buffer(self, needed: int) -> Bytes:
        """A registered buffer; nobody else's until it is given back."""
        with self._lock:
            self._left = [flying for flying in self._left if not self._ended(flying)]
            if self._spare and self._spare[-1].nbytes >= needed:
                return self._spare.pop()
        made = np.empty(max(needed, FRAME_BYTES), np.uint8)
        self._mover.register(made)
        with self._lock:
            self._made.append(made)
        return made

    def give_buffer(self, buffer: Bytes) -> None:
        with self._lock:
            self._spare.append(buffer)

    def leave(self, flying: Iterable[Flying]) -> None:
        """Transfers that nobody waits for any more: the library may read their buffers until they are done."""
        with self._lock:
            self._left += flying

    def _ended(self, flying: Flying) -> bool:
        handle, buffer = flying
        try:
            if not self._mover.done(handle):
                return False
        except WorkerLost:
            return True
        self._spare.append(buffer)
        return True

    @property
    def mover(self) -> Mover:
        return self._mover

    @property
    def links(self) -> Links[Link]:
        return self._links

    def peer(self, name: str) -> Any:
        return self._peers[name]


class RemoteDoor(SocketDoor):
    """``via`` goes into :meth:`Landing.offer`."""

    def __init__(self, name: str, landing: Landing, key: bytes, host: str, mover: Mover) -> None:
        super().__init__(landing, key, host)
        self._mover = mover
        place = Place(self.address, mover.expose(landing.memory), landing.memory.ctypes.data)
        self.via = (name, msgspec.json.encode(place).decode())

    def close(self) -> None:
        super().close()
        self._mover.close()


class _Channel(Conversation[Link]):
    """A frame's buffer is in use until its transfer is complete; only then is the frame announced."""

    def __init__(self, owner: RemoteTransport, place: Place, ticket: Ticket, signed: bytes) -> None:
        self._owner, self._peer = owner, owner.peer(place.peer)
        self._base = place.base + ticket.offset
        if ticket.kv_bytes != ticket.form.region_bytes(ticket.tokens):
            raise StaleWrite(f"the ticket of handoff {ticket.handoff_id} does not fit its form")
        self._region = Region(ticket.form, np.empty(0, np.uint8), ticket.tokens)
        self._buffer: Bytes | None = None
        self._filled = 0
        self._entries: list[wire.Entry] = []
        self._runs: list[Run] = []
        self._flying: dict[int, Flying] = {}
        self._landed: list[int] = []
        self._placed: dict[int, wire.Placed] = {}
        self._announced = time.monotonic()
        super().__init__(owner.links, place.socket, signed)

    def put(self, image: int, token_start: int, tokens: int, staged: Bytes) -> None:
        if self._filled and self._filled + staged.nbytes > FRAME_BYTES:
            self.flush()
        if self._buffer is None:
            self._buffer = self._owner.take_buffer(staged.nbytes)
        start, end = self._filled, self._filled + staged.nbytes
        self._buffer[start:end] = staged
        here = self._buffer.ctypes.data + start
        for there, within, size in self._region.runs(image, token_start, tokens):
            self._runs.append((here + within, self._base + there, size))
        self._filled = end
        self._entries.append(wire.Entry(image, token_start, tokens))

    def flush(self) -> None:
        if self._buffer is None:
            return
        seq = self.under_way(self._filled)
        self._placed[seq] = wire.Placed(self._welcome.session, seq, tuple(self._entries))
        self._flying[seq] = (self._owner.mover.write(self._peer, self._runs), self._buffer)
        self._buffer, self._filled, self._entries, self._runs = None, 0, [], []
        self.listen(0.0)

    def again(self, seq: int) -> None:
        if seq not in self._flying and seq not in self._landed:
            self.send(seq, self._placed[seq])

    def settled(self, seq: int) -> None:
        del self._placed[seq]

    def listen(self, timeout_s: float) -> None:
        """Announces what has landed when somebody waits for it, and now and then: each message wakes the receiver."""
        self._land()
        if timeout_s or time.monotonic() - self._announced > _ANNOUNCE_S:
            self._announce()
        super().listen(0.0 if self._flying else timeout_s)
        if self._flying and timeout_s:
            time.sleep(_POLL_S)

    def close(self) -> None:
        super().close()
        self._owner.leave(self._flying.values())
        self._flying.clear()
        if self._buffer is not None:
            self._owner.give_buffer(self._buffer)
            self._buffer = None

    def _land(self) -> None:
        """An error ends a transfer, and is told once: the library frees the handle with it."""
        for seq in list(self._flying):
            handle, buffer = self._flying.pop(seq)
            if self._owner.mover.done(handle):
                self._owner.give_buffer(buffer)
                self._landed.append(seq)
            else:
                self._flying[seq] = (handle, buffer)

    def _announce(self) -> None:
        for seq in self._landed:
            self.send(seq, self._placed[seq])
        self._landed.clear()
        self._announced = time.monotonic()
