"""Every transport under pressure: no room at the receiver, a receiver that stands still, a cut inside a piece, a
writer that dies between two of them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import numpy as np
import pytest

from diptych.errors import ConfigError, LandingFull, WorkerLost
from diptych.handoff.contract import KVForm
from diptych.handoff.landing import Landing
from diptych.handoff.state import Deadlines
from diptych.handoff.ticket import Ticket
from diptych.handoff.transports import bulk, door, link, load, open_door, remote, tcp
from diptych.handoff.writer import Channel

from .conftest import buffers, chunks, kv
from .test_transports import KEY, Pair, Proxy, check, through, until

NAMES = ["shm", "tcp", "tcp in clear", "nixl", "mooncake"]
NETWORK = [name for name in NAMES if name != "shm"]
PIECE = {"shm": 1_000, "tcp": 8_000, "nixl": 30_000, "mooncake": 30_000}
"""Tokens of more than a frame, so that a piece is on its way before the next is written."""


@pytest.fixture(params=NAMES)
def pair(request: pytest.FixtureRequest, landing: Landing) -> Iterator[Pair]:
    made = Pair(request.param, landing)
    yield made
    made.close()


def test_a_full_landing_says_so_and_hurts_no_handoff_under_way(pair: Pair, source: KVForm, target: KVForm) -> None:
    tokens = pair.landing.capacity_bytes // 4 // target.region_bytes(1)
    keys, values = kv(source, tokens, 1)
    held: list[Ticket] = []
    with contextlib.suppress(LandingFull):
        while len(held) < 9:
            held.append(pair.offer(target, tokens))
    assert 3 <= len(held) <= 4
    writer = pair.sender.open_writer(held[0], source)
    for part in chunks(tokens, tokens // 3):
        writer.write(part.start, [a[:, part] for a in keys], [a[:, part] for a in values])
        with pytest.raises(LandingFull):
            pair.offer(target, tokens)
    private = buffers(target, tokens)
    pair.landing.admit(held[0].handoff_id, writer.seal(), private)
    check(private, source, tokens, 1)
    pair.landing.release(held[0].handoff_id)
    next_one = pair.offer(target, tokens)
    assert next_one.offset == held[0].offset
    pair.landing.admit(next_one.handoff_id, pair.hand_over(next_one, source, 2, chunk=500), private)
    check(private, source, tokens, 2)


@pytest.mark.parametrize("name", NETWORK)
def test_a_receiver_that_stands_still_holds_the_writer_back(
    name: str, landing: Landing, source: KVForm, target: KVForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is to feel it (``ready``), the writer keeps no more than its window, and both go on afterwards."""
    for module in (tcp, remote):
        monkeypatch.setattr(module, "FRAME_BYTES", 1 << 14)
        monkeypatch.setattr(module._Channel, "window_bytes", 1 << 16)
    going = threading.Event()
    going.set()
    round_ = door.SocketDoor._round
    monkeypatch.setattr(door.SocketDoor, "_round", lambda self: (going.wait(), round_(self)))
    pair = Pair(name, landing)
    tokens = 4000
    keys, values = kv(source, tokens, 3)
    ticket = pair.offer(target, tokens)
    writer = pair.sender.open_writer(ticket, source)
    going.clear()
    parts = list(chunks(tokens, 400))
    written = 0
    while writer.ready and written < len(parts):
        part = parts[written]
        writer.write(part.start, [a[:, part] for a in keys], [a[:, part] for a in values])
        written += 1
        until(lambda: writer._queue.empty() or writer._channel._window.full)
    until(lambda: not writer.ready or written == len(parts))
    assert written < len(parts), "nothing held it back"
    window = writer._channel._window
    assert window._bytes < (1 << 16) + (2 << 14), "more is kept than the window allows"
    assert writer.error is None
    going.set()
    for part in parts[written:]:
        writer.write(part.start, [a[:, part] for a in keys], [a[:, part] for a in values])
    private = buffers(target, tokens)
    landing.admit(ticket.handoff_id, writer.seal(), private)
    check(private, source, tokens, 3)
    pair.close()


class CutInside:
    """A channel that is cut after some images of a piece, before its last."""

    def __init__(self, inner: Channel, puts: int) -> None:
        self._inner, self._left = inner, puts

    def put(self, image: int, token_start: int, tokens: int, staged: np.ndarray) -> None:
        if not self._left:
            raise WorkerLost("cut")
        self._left -= 1
        self._inner.put(image, token_start, tokens, staged)

    def finish(self) -> None:
        self._inner.finish()

    def close(self) -> None:
        self._inner.close()


@pytest.mark.parametrize("whole_pieces", [0, 1])
def test_a_cut_inside_a_piece_fails_at_both_ends_and_leaves_the_place_usable(
    pair: Pair, source: KVForm, target: KVForm, whole_pieces: int
) -> None:
    keys, values = kv(source, 1200, 1)
    for images in range(1, len(target.images)):
        ticket = pair.offer(target, 1200)
        writer = pair.sender.open_writer(ticket, source)
        writer._channel = CutInside(writer._channel, whole_pieces * len(target.images) + images)
        writer.write(0, [a[:, :600] for a in keys], [a[:, :600] for a in values])
        with pytest.raises(WorkerLost, match="cut"):  # noqa: PT012  either call may be told first
            writer.write(600, [a[:, 600:] for a in keys], [a[:, 600:] for a in values])
            writer.seal()
        writer.abort()
        until(lambda offered=ticket: pair.landing.expire() == [offered.handoff_id])  # type: ignore[misc]
        pair.landing.release(ticket.handoff_id)
        assert pair.landing.used_bytes == 0
    again = pair.offer(target, 1200)
    private = buffers(target, 1200)
    pair.landing.admit(again.handoff_id, pair.hand_over(again, source, 7, chunk=600), private)
    check(private, source, 1200, 7)
    assert pair.landing.counts["failed.given_up"] == len(target.images) - 1


class ShortProxy(Proxy):
    """Lets so many bytes through to the receiver, not one more, and cuts everything; afterwards it is a plain one."""

    def __init__(self, port: int, after: int) -> None:
        self._after: int | None = after
        super().__init__(port)

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        super()._pump(_Limited(self, one), other)  # type: ignore[arg-type]  # what _pump uses of a socket


class _Limited:
    def __init__(self, proxy: ShortProxy, inner: socket.socket) -> None:
        self._proxy, self._inner = proxy, inner

    def recv(self, size: int) -> bytes:
        data = self._inner.recv(size)
        left = self._proxy._after
        if left is None:
            return data
        self._proxy._after = left - len(data)
        if left > len(data):
            return data
        self._proxy._after = None
        threading.Timer(0.05, self._proxy.cut).start()
        return data[:left]

    def shutdown(self, how: int) -> None:
        self._inner.shutdown(how)

    def close(self) -> None:
        self._inner.close()


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize("after", [1, 20, 36, 37, 5_000, 9_000, 100_001])
def test_a_connection_cut_inside_a_record_is_resumed(
    landing: Landing, source: KVForm, target: KVForm, monkeypatch: pytest.MonkeyPatch, encrypted: bool, after: int
) -> None:
    """In a header, at its end, in a record's bytes, in its tag: half a record is never taken for one."""
    monkeypatch.setattr(tcp, "FRAME_BYTES", 1 << 14)
    monkeypatch.setattr(link, "RESEND_S", 0.2)
    opened = open_door("tcp", landing, KEY, encrypted=encrypted)
    place = msgspec.json.decode(opened.via[1], type=bulk.Place)
    proxy = ShortProxy(int(place.bulk.rpartition(":")[2]), after)
    sender = load("tcp", KEY)
    ticket = landing.offer("r", target, 1000, 30.0, ("tcp", through(place, proxy)))
    keys, values = kv(source, 1000, after)
    writer = sender.open_writer(ticket, source)
    for part in chunks(1000, 250):
        writer.write(part.start, [a[:, part] for a in keys], [a[:, part] for a in values])
    private = buffers(target, 1000)
    landing.admit(ticket.handoff_id, writer.seal(), private)
    check(private, source, 1000, after)
    assert proxy._after is None, "it was never cut"
    sender.close()
    proxy.close()
    opened.close()


def pieces(parent: Connection, name: str, source: KVForm) -> None:
    """Writes three pieces, each when it is told to."""
    sender = load(name, KEY)
    ticket, seed = parent.recv()
    keys, values = kv(source, ticket.tokens, seed)
    writer = sender.open_writer(ticket, source)
    for part in chunks(ticket.tokens, PIECE[name]):
        writer.write(part.start, [a[:, part] for a in keys], [a[:, part] for a in values])
        parent.send("written")
        parent.recv()
    parent.send(writer.seal())
    parent.recv()


@pytest.mark.parametrize("name", ["shm", "tcp", "nixl", "mooncake"])
def test_a_writer_that_dies_between_pieces_leaves_nothing(
    directory: Path, source: KVForm, target: KVForm, name: str
) -> None:
    now, tokens = [0.0], 3 * PIECE[name]
    size = target.region_bytes(tokens) + 4096
    landing = Landing(directory, size, receiver="d", deadlines=Deadlines(streaming_s=2.0), clock=lambda: now[0])
    try:
        opened = open_door(name, landing, KEY)
    except ConfigError as error:
        landing.close()
        pytest.skip(str(error))
    spawn = multiprocessing.get_context("spawn")
    private = buffers(target, tokens)
    for seed, dies in ((1, True), (2, False)):
        ours, theirs = spawn.Pipe()
        child = spawn.Process(target=pieces, args=(theirs, name, source))
        child.start()
        ticket = landing.offer("r", target, tokens, 60.0, opened.via)
        ours.send((ticket, seed))
        assert ours.recv() == "written"
        if dies:
            ours.send("go on")
            assert ours.recv() == "written"
            if name in {"shm", "tcp"}:  # the others tell of what has landed when somebody waits for it
                until(lambda: landing.phase(ticket.handoff_id) == "streaming")  # noqa: B023  asked in this round
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            now[0] = 61.0
            assert landing.expire() == [ticket.handoff_id]
            assert landing.used_bytes == 0
            with pytest.raises(LandingFull):
                [landing.offer("r", target, tokens, 60.0, opened.via) for _ in range(2)]
            landing.fail(next(iter(landing._handoffs)), "only asked")
        else:
            for _ in range(2):
                ours.send("go on")
                assert ours.recv() == "written"
            ours.send("go on")
            landing.admit(ticket.handoff_id, ours.recv(), private)
            check(private, source, tokens, seed)
            ours.send(None)
        child.join()
    assert landing.counts["admitted"] == 1
    opened.close()
    landing.close()
