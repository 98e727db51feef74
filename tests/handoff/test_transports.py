"""One suite over all transports: what every one of them must do, and must refuse."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from diptych.errors import ConfigError, CorruptKV, DiptychError, HandoffError, StaleWrite, WorkerLost
from diptych.handoff import codecs
from diptych.handoff.contract import KVForm
from diptych.handoff.landing import Landing
from diptych.handoff.seal import Seal
from diptych.handoff.ticket import Ticket, sign
from diptych.handoff.transports import (
    Door,
    Sender,
    bulk,
    choose,
    fault,
    link,
    load,
    open_door,
    records,
    remote,
    tcp,
    wire,
)

from .conftest import buffers, chunks, kv

KEY = b"a fleet's key"
HARMLESS = fault.Faults(duplicate=0.2, reorder=0.2, delay=0.05)

# name -> (transport, options of its door, faults)
TRANSPORTS: dict[str, tuple[str, dict[str, object], fault.Faults | None]] = {
    "shm": ("shm", {}, None),
    "tcp": ("tcp", {}, None),
    "tcp in clear": ("tcp", {"encrypted": False}, None),
    "nixl": ("nixl", {}, None),
    "mooncake": ("mooncake", {}, None),
    "fault over shm": ("shm", {}, HARMLESS),
    "fault over tcp": ("tcp", {}, HARMLESS),
}


class Pair:
    """Both ends of one transport."""

    def __init__(self, name: str, landing: Landing) -> None:
        self.transport, options, faults = TRANSPORTS[name]
        self.landing = landing
        try:
            self.door: Door = open_door(self.transport, landing, KEY, **options)
            self.sender = load(self.transport, KEY)
        except ConfigError as error:
            landing.close()
            pytest.skip(str(error))
        if faults is not None:
            self.sender = Sender(fault.Transport(self.sender.transport, faults, seed=1))

    def offer(self, form: KVForm, tokens: int) -> Ticket:
        return self.landing.offer("r", form, tokens, 30.0, self.door.via)

    def hand_over(self, ticket: Ticket, source: KVForm, seed: int = 0, chunk: int = 5) -> Seal:
        keys, values = kv(source, ticket.tokens, seed)
        writer = self.sender.open_writer(ticket, source)
        for part in chunks(ticket.tokens, chunk):
            writer.write(part.start, [a[:, part] for a in keys], [a[:, part] for a in values])
        return writer.seal()

    def close(self) -> None:
        self.sender.close()
        self.door.close()


@pytest.fixture(params=sorted(TRANSPORTS))
def pair(request: pytest.FixtureRequest, landing: Landing) -> Iterator[Pair]:
    made = Pair(request.param, landing)
    yield made
    made.close()


def check(private: list[np.ndarray], source: KVForm, tokens: int, seed: int) -> None:
    keys, values = kv(source, tokens, seed)
    for layer in range(3):
        k, v = (codecs.decode(a[layer], source.keys).transpose(1, 0, 2).astype(np.float16) for a in (keys, values))
        rows = private[layer].reshape(-1).view(np.float16).reshape(tokens, 2, 8)
        np.testing.assert_array_equal(rows[..., 0::2], k[..., :4])
        np.testing.assert_array_equal(rows[..., 1::2], k[..., 4:])
        np.testing.assert_array_equal(private[3 + layer].reshape(-1).view(np.float16).reshape(tokens, 2, 8), v)


@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_what_is_written_is_what_is_admitted(pair: Pair, source: KVForm, target: KVForm, tokens: int) -> None:
    for seed in range(3):
        ticket = pair.offer(target, tokens)
        assert ticket.transport == pair.transport
        private = buffers(target, tokens)
        pair.landing.admit(ticket.handoff_id, pair.hand_over(ticket, source, seed), private)
        check(private, source, tokens, seed)
        pair.landing.release(ticket.handoff_id)
    assert pair.landing.counts == {"offered": 3, "admitted": 3}
    assert pair.landing.used_bytes == 0


def test_chunks_in_any_order(pair: Pair, source: KVForm, target: KVForm) -> None:
    ticket = pair.offer(target, 20)
    keys, values = kv(source, 20, 4)
    writer = pair.sender.open_writer(ticket, source)
    for part in [slice(15, 20), slice(0, 7), slice(7, 15)]:
        writer.write(part.start, [a[:, part] for a in keys], [a[:, part] for a in values])
    private = buffers(target, 20)
    pair.landing.admit(ticket.handoff_id, writer.seal(), private)
    check(private, source, 20, 4)


def test_progress_is_seen_while_it_streams(pair: Pair, source: KVForm, target: KVForm) -> None:
    big = pair.offer(target, 2000)
    keys, values = kv(source, 2000)
    writer = pair.sender.open_writer(big, source)
    assert pair.landing.phase(big.handoff_id) == "offered"
    writer.write(0, [a[:, :1990] for a in keys], [a[:, :1990] for a in values])
    writer.write(1990, [a[:, 1990:] for a in keys], [a[:, 1990:] for a in values])
    seal = writer.seal()
    assert pair.landing.phase(big.handoff_id) == "streaming"
    pair.landing.admit(big.handoff_id, seal, buffers(target, 2000))


def test_a_writer_that_gives_up_fails_the_handoff_at_the_receiver(pair: Pair, source: KVForm, target: KVForm) -> None:
    """sglang#36033, #9726: decode waited for 300 s after prefill had failed."""
    ticket = pair.offer(target, 20)
    keys, values = kv(source, 20)
    writer = pair.sender.open_writer(ticket, source)
    writer.write(0, [a[:, :10] for a in keys], [a[:, :10] for a in values])
    writer.abort()
    until(lambda: pair.landing.expire() == [ticket.handoff_id])
    assert pair.landing.counts["failed.given_up"] == 1


def test_a_receiver_that_gave_up_stops_the_writer(pair: Pair, source: KVForm, target: KVForm) -> None:
    ticket = pair.offer(target, 20)
    keys, values = kv(source, 20)
    writer = pair.sender.open_writer(ticket, source)
    pair.landing.fail(ticket.handoff_id, "decode_lost")
    with pytest.raises(StaleWrite):
        write_and_seal(writer, keys, values)
    writer.abort()
    # and the pair goes on
    after = pair.offer(target, 6)
    pair.landing.admit(after.handoff_id, pair.hand_over(after, source), buffers(target, 6))


def write_and_seal(writer, keys, values) -> None:
    writer.write(0, keys, values)
    writer.seal()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def refused(pair: Pair, ticket: Ticket, source: KVForm) -> None:
    before = dict(pair.landing.counts), pair.landing.used_bytes
    with pytest.raises(StaleWrite):
        pair.sender.open_writer(ticket, source)
    assert (dict(pair.landing.counts), pair.landing.used_bytes) == before


def test_replayed_and_finished_tickets_change_nothing(pair: Pair, source: KVForm, target: KVForm) -> None:
    ticket = pair.offer(target, 12)
    keys, values = kv(source, 12, 3)
    writer = pair.sender.open_writer(ticket, source)
    refused(pair, ticket, source)
    writer.write(0, keys, values)
    seal = writer.seal()
    private = buffers(target, 12)
    pair.landing.admit(ticket.handoff_id, seal, private)
    check(private, source, 12, 3)
    refused(pair, ticket, source)
    pair.landing.release(ticket.handoff_id)
    refused(pair, ticket, source)
    with pytest.raises(StaleWrite):
        pair.landing.admit(ticket.handoff_id, seal, private)


def test_another_handoffs_place_and_an_oversized_ticket_are_refused(pair: Pair, source: KVForm, target: KVForm) -> None:
    mine, other = pair.offer(target, 12), pair.offer(target, 12)
    refused(pair, msgspec.structs.replace(mine, kv_bytes=mine.kv_bytes * 2), source)
    refused(pair, msgspec.structs.replace(mine, offset=1 << 40), source)
    if pair.transport != "shm":  # there, whoever can sign can map the memory anyway
        refused(pair, msgspec.structs.replace(mine, offset=other.offset, slot=other.slot), source)
        refused(pair, msgspec.structs.replace(mine, tokens=13, kv_bytes=target.region_bytes(13)), source)
        refused(pair, msgspec.structs.replace(mine, handoff_id="0" * 24), source)
    for ticket in (mine, other):
        pair.landing.admit(ticket.handoff_id, pair.hand_over(ticket, source), buffers(target, 12))


def test_many_at_once_through_a_small_landing(pair: Pair, source: KVForm, target: KVForm) -> None:
    wrong: list[str] = []

    def client(seed: int) -> None:
        for turn in range(6):
            ticket = pair.offer(target, 30 + seed)
            try:
                seal = pair.hand_over(ticket, source, seed * 10 + turn, chunk=7)
                private = buffers(target, 30 + seed)
                pair.landing.admit(ticket.handoff_id, seal, private)
                check(private, source, 30 + seed, seed * 10 + turn)
                pair.landing.release(ticket.handoff_id)
            except (DiptychError, AssertionError) as error:
                wrong.append(f"{seed}.{turn}: {error!r}")

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert pair.landing.counts == {"offered": 30, "admitted": 30}


@pytest.mark.parametrize("name", sorted(TRANSPORTS))
def test_nothing_is_left_behind(name: str, directory: Path, source: KVForm, target: KVForm) -> None:
    def once() -> int:
        landing = Landing(directory, 1 << 20, receiver="d")
        pair = Pair(name, landing)
        ticket = pair.offer(target, 9)
        landing.admit(ticket.handoff_id, pair.hand_over(ticket, source), buffers(target, 9))
        pair.sender.open_writer(pair.offer(target, 9), source).abort()
        pair.close()
        landing.close()
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    first = once()
    threads = threading.active_count()
    assert [once() for _ in range(4)] == [first] * 4
    assert threading.active_count() == threads


# Corruption on the way


@pytest.mark.parametrize("inner", ["shm", "tcp"])
@pytest.mark.parametrize("kind", sorted(fault.ALTERING))
def test_altered_bytes_never_pass(inner: str, kind: str, landing: Landing, source: KVForm, target: KVForm) -> None:
    # The seed is a number, not a string's hash: that is another one in every process, and so was the count below.
    door = open_door(inner, landing, KEY)
    broken = fault.Transport(load(inner, KEY).transport, fault.Faults(**{kind: 0.02}), seed=11)
    sender, rng = Sender(broken), np.random.default_rng(5)
    for turn in range(60):
        tokens = int(rng.integers(1, 60))
        ticket = landing.offer("r", target, tokens, 30.0, door.via)
        keys, values = kv(source, tokens, turn)
        writer = sender.open_writer(ticket, source)
        for part in chunks(tokens, 20):
            writer.write(part.start, [a[:, part] for a in keys], [a[:, part] for a in values])
        private = buffers(target, tokens)
        seal = writer.seal()
        try:
            landing.admit(ticket.handoff_id, seal, private)
        except CorruptKV:
            assert ticket.handoff_id in broken.altered
            continue
        check(private, source, tokens, turn)
    counts = landing.counts
    assert counts["offered"] == 60 == counts["admitted"] + counts["failed.corrupt_kv"]
    assert 5 < counts["failed.corrupt_kv"] <= len(broken.altered)
    sender.close()
    door.close()


def test_cut_and_stall_fail_in_time_at_both_ends(landing: Landing, source: KVForm, target: KVForm) -> None:
    broken = fault.Transport(load("shm", KEY).transport, fault.Faults(cut=0.1), seed=2)
    sender = Sender(broken)
    ended = 0
    for turn in range(20):
        ticket = landing.offer("r", target, 9, 30.0)
        try:
            writer = sender.open_writer(ticket, source)
            write_and_seal(writer, *kv(source, 9, turn))
            landing.release(ticket.handoff_id)
        except WorkerLost:
            writer.abort()
            assert landing.expire() == [ticket.handoff_id]
            ended += 1
    assert 0 < ended == landing.counts["failed.given_up"]
    sender.close()


# TCP's own


class Proxy:
    """A TCP hop that can be cut: all connections through it close, new ones are taken again."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self.connections = 0
        self.seen = bytearray()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                thread = threading.Thread(target=self._pump, args=(one, other), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                self.seen += data
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):  # closing alone would not wake the other direction's thread, nor the far side
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def cut(self) -> None:
        with self._lock:
            for end in self._open:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
            self._open.clear()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()


def through(place: bulk.Place, proxy: Proxy) -> str:
    return msgspec.json.encode(msgspec.structs.replace(place, bulk=f"127.0.0.1:{proxy.port}")).decode()


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_cut_connection_is_resumed(
    landing: Landing, source: KVForm, target: KVForm, monkeypatch: pytest.MonkeyPatch, encrypted: bool
) -> None:
    monkeypatch.setattr(tcp, "FRAME_BYTES", 4096)
    monkeypatch.setattr(link, "RESEND_S", 0.2)
    door = open_door("tcp", landing, KEY, encrypted=encrypted)
    place = msgspec.json.decode(door.via[1], type=bulk.Place)
    proxy = Proxy(int(place.bulk.rpartition(":")[2]))
    sender = load("tcp", KEY)
    tokens = 2000
    ticket = landing.offer("r", target, tokens, 30.0, ("tcp", through(place, proxy)))
    keys, values = kv(source, tokens, 8)
    writer = sender.open_writer(ticket, source)
    for number, part in enumerate(chunks(tokens, 100)):
        writer.write(part.start, [a[:, part] for a in keys], [a[:, part] for a in values])
        if number % 5 == 2:
            proxy.cut()
    private = buffers(target, tokens)
    landing.admit(ticket.handoff_id, writer.seal(), private)
    check(private, source, tokens, 8)
    assert landing.counts == {"offered": 1, "admitted": 1}
    assert proxy.connections > link.CONNECTIONS, "it was never cut"
    sender.close()
    proxy.close()
    door.close()


def test_a_receiver_that_is_gone_is_told_in_time(
    landing: Landing, source: KVForm, target: KVForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aibrix#2289, llm-d#2433: the other side hung instead of failing."""
    monkeypatch.setattr(link, "LOST_S", 0.5)
    door, sender = open_door("tcp", landing, KEY), load("tcp", KEY)
    ticket, unmet = (landing.offer("r", target, 9, 30.0, door.via) for _ in range(2))
    writer = sender.open_writer(ticket, source)
    door.close()
    with pytest.raises(WorkerLost, match="acknowledged nothing"):
        write_and_seal(writer, *kv(source, 9))
    with pytest.raises(WorkerLost, match="no receiver"):
        sender.open_writer(unmet, source)
    sender.close()


def test_a_restarted_receiver_refuses_the_old_and_serves_the_new(
    directory: Path, source: KVForm, target: KVForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vllm#58063, smg#2382: after one side's restart the pair stayed wedged until the other restarted too."""
    monkeypatch.setattr(link, "LOST_S", 1.0)
    sender = load("tcp", KEY)
    old = Landing(directory, 1 << 20, receiver="d")
    door = open_door("tcp", old, KEY, encrypted=False)
    ticket = old.offer("r", target, 9, 30.0, door.via)
    writer = sender.open_writer(ticket, source)
    ports = [int(part.rpartition(":")[2]) for part in msgspec.json.decode(ticket.address)]
    door.close()
    old.close()
    new = Landing(directory, 1 << 20, receiver="d")
    again = tcp.Door(new, KEY, encrypted=False, port=ports[0], bulk_port=ports[1])
    with pytest.raises(StaleWrite, match="unknown or over"):
        write_and_seal(writer, *kv(source, 9))
    fresh = new.offer("r", target, 9, 30.0, again.via)
    assert fresh.address == ticket.address
    writer = sender.open_writer(fresh, source)
    writer.write(0, *kv(source, 9, 2))
    private = buffers(target, 9)
    new.admit(fresh.handoff_id, writer.seal(), private)
    check(private, source, 9, 2)
    sender.close()
    again.close()
    new.close()


def test_forged_expired_and_foreign_tickets_are_refused_once_and_logged(
    landing: Landing, source: KVForm, target: KVForm, caplog: pytest.LogCaptureFixture
) -> None:
    door = tcp.Door(landing, KEY)
    ticket = landing.offer("r", target, 9, 30.0, door.via)
    thief, honest = load("tcp", b"another key"), load("tcp", KEY)
    with pytest.raises(StaleWrite, match="signature"):
        thief.open_writer(ticket, source)
    with pytest.raises(StaleWrite, match="expired"):
        honest.open_writer(msgspec.structs.replace(ticket, expires_at=1.0), source)
    assert door.refused == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert landing.phase(ticket.handoff_id) == "offered"
    writer = honest.open_writer(ticket, source)
    writer.write(0, *kv(source, 9))
    landing.admit(ticket.handoff_id, writer.seal(), buffers(target, 9))
    thief.close()
    honest.close()
    door.close()


def record(session: int, seq: int, index: int, entry: wire.Entry, payload: bytes, key: bytes = b"") -> bytes:
    box = records.Box(key)
    made = np.empty(len(payload) + box.overhead, np.uint8)
    box.write(made, session, seq, index, entry, np.frombuffer(payload, np.uint8))
    return made.tobytes()


class Rogue:
    """Speaks to a door by hand: control, and one bulk connection a message."""

    def __init__(self, door: Door, ticket: Ticket) -> None:
        place = msgspec.json.decode(door.via[1], type=bulk.Place)
        endpoint, _, public = place.control.partition(" ")
        self._context = zmq.Context()
        self.control = self._context.socket(zmq.DEALER)
        self.control.linger = 0
        if public:
            self.control.curve_serverkey = public.encode()
            self.control.curve_publickey, self.control.curve_secretkey = zmq.curve_keypair()
        self.control.connect(endpoint)
        self._bulk = ("127.0.0.1", int(place.bulk.rpartition(":")[2]))
        self.say(wire.Hello(sign(ticket, KEY), b"n" * 12))
        welcome = self.hear()
        assert isinstance(welcome, wire.Welcome)
        self.session, self.key = welcome.session, welcome.key

    def say(self, message: wire.ToReceiver) -> None:
        self.control.send(wire.encode(message))

    def hear(self) -> wire.ToWriter:
        return wire.to_writer.decode(self.control.recv())

    def send(self, data: bytes) -> None:
        """On a connection of its own, which the door ends."""
        with socket.create_connection(self._bulk) as connection:
            connection.sendall(data)
            connection.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""

    def close(self) -> None:
        self.control.close()
        self._context.term()


@pytest.mark.parametrize("encrypted", [True, False])
def test_frames_that_make_no_sense_change_nothing(
    landing: Landing, source: KVForm, target: KVForm, encrypted: bool
) -> None:
    door = tcp.Door(landing, KEY, encrypted=encrypted)
    ticket = landing.offer("r", target, 9, 30.0, door.via)
    rogue = Rogue(door, ticket)
    before = landing._arena.data[ticket.offset : ticket.offset + ticket.kv_bytes].copy()
    one = target.images[0].size(1)
    good, session, key = wire.Entry(0, 0, 1), rogue.session, rogue.key
    bad = {
        "image": record(session, 0, 0, wire.Entry(6, 0, 1), b"x" * one, key),
        "image far off": record(session, 0, 0, wire.Entry((1 << 32) - 1, 0, 1), b"x" * one, key),
        "beyond": record(session, 0, 0, wire.Entry(0, 9, 1), b"x" * one, key),
        "too long": record(session, 0, 0, wire.Entry(0, 8, 2), b"x" * one * 2, key),
        "short": record(session, 0, 0, good, b"x" * (one - 1), key),
        "end with bytes": record(session, 0, 0, wire.Entry(0, 0, 0), b"x", key),
        "out of order": record(session, 0, 1, good, b"x" * one, key),
        "of nobody": record(session + 1, 0, 0, good, b"x" * one, key),
        "rubbish": os.urandom(200),
    }
    for data in bad.values():
        rogue.send(data)
    refused = len(bad)
    for rubbish in (b"", b"\xc1", os.urandom(100), b"\x93\xa5hello\xc4\x00"):
        rogue.control.send(rubbish)
    refused += 4
    rogue.say(wire.GiveUp(session + 2))
    rogue.say(wire.Ask(session + 3, (0,)))
    assert isinstance(rogue.hear(), wire.Over)
    refused += 1
    until(lambda: door.refused == refused)
    np.testing.assert_array_equal(landing._arena.data[ticket.offset : ticket.offset + ticket.kv_bytes], before)
    assert landing.phase(ticket.handoff_id) == "offered"
    rogue.say(wire.Ask(session, (0, 1)))
    assert rogue.hear() == wire.Ack(session, ())
    rogue.close()
    door.close()


def test_a_record_that_was_touched_on_the_way_is_not_taken(landing: Landing, source: KVForm, target: KVForm) -> None:
    """Every bit of a sealed record is covered: header, bytes and tag; and so is which record it is."""
    door = tcp.Door(landing, KEY)
    ticket = landing.offer("r", target, 9, 30.0, door.via)
    rogue = Rogue(door, ticket)
    size = target.images[0].size(1)
    sealed = record(rogue.session, 0, 0, wire.Entry(0, 0, 1), b"x" * size, rogue.key)
    end = record(rogue.session, 0, 1, wire.Entry(0, 0, 0), b"", rogue.key)
    flips = [*range(16, records.HEADER_BYTES, 4), records.HEADER_BYTES, len(sealed) - 17, len(sealed) - 1]
    for at in flips:
        touched = bytearray(sealed)
        touched[at] ^= 1
        rogue.send(bytes(touched) + end)
    rogue.send(record(rogue.session, 0, 0, wire.Entry(0, 0, 1), b"x" * size, b"k" * 16) + end)
    rogue.say(wire.Ask(rogue.session, (0,)))
    assert rogue.hear() == wire.Ack(rogue.session, ())
    until(lambda: door.refused == len(flips) + 1)
    rogue.close()
    door.close()


def test_bytes_on_the_wire_are_sealed(landing: Landing, source: KVForm, target: KVForm) -> None:
    door, sender = tcp.Door(landing, KEY), load("tcp", KEY)
    place = msgspec.json.decode(door.via[1], type=bulk.Place)
    proxy = Proxy(int(place.bulk.rpartition(":")[2]))
    ticket = landing.offer("r", target, 40, 30.0, ("tcp", through(place, proxy)))
    keys, values = ([np.full_like(array, 0x3F80) for array in plane] for plane in kv(source, 40))
    writer = sender.open_writer(ticket, source)
    writer.write(0, keys, values)
    landing.admit(ticket.handoff_id, writer.seal(), buffers(target, 40))
    assert proxy.seen
    assert np.float16(1.0).tobytes() * 16 not in bytes(proxy.seen)
    sender.close()
    proxy.close()
    door.close()


def test_a_bulk_connection_that_says_nothing_is_closed(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "FRESH_S", 0.2)
    monkeypatch.setattr(tcp, "STREAMS", 2)
    door = tcp.Door(landing, KEY)
    port = int(msgspec.json.decode(door.via[1], type=bulk.Place).bulk.rpartition(":")[2])
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    for connection in silent:
        connection.settimeout(30)
        assert connection.recv(1) == b""
        connection.close()
    assert door.refused == 3
    door.close()


def test_the_window_bounds_what_is_under_way() -> None:
    window = wire.Window(limit_bytes=100, resend_s=1.0, lost_s=5.0)
    assert window.empty
    window.sent(0, 60, 10.0)
    assert not window.full
    window.sent(1, 60, 10.5)
    assert window.full
    assert window.due(10.9) == []
    assert window.due(11.2) == [0]
    assert window.due(11.3) == []
    assert window.due(11.6) == [1]
    window.heard(11.8)
    assert window.acknowledged(1)
    assert not window.acknowledged(1)
    assert not window.full
    assert window.due(12.5) == [0]
    for second in (13.6, 14.7, 15.8):
        assert window.due(second) == [0]
    with pytest.raises(WorkerLost, match=r"5\.1 s"):
        window.due(16.9)
    window.heard(20.0)  # we were stopped for a while: that is not the receiver's silence
    window.due(20.0)
    assert window.due(50.0) == [0]
    window.lost([0, 7])
    assert window.due(12.6) == [0]
    assert window.acknowledged(0)
    assert window.due(100.0) == []
    window.sent(2, 10, 100.0)  # silence counts from the first frame under way
    assert window.due(100.9) == []


def test_names_and_choice() -> None:
    with pytest.raises(ConfigError, match="known: shm, nixl, mooncake, tcp"):
        load("pigeon")
    assert choose(["shm", "nixl", "tcp"], ["tcp", "nixl"]) == "nixl"
    with pytest.raises(ConfigError, match="no transport in common"):
        choose(["shm"], ["tcp"])
    assert issubclass(StaleWrite, HandoffError)


# Remote writes' own


class SlowPops(list):  # type: ignore[type-arg]
    """A list in which every thread meets every other between looking and taking."""

    def pop(self, *where: int) -> object:  # type: ignore[override]
        time.sleep(0.001)
        return super().pop(*where)


class NoMover:
    """Its transfers are done, or fail, when the test says so."""

    def __init__(self) -> None:
        self.ends: dict[str, bool] = {}

    def register(self, memory: np.ndarray) -> None:
        pass

    def done(self, handle: str) -> bool:
        if handle in self.ends and not self.ends.pop(handle):
            raise WorkerLost(handle)
        return handle == "ends well"

    def close(self) -> None:
        pass


def test_a_buffer_is_given_to_one_writer_at_a_time_and_is_large_enough() -> None:
    owner = remote.RemoteTransport(KEY, NoMover())  # type: ignore[arg-type]  # what it has is what is used
    owner._spare = SlowPops()
    in_use: set[int] = set()
    wrong: list[str] = []

    def writer(number: int) -> None:
        needed = remote.FRAME_BYTES + (number % 2) * 64  # two sizes: what is looked at must be what is taken
        try:
            for _ in range(20):
                buffer = owner.take_buffer(needed)
                if id(buffer) in in_use or buffer.nbytes < needed:
                    wrong.append(f"{number}: {buffer.nbytes} bytes for {needed}")
                in_use.add(id(buffer))
                time.sleep(0)
                in_use.discard(id(buffer))
                owner.give_buffer(buffer)
        except IndexError as error:
            wrong.append(f"{number}: {error}")

    threads = [threading.Thread(target=writer, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    owner.close()
    assert wrong == []


def test_a_buffer_whose_transfer_was_left_alone_is_not_anothers_before_its_end() -> None:
    """A writer that gives up does not stop the library, which reads the buffer's memory as long as it likes."""
    mover = NoMover()
    owner = remote.RemoteTransport(KEY, mover)  # type: ignore[arg-type]  # what it has is what is used
    first, second = owner.take_buffer(10), owner.take_buffer(10)
    owner.leave([("ends well later", first), ("fails", second)])
    mover.ends["fails"] = False
    third = owner.take_buffer(10)
    assert third is not first
    assert third is not second
    assert mover.ends == {}, "its end was not looked at"
    owner._left = [("ends well", buffer) for _, buffer in owner._left]
    assert owner.take_buffer(10) is first
    assert all(owner.take_buffer(10) is not used for used in (first, second, third))
    assert any(buffer is second for buffer in owner._made), "registered memory was freed"
    owner.close()
