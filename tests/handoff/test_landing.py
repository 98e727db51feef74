"""The gate: nothing reaches an engine but what its own producer wrote, all of it, in time."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from diptych.errors import ConfigError, CorruptKV, HandoffError, IncompatibleForms, LandingFull, StaleWrite
from diptych.handoff import codecs
from diptych.handoff.arena import Arena
from diptych.handoff.contract import KVForm, Tensor
from diptych.handoff.landing import Landing
from diptych.handoff.seal import Piece, Seal, make_seal
from diptych.handoff.state import Deadlines
from diptych.handoff.ticket import Ticket
from diptych.handoff.transports import Sender, load
from diptych.handoff.writer import Writer

from .conftest import buffers, chunks, kv


@pytest.fixture
def shm():
    transport = load("shm")
    yield transport
    transport.close()


def hand_over(shm: Sender, ticket: Ticket, source: KVForm, seed: int = 0, chunk: int = 4) -> Seal:
    keys, values = kv(source, ticket.tokens, seed)
    writer = shm.open_writer(ticket, source)
    for part in chunks(ticket.tokens, chunk):
        writer.write(part.start, [a[:, part] for a in keys], [a[:, part] for a in values])
    return writer.seal()


def write_and_seal(writer: Writer, start: int, keys: list[np.ndarray], values: list[np.ndarray]) -> None:
    """The rest of a handoff; its error may come with the write or with the seal."""
    writer.write(start, [a[:, start:] for a in keys], [a[:, start:] for a in values])
    writer.seal()


def k_rows(block: np.ndarray, tokens: int) -> np.ndarray:
    return block.reshape(tokens, -1).view(np.float16).reshape(tokens, 2, 8)


def test_from_one_cache_to_the_other(landing: Landing, shm: Sender, source: KVForm, target: KVForm) -> None:
    ticket = landing.offer("request-1", target, 10, 30.0)
    assert landing.phase(ticket.handoff_id) == "offered"
    seal = hand_over(shm, ticket, source, seed=1)
    assert landing.phase(ticket.handoff_id) == "streaming"
    private = buffers(target, 10)
    landing.admit(ticket.handoff_id, seal, private)
    keys, _ = kv(source, 10, 1)
    for layer in range(3):
        want = codecs.decode(keys[layer], BF16).transpose(1, 0, 2).astype(np.float16)
        np.testing.assert_array_equal(k_rows(private[layer], 10)[..., 0::2], want[..., :4])
    assert landing.phase(ticket.handoff_id) == "admitted"
    assert landing.used_bytes == 0
    landing.release(ticket.handoff_id)
    landing.release(ticket.handoff_id)
    assert landing.phase(ticket.handoff_id) is None
    assert landing.counts == {"offered": 1, "admitted": 1}


def test_strided_private_buffers(landing: Landing, shm: Sender, source: KVForm, target: KVForm) -> None:
    ticket = landing.offer("r", target, 6, 30.0)
    seal = hand_over(shm, ticket, source)
    image = np.zeros((6, 6, 40), np.uint8)
    landing.admit(ticket.handoff_id, seal, [image[layer, :, 4:36] for layer in range(6)])
    assert (image[:, :, :4] == 0).all()
    assert (image[:, :, 36:] == 0).all()
    assert image[:, :, 4:36].any(axis=(1, 2)).all()


def raw(landing: Landing, ticket: Ticket) -> np.ndarray:
    return landing._arena.data[ticket.offset : ticket.offset + ticket.kv_bytes]


def spoil_region(landing: Landing, ticket: Ticket, seal: Seal) -> Seal:
    raw(landing, ticket)[17] ^= 0x10
    return seal


def replace(**change: object) -> Callable[[Landing, Ticket, Seal], Seal]:
    return lambda landing, ticket, seal: msgspec.structs.replace(seal, **change)


def pieces(edit: Callable[[list[Piece]], list[Piece]]) -> Callable[[Landing, Ticket, Seal], Seal]:
    def spoil(landing: Landing, ticket: Ticket, seal: Seal) -> Seal:
        made = make_seal(seal.handoff_id, seal.epoch, seal.kv_bytes, edit(list(seal.pieces)))
        return msgspec.structs.replace(made, tokens=seal.tokens)

    return spoil


BF16 = Tensor(axes=("head", "token", "dim"), dtype="bf16")
CORRUPT = {
    "one bit flipped": spoil_region,
    "a token short": replace(tokens=9),
    "a byte short": replace(kv_bytes=1),
    "whole digest": replace(digest=b"\0" * 16),
    "gap": pieces(lambda p: [p[0], p[2]]),
    "overlap": pieces(lambda p: [p[0], p[1], Piece(6, 4, p[2].digest)]),
    "doubled": pieces(lambda p: [p[0], p[0], p[1], p[2]]),
    "one doubled, one left out": pieces(lambda p: [p[0], p[0], p[2]]),
    "one before the start": pieces(lambda p: [Piece(-4, 4, p[0].digest), p[1], p[2]]),
    "exchanged digests": pieces(lambda p: [Piece(0, 4, p[1].digest), Piece(4, 4, p[0].digest), p[2]]),
    "beyond the end": pieces(lambda p: [*p, Piece(10, 4, b"x" * 16)]),
    "empty": pieces(lambda p: []),
    "negative": pieces(lambda p: [Piece(0, 12, p[0].digest), Piece(12, -2, p[1].digest)]),
}


@pytest.mark.parametrize("spoil", CORRUPT.values(), ids=CORRUPT)
def test_corruption_is_refused(
    landing: Landing,
    shm: Sender,
    source: KVForm,
    target: KVForm,
    spoil: Callable[[Landing, Ticket, Seal], Seal],
) -> None:
    ticket = landing.offer("r", target, 10, 30.0)
    seal = spoil(landing, ticket, hand_over(shm, ticket, source))
    with pytest.raises(CorruptKV):
        landing.admit(ticket.handoff_id, seal, buffers(target, 10))
    assert landing.counts == {"offered": 1, "failed.corrupt_kv": 1}
    assert landing.used_bytes == 0
    with pytest.raises(StaleWrite):
        landing.admit(ticket.handoff_id, seal, buffers(target, 10))


def test_every_byte_counts(landing: Landing, shm: Sender, source: KVForm, target: KVForm) -> None:
    for position in range(0, target.region_bytes(3), 7):
        ticket = landing.offer("r", target, 3, 30.0)
        seal = hand_over(shm, ticket, source)
        raw(landing, ticket)[position] ^= 1 << position % 8
        with pytest.raises(CorruptKV):
            landing.admit(ticket.handoff_id, seal, buffers(target, 3))


def test_another_handoffs_seal_is_refused(landing: Landing, shm: Sender, source: KVForm, target: KVForm) -> None:
    mine, other = (landing.offer(name, target, 10, 30.0) for name in ("mine", "other"))
    hand_over(shm, mine, source, seed=1)
    foreign = hand_over(shm, other, source, seed=2)
    with pytest.raises(StaleWrite):
        landing.admit(mine.handoff_id, foreign, buffers(target, 10))
    landing.admit(other.handoff_id, foreign, buffers(target, 10))


def test_wrong_buffers_are_refused(landing: Landing, shm: Sender, source: KVForm, target: KVForm) -> None:
    ticket = landing.offer("r", target, 10, 30.0)
    with pytest.raises(CorruptKV):
        landing.admit(ticket.handoff_id, hand_over(shm, ticket, source), buffers(target, 10)[:-1])
    ticket = landing.offer("r", target, 10, 30.0)
    with pytest.raises(CorruptKV):
        landing.admit(ticket.handoff_id, hand_over(shm, ticket, source), buffers(target, 9))
    assert landing.used_bytes == 0


def test_a_late_write_into_a_reused_region_never_becomes_a_wrong_token(
    landing: Landing, shm: Sender, source: KVForm, target: KVForm
) -> None:
    """vllm#52234: after re-use of the memory a request got the previous prompt's answer, with HTTP 200."""
    first = landing.offer("first", target, 8, 30.0)
    late = shm.open_writer(first, source)
    keys, values = kv(source, 8, 1)
    late.write(0, [a[:, :4] for a in keys], [a[:, :4] for a in values])
    landing.fail(first.handoff_id, "prefill_lost")
    second = landing.offer("second", target, 8, 30.0)
    assert (second.offset, second.slot) == (first.offset, first.slot)
    seal = hand_over(shm, second, source, seed=2)
    with pytest.raises(StaleWrite):
        write_and_seal(late, 4, keys, values)
    private = buffers(target, 8)
    landing.admit(second.handoff_id, seal, private)
    want = codecs.decode(kv(source, 8, 2)[0][0], BF16).transpose(1, 0, 2).astype(np.float16)
    np.testing.assert_array_equal(k_rows(private[0], 8)[..., 0::2], want[..., :4])


def test_a_write_that_slips_past_the_epoch_is_caught_by_the_digest(
    landing: Landing, shm: Sender, source: KVForm, target: KVForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = landing.offer("first", target, 8, 30.0)
    late = shm.open_writer(first, source)
    landing.fail(first.handoff_id, "prefill_lost")
    second = landing.offer("second", target, 8, 30.0)
    seal = hand_over(shm, second, source, seed=2)
    late._channel._epoch = second.epoch  # it had looked before the epoch was struck out
    keys, values = kv(source, 8, 1)
    late.write(0, keys, values)
    late.seal()
    with pytest.raises(CorruptKV):
        landing.admit(second.handoff_id, seal, buffers(target, 8))


def test_a_writer_that_gives_up_is_noticed(landing: Landing, shm: Sender, source: KVForm, target: KVForm) -> None:
    ticket = landing.offer("r", target, 8, 30.0)
    writer = shm.open_writer(ticket, source)
    assert landing.expire() == []
    writer.abort()
    assert landing.expire() == [ticket.handoff_id]
    assert landing.counts["failed.given_up"] == 1
    later = landing.offer("r2", target, 8, 30.0)
    assert later.slot == ticket.slot
    writer._channel.close()
    writer._channel._row.give_up(ticket.epoch)  # a notice that comes too late is of another epoch
    assert landing.expire() == []
    landing.admit(later.handoff_id, hand_over(shm, later, source), buffers(target, 8))


def test_a_replayed_ticket_is_refused(landing: Landing, shm: Sender, source: KVForm, target: KVForm) -> None:
    ticket = landing.offer("r", target, 8, 30.0)
    writer = shm.open_writer(ticket, source)
    with pytest.raises(StaleWrite, match="already"):
        shm.open_writer(ticket, source)
    writer.write(0, *kv(source, 8))
    landing.admit(ticket.handoff_id, writer.seal(), buffers(target, 8))
    with pytest.raises(StaleWrite, match="over"):
        shm.open_writer(ticket, source)


def test_full_then_room_again(landing: Landing, target: KVForm) -> None:
    per_token = target.bytes_per_token
    tokens = landing.capacity_bytes // per_token // 4
    tickets = [landing.offer(str(i), target, tokens, 30.0) for i in range(4)]
    with pytest.raises(LandingFull):
        landing.offer("too much", target, tokens, 30.0)
    landing.release(tickets[1].handoff_id)
    landing.release(tickets[2].handoff_id)
    big = landing.offer("two gaps in one", target, 2 * tokens - 4096 // per_token, 30.0)
    assert big.offset == tickets[1].offset
    with pytest.raises(IncompatibleForms):
        landing.offer("never", target, landing.capacity_bytes // per_token + 1, 30.0)
    with pytest.raises(IncompatibleForms):
        landing.offer("nothing", target, 0, 30.0)


def test_regions_never_overlap_under_random_use(landing: Landing, target: KVForm) -> None:
    rng = np.random.default_rng(3)
    held: list[Ticket] = []
    for step in range(2000):
        if held and rng.random() < 0.45:
            landing.release(held.pop(int(rng.integers(len(held)))).handoff_id)
        else:
            try:
                held.append(landing.offer(str(step), target, int(rng.integers(1, 400)), 30.0))
            except LandingFull:
                continue
        spans = sorted((t.offset, t.offset + t.kv_bytes) for t in held)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        assert len({t.slot for t in held}) == len(held)
    epochs = [t.epoch for t in held]
    assert len(set(epochs)) == len(epochs)
    for ticket in held:
        landing.release(ticket.handoff_id)
    assert landing.used_bytes == 0


def test_deadlines_by_phase(directory: Path, shm: Sender, source: KVForm, target: KVForm) -> None:
    now = [100.0]
    landing = Landing(
        directory,
        1 << 20,
        receiver="d",
        deadlines=Deadlines(offered_s=2, streaming_s=5, sealed_s=3, admitted_s=50),
        clock=lambda: now[0],
    )
    silent = landing.offer("silent", target, 8, 30.0)
    stalls = landing.offer("stalls", target, 8, 30.0)
    keys, values = kv(source, 8)
    writer = shm.open_writer(stalls, source)
    writer.write(0, [a[:, :4] for a in keys], [a[:, :4] for a in values])
    while landing._arena.row(stalls.slot).tokens != 4:
        pass
    assert landing.expire() == []
    now[0] = 102.5
    assert landing.expire() == [silent.handoff_id]
    now[0] = 104.9
    assert landing.expire() == []
    now[0] = 105.1
    assert landing.expire() == [stalls.handoff_id]
    assert landing.counts["failed.offered_deadline"] == landing.counts["failed.streaming_deadline"] == 1
    with pytest.raises(StaleWrite):
        write_and_seal(writer, 4, keys, values)
    landing.close()


def test_the_directory_must_be_private(directory: Path) -> None:
    directory.chmod(0o755)
    with pytest.raises(ConfigError, match="0700"):
        Landing(directory, 1 << 20, receiver="d")
    directory.chmod(0o700)


def test_more_memory_than_there_is(directory: Path) -> None:
    with pytest.raises(ConfigError, match="shared memory"):
        Landing(directory, 1 << 50, receiver="d")


def test_a_killed_owners_arena_is_swept_and_a_living_one_is_not(directory: Path) -> None:
    code = (
        "import sys, pathlib, os, signal\n"
        "from diptych.handoff.arena import Arena\n"
        "arena = Arena.create(pathlib.Path(sys.argv[1]), 4096)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(directory)], env=environment, check=False)
    assert len(list(directory.iterdir())) == 1
    arena = Arena.create(directory, 4096)
    assert [arena.path] == list(directory.iterdir())
    second = Arena.create(directory, 4096)
    assert len(list(directory.iterdir())) == 2
    arena.close(remove=True)
    second.close(remove=True)


def test_a_receiver_that_restarted_is_noticed(directory: Path, shm: Sender, source: KVForm, target: KVForm) -> None:
    """nixl#1986, vllm#49238: a stale mapping of a restarted peer crashed the other side."""
    old = Landing(directory, 1 << 20, receiver="d")
    before = old.offer("r", target, 8, 30.0)
    hand_over(shm, before, source)
    old.close()
    with pytest.raises(StaleWrite, match="gone"):
        shm.open_writer(before, source)
    new = Landing(directory, 1 << 20, receiver="d")
    ticket = new.offer("r", target, 8, 30.0)
    new.admit(ticket.handoff_id, hand_over(shm, ticket, source), buffers(target, 8))
    new.close()
    assert list(shm.transport._arenas) == [ticket.address]


def test_a_ticket_that_lies_about_its_place(landing: Landing, shm: Sender, source: KVForm, target: KVForm) -> None:
    ticket = landing.offer("r", target, 8, 30.0)
    lies = [
        {"offset": landing.capacity_bytes},
        {"kv_bytes": ticket.kv_bytes + 1},
        {"slot": 5000},
        {"offset": -4096},
    ]
    for lie in lies:
        with pytest.raises(StaleWrite, match="does not fit"):
            shm.open_writer(msgspec.structs.replace(ticket, **lie), source)


def test_threads_hand_over_distinct_kv_through_too_small_an_arena(
    directory: Path, shm: Sender, source: KVForm, target: KVForm
) -> None:
    landing = Landing(directory, 5 * target.region_bytes(40), receiver="d")
    wrong: list[str] = []

    def client(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for turn in range(15):
            tokens = int(rng.integers(1, 40))
            while True:
                try:
                    ticket = landing.offer(f"{seed}.{turn}", target, tokens, 30.0)
                    break
                except LandingFull:
                    continue
            try:
                seal = hand_over(shm, ticket, source, seed * 100 + turn, chunk=int(rng.integers(1, 20)))
                if rng.random() < 0.2:
                    landing.release(ticket.handoff_id)
                    continue
                private = buffers(target, tokens)
                landing.admit(ticket.handoff_id, seal, private)
                landing.release(ticket.handoff_id)
            except HandoffError as error:
                wrong.append(str(error))
                continue
            values = kv(source, tokens, seed * 100 + turn)[1]
            want = codecs.decode(values[2], BF16).transpose(1, 0, 2).astype(np.float16)
            if not np.array_equal(k_rows(private[5], tokens), want):
                wrong.append(f"{seed}.{turn} got another's KV")

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    counts = landing.counts
    assert counts["offered"] == 90 == counts["admitted"] + counts["released"]
    assert landing.used_bytes == 0
    landing.close()
