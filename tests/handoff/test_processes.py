"""The other side is a process of its own: killed, stopped and let go on, at the worst moments."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from diptych.errors import DiptychError, StaleWrite
from diptych.handoff.contract import KVForm
from diptych.handoff.landing import Landing
from diptych.handoff.state import Deadlines
from diptych.handoff.transports import load, open_door

from .conftest import buffers, kv
from .test_transports import check, until

KEY = b"k"


def producer(parent: Connection, name: str, source: KVForm) -> None:
    """Writes one token after another, each only when it is told to; says what came of it."""
    sender = load(name, KEY)
    while (task := parent.recv()) is not None:
        ticket, seed = task
        writer = None
        try:
            writer = sender.open_writer(ticket, source)
            keys, values = kv(source, ticket.tokens, seed)
            for token in range(ticket.tokens):
                writer.write(token, [a[:, token : token + 1] for a in keys], [a[:, token : token + 1] for a in values])
                parent.send(token)
                if parent.recv() == "give up":
                    break
            parent.send(writer.seal())
        except DiptychError as error:
            if writer is not None:
                writer.abort()
            parent.send(type(error).__name__)
    sender.close()


@contextmanager
def process(name: str, source: KVForm) -> Iterator[tuple[Connection, int]]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=producer, args=(theirs, name, source))
    child.start()
    theirs.close()
    assert child.pid is not None
    try:
        yield ours, child.pid
    finally:
        child.kill()
        child.join()


def whole(child: Connection, ticket: object, seed: int) -> object:
    child.send((ticket, seed))
    while isinstance(answer := child.recv(), int):
        child.send("go on")
    return answer


@pytest.mark.parametrize("name", ["shm", "tcp"])
def test_a_stopped_writer_goes_on_when_its_region_is_anothers(
    landing: Landing, source: KVForm, target: KVForm, name: str
) -> None:
    door = open_door(name, landing, KEY)
    with process(name, source) as (stopped, pid), process(name, source) as (other, _):
        for round_ in range(20):
            first = landing.offer("first", target, 12, 30.0, door.via)
            stopped.send((first, 1))
            for _ in range(round_ % 12):
                stopped.recv()
                stopped.send("go on")
            os.kill(pid, signal.SIGSTOP)
            landing.fail(first.handoff_id, "stopped")
            second = landing.offer("second", target, 12, 30.0, door.via)
            assert second.offset == first.offset
            seal = whole(other, second, 100 + round_)
            os.kill(pid, signal.SIGCONT)
            while isinstance(answer := stopped.recv(), int):
                stopped.send("go on")
            assert answer == "StaleWrite"
            private = buffers(target, 12)
            landing.admit(second.handoff_id, seal, private)
            check(private, source, 12, 100 + round_)
            landing.release(second.handoff_id)
        stopped.send(None)
        other.send(None)
    assert landing.used_bytes == 0
    door.close()


@pytest.mark.parametrize("name", ["shm", "tcp"])
def test_a_killed_writer_is_noticed_by_its_deadline_and_leaves_nothing(
    directory: Path, source: KVForm, target: KVForm, name: str
) -> None:
    now = [0.0]
    landing = Landing(directory, 1 << 20, receiver="d", deadlines=Deadlines(streaming_s=2.0), clock=lambda: now[0])
    door = open_door(name, landing, KEY)
    with process(name, source) as (child, pid):
        ticket = landing.offer("r", target, 12, 30.0, door.via)
        child.send((ticket, 1))
        child.recv()
        if name == "shm":  # over tcp a frame leaves only when it is full
            until(lambda: landing.phase(ticket.handoff_id) == "streaming")
        os.kill(pid, signal.SIGKILL)
    now[0] = 31.0 if name == "tcp" else 2.1
    assert landing.expire() == [ticket.handoff_id]
    assert landing.used_bytes == 0
    with process(name, source) as (child, _):
        fresh = landing.offer("r", target, 12, 30.0, door.via)
        private = buffers(target, 12)
        landing.admit(fresh.handoff_id, whole(child, fresh, 5), private)
        check(private, source, 12, 5)
        child.send(None)
    door.close()
    landing.close()


def test_what_is_written_for_a_receiver_that_is_gone_reaches_nobody(
    directory: Path, source: KVForm, target: KVForm
) -> None:
    """A killed receiver cannot strike its epochs: its writers go on into memory that no one reads."""
    old = Landing(directory, 1 << 20, receiver="d")
    sender = load("shm", KEY)
    writer = sender.open_writer(old.offer("r", target, 12, 30.0), source)
    new = Landing(directory, 1 << 20, receiver="d")
    ticket = new.offer("r", target, 12, 30.0)
    writer.write(0, *kv(source, 12))
    with pytest.raises(StaleWrite):
        new.admit(ticket.handoff_id, writer.seal(), buffers(target, 12))
    assert not new.memory.any()
    sender.close()
    old.close()
    new.close()
