"""ZeroMQ over TCP: CURVE encryption, several connections, frames sent again after a cut.

The receiver's door places frames in its own landing region; from there on all is as with shared memory.
"""

from __future__ import annotations

import numpy as np

from diptych.handoff.landing import Landing
from diptych.handoff.region import Bytes
from diptych.handoff.ticket import Ticket, sign
from diptych.handoff.transports import wire
from diptych.handoff.transports.door import SocketDoor
from diptych.handoff.transports.link import Conversation, Links

FRAME_BYTES = 1 << 20


class Transport:
    def __init__(self, key: bytes) -> None:
        self._key, self._links = key, Links()

    def open_channel(self, ticket: Ticket) -> _Channel:
        return _Channel(self._links, ticket.address, sign(ticket, self._key), FRAME_BYTES)

    def close(self) -> None:
        self._links.close()


class Door(SocketDoor):
    """``via`` goes into :meth:`Landing.offer`."""

    def __init__(
        self, landing: Landing, key: bytes, host: str = "127.0.0.1", *, port: int = 0, encrypted: bool = True
    ) -> None:
        super().__init__(landing, key, host, port=port, encrypted=encrypted)
        self.via = ("tcp", self.address)


class _Channel(Conversation):
    """Each frame is kept, and never written to again, until it is acknowledged: ZeroMQ sends it uncopied."""

    def __init__(self, links: Links, address: str, signed: bytes, frame_bytes: int) -> None:
        self._frames: dict[int, tuple[wire.Data, memoryview]] = {}
        self._buffer: Bytes = np.empty(frame_bytes, np.uint8)
        super().__init__(links, address, signed, frame_bytes)

    def buffer(self, needed: int) -> Bytes:
        if needed > self._buffer.nbytes:
            self._buffer = np.empty(needed, np.uint8)  # one chunk larger than a frame, alone in it
        return self._buffer

    def carry(self, seq: int, entries: tuple[wire.Entry, ...], filled: int) -> None:
        self._frames[seq] = (wire.Data(self._session, seq, entries), self._buffer[:filled].data)
        self.send(seq, *self._frames[seq])
        self._buffer = np.empty(self._frame_bytes, np.uint8)

    def again(self, seq: int) -> None:
        self.send(seq + 1, *self._frames[seq])

    def settled(self, seq: int) -> None:
        del self._frames[seq]
