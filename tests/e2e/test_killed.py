"""kill -9 of any part, under load: it comes back, nothing hangs, nothing is wrong, nothing is left over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.conftest import learn, tiny_settings
from support.fleet import Fleet, proven, running, until
from support.likeness import Reference, same
from support.load import Asked, Load, ask, reference

pytestmark = pytest.mark.e2e

NUMBERS = range(20)
WORDS, OUTPUT = 40, 150
CLIENTS = 6
WITHIN_S = 5.0
RESUMED_S = 25.0  # a stream waits for its decode worker to be started again


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("victim"), tiny_settings(tiny_gguf, slots=8))
    learn(fleet)
    yield fleet
    fleet.stop()


@pytest.fixture(scope="module")
def references(victim: Fleet) -> dict[int, Reference]:
    return {number: reference(victim.url, number, WORDS, OUTPUT) for number in NUMBERS}


def check(asked: Asked, references: dict[int, Reference], *, gateway_lost: bool = False) -> None:
    """It ended with the whole right answer or with a clear error, and no token of it is wrong."""
    whole = asked.finish == "length"
    if gateway_lost:
        assert whole or asked.error or asked.broken, asked
    else:
        assert asked.broken is None, asked
        assert whole != bool(asked.error), asked
    if asked.error:
        assert asked.error["type"] == "server_error", asked
        assert "again" in asked.error["message"] or "lost" in asked.error["message"], asked
        assert asked.status in (200, 503), asked
    same(references[asked.number], asked.tokens, complete=whole)


def kill_under_load(fleet: Fleet, references: dict[int, Reference], name: str) -> list[Asked]:
    """What became of every request, before and after."""
    pid = fleet.pid(name)
    assert pid
    with Load(fleet.url, NUMBERS, WORDS, OUTPUT, CLIENTS) as load:
        until(lambda: len(load.done) >= CLIENTS, 30, "the load runs")
        os.kill(pid, signal.SIGKILL)
        until(lambda: fleet.pid(name) not in (0, pid), 30, f"{name} is started again")
        back_at = time.monotonic()
        until(
            lambda: sum(asked.finish == "length" and asked.began > back_at for asked in load.done) >= CLIENTS,
            30,
            "requests are answered again",
        )
    for asked in load.done:
        check(asked, references, gateway_lost=name == "gateway")
        within_s = WITHIN_S if name in {"prefill-0", "gateway"} else RESUMED_S
        assert asked.silence < within_s, f"nothing came for {asked.silence:.1f} s: {asked}"
    return load.done


def serves_disaggregated(fleet: Fleet, references: dict[int, Reference]) -> None:
    asked = ask(fleet.url, 0, WORDS, OUTPUT, pair=True)
    same(references[0], asked.tokens)
    assert proven(fleet.record(asked.request_id))


@pytest.mark.parametrize("name", ["prefill-0", "decode-0", "llama-server"])
def test_a_worker(victim: Fleet, references: dict[int, Reference], name: str) -> None:
    decode = victim.pid("decode-0")
    done = kill_under_load(victim, references, name)
    until(lambda: len(victim.health()["pairs"]) == 1, 10, "the pair is used again")
    serves_disaggregated(victim, references)
    records = {record["id"]: record for record in victim.records()}
    whole = [records[asked.request_id] for asked in done if asked.finish == "length"]
    assert sum(proven(record) for record in whole) >= CLIENTS
    if name != "prefill-0":
        assert not running(decode)
        assert len(list(victim.rundir.glob("decode-0/landing-*"))) == 1, "the old landing area is gone"


def test_the_gateway(victim: Fleet, references: dict[int, Reference]) -> None:
    """Its requests are lost with it; the workers notice and free what they held."""
    kill_under_load(victim, references, "gateway")
    with Load(victim.url, NUMBERS, WORDS, OUTPUT, 8) as load:
        until(lambda: len(load.done) >= 16, 30, "every slot is free again")
    serves_disaggregated(victim, references)


def test_everything_goes_with_the_supervisor(tmp_path: Path, tiny_gguf: Path) -> None:
    fleet = Fleet(tmp_path, tiny_settings(tiny_gguf, slots=8))
    with Load(fleet.url, NUMBERS, WORDS, OUTPUT, CLIENTS) as load:
        until(lambda: len(load.done) >= CLIENTS, 30, "the load runs")
        family = fleet.descendants()
        assert len(family) == 5
        fleet.stop(signal.SIGKILL)
        until(lambda: not any(map(running, family)), WITHIN_S, "every process has ended")
    left = sorted(str(path) for path in fleet.rundir.rglob("*")) if fleet.rundir.exists() else []
    assert not fleet.rundir.exists(), f"left in shared memory: {left}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(tmp_path: Path, tiny_gguf: Path, number: signal.Signals) -> None:
    fleet = Fleet(tmp_path, tiny_settings(tiny_gguf, slots=8))
    family = fleet.descendants()
    asked = ask(fleet.url, 0, WORDS, 8, pair=True)
    assert asked.finish == "length"
    began = time.monotonic()
    assert fleet.stop(number) == 0
    assert time.monotonic() - began < WITHIN_S
    assert not any(map(running, family))
    assert not fleet.rundir.exists()
    assert "Traceback" not in fleet.log


def test_a_signal_under_load(tmp_path: Path, tiny_gguf: Path) -> None:
    """Streams that take longer than the grace period end with an error event; then all ends in order."""
    fleet = Fleet(tmp_path, tiny_settings(tiny_gguf, slots=8))
    family = fleet.descendants()
    with Load(fleet.url, NUMBERS, WORDS, 2000, 8) as load:
        until(lambda: len(fleet.records()) >= 8, 10, "the load runs")
        assert fleet.stop() == 0
        until(lambda: not any(map(running, family)), 2, "every process has ended")
    for asked in load.done:
        assert asked.finish or asked.error or asked.broken, asked
    assert not fleet.rundir.exists()
