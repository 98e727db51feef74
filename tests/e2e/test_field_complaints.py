"""What users of other systems complain about most, each as a test that it does not happen here."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.conftest import learn, tiny_settings
from support.fleet import Fleet, proven, until
from support.likeness import same
from support.load import Asked, Load, ask, reference
from support.strikes import stop_for

pytestmark = pytest.mark.e2e

NUMBERS = range(5000, 5012)
WORDS, OUTPUT = 40, 60
MET_AGAIN_S = 5.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Iterator[Fleet]:
    running = Fleet(tmp_path_factory.mktemp("complaints"), tiny_settings(tiny_gguf, slots=8))
    learn(running)
    yield running
    running.stop()


@pytest.mark.parametrize("name", ["prefill-0", "decode-0"])
def test_no_hang_for_minutes_when_one_side_stands_still(fleet: Fleet, name: str) -> None:
    """sglang 36033 and 9726, aibrix 2289, llm-d 2433, dynamo 13088: here every request ends, and rightly."""
    references = {number: reference(fleet.url, number, WORDS, OUTPUT) for number in NUMBERS}
    with Load(fleet.url, NUMBERS, WORDS, OUTPUT, 4) as load:
        until(lambda: len(load.done) >= 4, 30, "the load runs")
        stop_for(fleet.pid(name), 8.0).join()
        count = len(load.done)
        until(lambda: len(load.done) >= count + 8, 30, "requests are answered again")
    for asked in load.done:
        assert asked.broken is None, asked
        assert (asked.finish == "length") != bool(asked.error), asked
        same(references[asked.number], asked.tokens, complete=asked.error is None)
        assert asked.silence < 30, asked


@pytest.mark.parametrize(("name", "other"), [("prefill-0", "decode-0"), ("decode-0", "prefill-0")])
def test_no_crash_of_the_other_side_when_a_peer_restarts(fleet: Fleet, name: str, other: str) -> None:
    """vllm 49238, nixl 1986: here the other side lives on, and meets the new one within seconds of its being up."""
    until(lambda: fleet.pid(name) and fleet.pid(other), 30, "both are there")
    lives, dies = fleet.pid(other), fleet.pid(name)
    socket = fleet.rundir / f"{name}.sock"
    before = socket.stat().st_ctime_ns
    os.kill(dies, signal.SIGKILL)
    until(lambda: socket.exists() and socket.stat().st_ctime_ns != before, 60, "it is up again")
    up = time.monotonic()
    until(lambda: fleet.pid(name) not in (0, dies), 30, "it is met again")
    assert time.monotonic() - up < MET_AGAIN_S
    assert fleet.pid(other) == lives
    asked = ask(fleet.url, 5100, WORDS, OUTPUT, pair=True)
    assert asked.finish == "length", asked
    assert proven(fleet.record(asked.request_id)), "the pair is used again"


def test_no_200_with_another_prompts_text(fleet: Fleet) -> None:
    """vllm 52234, 52617 and 52627, sglang 30233: regions are used again and again, under requests that come and go."""
    references = {number: reference(fleet.url, number, WORDS, OUTPUT) for number in NUMBERS}
    done: list[Asked] = []

    def client(first: int) -> None:
        mine = [NUMBERS[(first * 5 + turn) % len(NUMBERS)] for turn in range(12)]
        done.extend(ask(fleet.url, number, WORDS, OUTPUT, pair=True) for number in mine)

    threads = [threading.Thread(target=client, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(done) == 72
    for asked in done:
        assert asked.status == 200, asked
        same(references[asked.number], asked.tokens)
    counts = fleet.health()["handoffs"]
    ended = counts["admitted"] + sum(counts["recomputed"].values()) + sum(counts["failed"].values())
    assert counts["offered"] == ended > 0, counts
