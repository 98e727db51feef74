"""ZeroMQ sockets driven by asyncio's reader callbacks: no task and no future per message.

A ZeroMQ descriptor signals edges, not levels: after any send or receive the socket may hold messages that no
further edge announces. So both ends drain until empty, and look again after a send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq
from zmq.utils.monitor import parse_monitor_message


class Wire:
    """One socket: ``on_frames`` is called with each message's frames; :meth:`send` never blocks."""

    def __init__(self, socket: zmq.Socket[bytes], on_frames: Callable[[list[bytes]], None]) -> None:
        self._socket = socket
        self._closed = False
        self._receive = self._one_frame if socket.type == zmq.DEALER else self._all_frames
        self._on_frames = on_frames
        self._loop = asyncio.get_running_loop()
        self._fd = int(socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._drain)
        self._loop.call_soon(self._drain)

    def send(self, *frames: bytes) -> bool:
        """Queues a message. False when the peer is not there or cannot take more."""
        if self._closed:
            return False
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=True)
            sent = True
        except zmq.ZMQError:  # EAGAIN: no peer or full; EHOSTUNREACH: that identity is gone
            sent = False
        # a send that failed has taken the edge as well: the client may be back under another identity
        if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self._drain)
        return sent

    def _drain(self) -> None:
        receive, on_frames = self._receive, self._on_frames
        while not self._closed:
            try:
                frames = receive()
            except zmq.Again:
                return
            on_frames(frames)

    def _one_frame(self) -> list[bytes]:
        """A message to a DEALER is one frame here; asking whether there are more costs four times the receiving."""
        return [self._socket.recv(zmq.NOBLOCK)]

    def _all_frames(self) -> list[bytes]:
        return self._socket.recv_multipart(zmq.NOBLOCK)

    def close(self) -> None:
        """Stops reading and drops what is not sent. Idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self._socket.close(linger=0)


class Watch:
    """Calls ``on_disconnect`` when the socket's peer goes away."""

    def __init__(self, socket: zmq.Socket[bytes], on_disconnect: Callable[[], None]) -> None:
        self._on_disconnect = on_disconnect
        self._socket = socket
        self._wire = Wire(socket.get_monitor_socket(zmq.EVENT_DISCONNECTED), self._on_event)

    def _on_event(self, frames: list[bytes]) -> None:
        if parse_monitor_message(frames)["event"] == zmq.EVENT_DISCONNECTED:
            self._on_disconnect()

    def close(self) -> None:
        """Stops watching; call before the socket is closed. Idempotent."""
        if not self._socket.closed:
            self._socket.disable_monitor()
        self._wire.close()
