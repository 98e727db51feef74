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

FRAME_BYTES = 4 << 20


class Transport:
    def __init__(self, key: bytes) -> None:
        self._key, self._links = key, Links()
        self._spare: list[Bytes] = []

    def open_channel(self, ticket: Ticket) -> _Channel:
        return _Channel(self._links, ticket.address, sign(ticket, self._key), self._spare)

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
    """ZeroMQ sends a frame's buffer uncopied, so it stays as it is until the frame is acknowledged.

    After that it may be filled anew even if a second copy of the old frame is still queued somewhere: the
    receiver takes no frame twice, whatever its bytes.
    """

    def __init__(self, links: Links, address: str, signed: bytes, spare: list[Bytes]) -> None:
        self._frames: dict[int, tuple[wire.Data, Bytes]] = {}
        self._spare = spare
        self._buffer: Bytes | None = None
        super().__init__(links, address, signed, FRAME_BYTES)

    def buffer(self, needed: int) -> Bytes:
        if self._buffer is None:
            self._buffer = self._spare.pop() if self._spare else np.empty(FRAME_BYTES, np.uint8)
        if needed > self._buffer.nbytes:
            self._buffer = np.empty(needed, np.uint8)  # one chunk larger than a frame, alone in it
        return self._buffer

    def carry(self, seq: int, entries: tuple[wire.Entry, ...], filled: int) -> None:
        message, buffer = wire.Data(self._session, seq, entries), self.buffer(filled)
        self._frames[seq] = (message, buffer[:filled])
        self._buffer = None
        self.send(seq, message, buffer[:filled].data)

    def again(self, seq: int) -> None:
        message, filled = self._frames[seq]
        self.send(seq + 1, message, filled.data)

    def settled(self, seq: int) -> None:
        _, filled = self._frames.pop(seq)
        whole = filled.base
        if isinstance(whole, np.ndarray) and whole.nbytes == FRAME_BYTES:
            self._spare.append(whole)
