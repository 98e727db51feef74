"""TLS and plain text at one port: the first byte of a connection tells which.

    client -- public socket --> first byte 0x16? --> unix socket of the TLS server      (granian, in this process)
                                          other  --> unix socket of the plain server    (granian, in this process)

granian's listener is either one or the other, so where a gateway has a certificate, connections are accepted here and
their bytes carried on, both ways, unlooked-at. Without a certificate granian listens by itself and none of this runs.
A side that cannot take more stops the other from being read; an end of one side's data is passed on; a connection
that breaks on one side is closed on the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path

_HANDSHAKE = 0x16  # the type of TLS's first record
_FIRST_BYTE_S = 10.0
_HIGH_WATER = 256 * 1024


class OnePort:
    """Accepts at ``public`` and carries on to ``tls`` or ``plain``, which listen at these paths."""

    def __init__(self, public: socket.socket, tls: Path, plain: Path) -> None:
        self._public = public
        self._ways: Mapping[bool, str] = {True: str(tls), False: str(plain)}
        self._server: asyncio.Server | None = None
        self._fronts: set[_Front] = set()

    async def start(self) -> None:
        """Accepts from now on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._front, sock=self._public)

    def stop_accepting(self) -> None:
        """What is connected stays so."""
        if self._server is not None:
            self._server.close()

    def close(self) -> None:
        """Ends every connection."""
        self.stop_accepting()
        for front in list(self._fronts):
            front.abort()

    def _front(self) -> _Front:
        return _Front(self._ways, self._fronts)


class _Side(asyncio.Protocol):
    """One of the two connections that are tied together."""

    transport: asyncio.Transport
    other: _Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(_HIGH_WATER)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """Passed on; this side may still be written to."""
        if self.other is not None and self.other.transport.can_write_eof():
            self.other.transport.write_eof()
        return self.other is not None

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.abort() if exc else self.other.transport.close()

    def abort(self) -> None:
        self.transport.abort()


class _Front(_Side):
    """The client's connection. It is not read past its first piece until the way on is open."""

    def __init__(self, ways: Mapping[bool, str], fronts: set[_Front]) -> None:
        self._ways = ways
        self._fronts = fronts
        self._opening: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._fronts.add(self)
        self._deadline = asyncio.get_running_loop().call_later(_FIRST_BYTE_S, self.abort)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.transport.write(data)
            return
        assert self._deadline is not None
        self._deadline.cancel()
        self.transport.pause_reading()
        self._opening = asyncio.create_task(self._open(data))

    async def _open(self, first: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, back = await loop.create_unix_connection(_Side, self._ways[first[0] == _HANDSHAKE])
        except OSError:  # the server is stopping
            self.abort()
            return
        back.other, self.other = self, back
        back.transport.write(first)
        with contextlib.suppress(RuntimeError):  # the client has gone meanwhile
            self.transport.resume_reading()
        if self.transport.is_closing():
            back.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fronts.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)
