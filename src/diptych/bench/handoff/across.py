"""Between two processes: a whole handoff over each network transport, beside its own bare copy or transfer."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import numpy as np

from diptych.bench.handoff.setup import ROWS, TOKENS, Array, Rate, alternate
from diptych.bench.handoff.setup import rows as _rows
from diptych.bench.handoff.setup import write as _write
from diptych.errors import ConfigError
from diptych.handoff.landing import Landing
from diptych.handoff.ticket import Ticket
from diptych.handoff.transports import load, open_door
from diptych.handoff.transports.remote import FRAME_BYTES, Mover

_KEY = b"bench"


def across(landing: Landing, label: str, options: dict[str, Any], reasons: dict[str, str]) -> dict[str, Rate | None]:
    """Rates by name; None, with a reason, where the transport's library is not there."""
    name = label.partition("_")[0]
    limit = {"tcp": "socket", "nixl": "nixl_raw", "mooncake": "mooncake_raw"}[name]
    names = [label] if label == "tcp_clear" else [label, limit]
    try:
        door = open_door(name, landing, _KEY, **options)
    except ConfigError as error:
        reasons |= dict.fromkeys(names, str(error))
        return dict.fromkeys(names)
    try:
        with _child(_produce, name) as child:
            ways: dict[str, Callable[[], float | None]] = {label: lambda: _one_handoff(landing, child, door.via)}
            if limit == "socket":
                into = memoryview(np.ones(ROWS.region_bytes(TOKENS), np.uint8))  # type: ignore[arg-type]  # a buffer
                ways[limit] = lambda: _one_socket_copy(child, into)
                return {way: found for way, found in alternate(ways).items() if way in names}
            ticket = landing.offer("raw", ROWS, TOKENS, 600.0, door.via)
            ways[limit] = lambda: _ask(child, ("raw", ticket))
            rates = alternate(ways)
            landing.release(ticket.handoff_id)
            return {**rates}
    finally:
        door.close()


def _one_handoff(landing: Landing, child: Connection, via: tuple[str, str]) -> float:
    ticket = landing.offer("bench", ROWS, TOKENS, 600.0, via)
    seconds = _ask(child, ("handoff", ticket))
    landing.release(ticket.handoff_id)
    return seconds


def _one_socket_copy(child: Connection, into: memoryview) -> float:
    """The same bytes from the child through one plain TCP socket into memory here, which is warm as the landing is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        receiver = threading.Thread(target=_receive, args=(server, into))
        receiver.start()
        seconds = _ask(child, ("socket", server.getsockname()[1]))
        receiver.join()
    return seconds


def _receive(server: socket.socket, into: memoryview) -> None:
    connection, _ = server.accept()
    with connection:
        done = 0
        while done < len(into):
            done += connection.recv_into(into[done:])
        connection.sendall(b"!")


def _ask(child: Connection, task: tuple[str, Any]) -> float:
    child.send(task)
    return float(child.recv())


@contextmanager
def _child(target: Callable[[Connection, str], None], name: str) -> Iterator[Connection]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=target, args=(theirs, name))
    process.start()
    try:
        yield ours
        ours.send(None)
        process.join(20)
    finally:
        process.kill()
        process.join()


def _produce(parent: Connection, name: str) -> None:
    """The producer's process: does what it is asked and answers with the seconds that it took."""
    sender, rows = load(name, _KEY), _rows()
    flat = [array.reshape(-1).view(np.uint8) for plane in rows for array in plane]
    while (task := parent.recv()) is not None:
        what, argument = task
        started = time.perf_counter()
        if what == "handoff":
            writer = sender.open_writer(argument, ROWS)
            _write(writer.write, rows)
            writer.seal()
        elif what == "socket":
            _send(argument, flat)
        else:
            started = _write_raw(_mover_of(sender), argument)
        parent.send(time.perf_counter() - started)
    sender.close()


def _send(port: int, flat: list[Array]) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for array in flat:
            connection.sendall(array.data)
        connection.recv(1)


def _mover_of(sender: Any) -> Mover:
    mover: Mover = sender.transport.mover
    return mover


def _write_raw(mover: Mover, ticket: Ticket) -> float:
    """The library's own write of as many bytes from registered memory; returns when it began."""
    _, peer, base = msgspec.json.decode(ticket.address)
    buffer = _raw_buffer(mover, ticket.kv_bytes)
    met = mover.meet(peer)
    started = time.perf_counter()
    runs = [
        (buffer.ctypes.data + at, base + ticket.offset + at, min(FRAME_BYTES, ticket.kv_bytes - at))
        for at in range(0, ticket.kv_bytes, FRAME_BYTES)
    ]
    handle = mover.write(met, runs)
    while not mover.done(handle):
        time.sleep(0.0002)
    return started


_BUFFERS: dict[int, Array] = {}


def _raw_buffer(mover: Mover, size: int) -> Array:
    if id(mover) not in _BUFFERS:
        _BUFFERS[id(mover)] = np.ones(size, np.uint8)
        mover.register(_BUFFERS[id(mover)])
    return _BUFFERS[id(mover)]
