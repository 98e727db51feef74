"""One bulk connection at the receiver: bytes in, whole records out, as many as one read brings."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import numpy as np

from diptych.handoff.region import Bytes
from diptych.handoff.transports.records import HEADER_BYTES, Header, read_header

READ_BYTES = 256 << 10


class Stream:
    """``fresh`` until its first record was taken. ``frame`` is what came of the frame that is arriving:
    (session, seq, records, tokens).
    """

    def __init__(self, connection: socket.socket, since: float) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a writer whose machine is gone says nothing
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        self.socket, self.since, self.fresh = connection, since, True
        self.frame = (0, 0, 0, 0)
        self._memory: Bytes = np.empty(READ_BYTES, np.uint8)
        self._end = 0

    def read(self) -> bool:
        """One read, as much as has come and has room; False where the connection is over."""
        try:
            got = self.socket.recv_into(self._memory[self._end :].data)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._end += got
        return got > 0

    def records(self, check: Callable[[Header], None]) -> Iterator[tuple[Header, Bytes]]:
        """The records that are whole, each valid until the next is asked for. ``check`` sees a header before any
        room is made for what it announces, and raises where that must not come.
        """
        start, needed = 0, HEADER_BYTES
        while self._end - start >= HEADER_BYTES:
            header = read_header(self._memory[start:])
            check(header)
            needed = HEADER_BYTES + header.length
            if self._end - start < needed:
                break
            yield header, self._memory[start : start + needed]
            start, needed = start + needed, HEADER_BYTES
        self._keep(start, needed)

    def _keep(self, start: int, needed: int) -> None:
        """Moves the beginning of a record to the front, where ``needed`` bytes have room."""
        rest = self._memory[start : self._end]
        if needed > self._memory.nbytes:
            self._memory = np.empty(needed, np.uint8)
            self._memory[: rest.nbytes] = rest
        elif start:
            self._memory[: rest.nbytes] = rest.copy()
        self._end = rest.nbytes
