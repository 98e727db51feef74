"""The fault matrix: {prefill, decode, gateway} x phases of a handoff x {kill, stop, cut, restart}, under load.

Each strike falls while some request stands still at that very phase (support/trapped.py). Every request ends with the
whole right answer or a clear error, in time; and afterwards nothing is held that was not held before.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from rich.table import Table

from e2e.conftest import learn, tiny_settings
from support.fleet import Fleet, open_files, until
from support.likeness import same
from support.load import Asked, Load, chat_body, question, reference
from support.strikes import cut, stop_for
from support.trapped import PHASES

pytestmark = pytest.mark.e2e

VICTIMS = ("prefill", "decode", "gateway")
ACTIONS = ("kill", "stop", "cut", "restart")
NUMBERS = range(3000, 3024)
WORDS, OUTPUT, CLIENTS = 40, 80, 3
LEAST_MINUTES = 60.0
Cell = tuple[str, str, str]


class Rig:
    """A fleet of one prefill and two decode workers that can be stopped at a phase, and what it answers undisturbed."""

    def __init__(self, folder: Path, gguf: Path, deadlines: str, stop_s: float, silence_s: float) -> None:
        """``silence_s``: for how long at most a client may hear nothing."""
        self.stop_s, self.silence_s = stop_s, silence_s
        self.traps = folder / "traps"
        self.traps.mkdir()
        one = tiny_settings(gguf, slots=4)
        two = '\n[[decode]]\nid = "decode-1"\nslots = 4\nn_batch = 4\n'
        settings = f"{one}{two}{deadlines}".replace("[[prefill]]", "[[prefill]]\nchunk_tokens = 64")
        tests = Path(__file__).parent.parent
        path = os.pathsep.join([str(tests.parent / "src"), str(tests)])
        self.fleet = Fleet(folder, settings, self._program(), PYTHONPATH=path, TRAPS=str(self.traps))
        learn(self.fleet)
        self.references = {number: reference(self.fleet.url, number, WORDS, OUTPUT) for number in NUMBERS}
        self.done: list[tuple[Cell, Asked]] = []
        self.struck: Counter[Cell] = Counter()

    @staticmethod
    def _program() -> list[str]:
        return [sys.executable, "-m", "support.trapped"]

    def whole(self) -> bool:
        health = self.fleet.health()
        return len(health.get("pairs", ())) == 2 and all(one["alive"] for one in health["workers"].values())

    def strike(self, cell: Cell) -> None:
        """One round: some request of the load reaches the phase, and there the victim is struck."""
        victim, phase, action = cell
        until(self.whole, 60, "the fleet is whole")
        before = time.monotonic()
        with Load(self.fleet.url, NUMBERS, WORDS, OUTPUT, CLIENTS, first=sum(self.struck.values()) * CLIENTS) as load:
            until(lambda: len(load.done) >= 1, 30, "the load runs")
            caught = self._catch(phase)
            name = caught if victim == "decode" and caught.startswith("decode") else f"{victim}-0"
            waits = self._do(victim, self.fleet.pid("gateway" if victim == "gateway" else name), name, action)
            (self.traps / f"{phase}.caught").unlink(missing_ok=True)
            if waits is not None:
                waits.join()
            until(self.whole, 60, f"the fleet is whole again after {cell}")
            back = time.monotonic()
            until(
                lambda: sum(one.finish == "length" and one.began > back for one in list(load.done)) >= CLIENTS,
                60,
                f"requests are answered again after {cell}",
            )
        self.struck[cell] += 1
        self.done += [(cell, asked) for asked in load.done]
        print(f"{cell}: {len(load.done)} requests, {time.monotonic() - before:.1f} s", flush=True)
        for asked in load.done:
            self.check(cell, asked)

    def _catch(self, phase: str) -> str:
        (self.traps / phase).touch()
        caught = self.traps / f"{phase}.caught"
        until(lambda: caught.exists() and caught.read_text(), 30, f"a request reaches {phase}")
        return caught.read_text()

    def _do(self, victim: str, pid: int, name: str, action: str) -> threading.Thread | None:
        if action == "stop":
            return stop_for(pid, self.stop_s)
        if action == "cut":
            return self._cut(victim, pid, name)
        os.kill(pid, signal.SIGKILL if action == "kill" else signal.SIGTERM)
        key = "gateway" if victim == "gateway" else name
        until(lambda: self.fleet.pid(key) not in (0, pid), 60, f"{key} is started again")
        return None

    def _cut(self, victim: str, pid: int, name: str) -> None:
        """The gateway's connections are its clients'; a worker's is the gateway's."""
        if victim != "gateway":
            assert cut(pid, self.fleet.rundir / f"{name}.sock") > 0, "there was a connection to cut"
            return
        body = chat_body(question(4000, WORDS), 2000, pair=True)
        with httpx.stream("POST", f"{self.fleet.url}/v1/chat/completions", json=body, timeout=30) as answer:
            assert answer.status_code == 200

    def check(self, cell: Cell, asked: Asked) -> None:
        """The whole right answer, or a clear error; no token of anybody else's, no silence, nothing half said."""
        gateway_went = cell[0] == "gateway" and cell[2] in {"kill", "restart"}
        right = asked.finish == "length"
        if not gateway_went:
            assert asked.broken is None, (cell, asked)
        assert right or asked.error or asked.broken, (cell, asked)
        if asked.error:
            assert asked.error["message"], (cell, asked)
            assert asked.status in (200, 503, 500), (cell, asked)
        same(self.references[asked.number], asked.tokens, complete=right)
        assert asked.silence < self.silence_s, f"{cell}: nothing came for {asked.silence:.1f} s: {asked}"

    def levels(self) -> dict[str, Any]:
        """What is held while nothing is asked."""
        until(self.whole, 60, "the fleet is whole")
        workers = ("prefill-0", "decode-0", "decode-1")
        held: dict[str, Any] = {}
        for name in workers:
            path = self.traps / f"{name}.json"
            path.unlink(missing_ok=True)
            os.kill(self.fleet.pid(name), signal.SIGUSR1)
            until(path.exists, 10, f"{name} says what it holds")
            held[name] = json.loads(path.read_text())
        files = sorted(str(one.relative_to(self.fleet.rundir)) for one in self.fleet.rundir.rglob("*"))
        held["shared memory"] = [re.sub(r"-[0-9a-f]{8,}", "-*", one) for one in files]  # a new worker names them anew
        return held

    def settled(self, before: dict[str, Any]) -> None:
        """Everything is back at its level before."""
        until(lambda: self.levels() == before, 15, f"the levels are {before}, not {self.levels()}")
        counts = self.fleet.health()["handoffs"]
        ended = counts["admitted"] + sum(counts["recomputed"].values()) + sum(counts["failed"].values())
        assert counts["offered"] == ended, counts

    def open_files(self) -> dict[int, int]:
        """By process, so that only those are compared that lived through it."""
        names = ("prefill-0", "decode-0", "decode-1", "gateway")
        return {pid: open_files(pid) for pid in map(self.fleet.pid, names)}

    def table(self) -> Table:
        """Rounds and requests of each cell; of the requests, those with a right answer."""
        table = Table("victim", "phase", *ACTIONS, title="rounds: right answers / clear errors")
        for victim, phase in itertools.product(VICTIMS, PHASES):
            table.add_row(victim, phase, *(self._cell((victim, phase, action)) for action in ACTIONS))
        return table

    def _cell(self, cell: Cell) -> str:
        ends = Counter(asked.finish == "length" for found, asked in self.done if found == cell)
        return f"{self.struck[cell]}: {ends[True]} / {ends[False]}" if self.struck[cell] else "-"


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Iterator[Rig]:
    """Its workers are taken for lost after a second, so that being stopped need not take ten."""
    deadlines = "\n[deadlines]\nheartbeat_s = 0.2\nlost_after_s = 1.0\n"
    rig = Rig(tmp_path_factory.mktemp("matrix"), tiny_gguf, deadlines, stop_s=2.0, silence_s=20)
    yield rig
    rig.fleet.stop()


SHORT: tuple[Cell, ...] = (
    ("decode", "before_offer", "kill"),
    ("decode", "admitted", "kill"),
    *(("prefill", phase, "cut") for phase in ("before_offer", "streaming", "sealed")),
    ("decode", "streaming", "cut"),
    ("decode", "decoding", "cut"),
    ("decode", "decoding", "stop"),
    ("gateway", "admitted", "cut"),
    ("gateway", "decoding", "stop"),
)


def test_a_short_matrix(quick: Rig) -> None:
    before, files = quick.levels(), quick.open_files()
    for cell in SHORT:
        quick.strike(cell)
    quick.settled(before)
    after = quick.open_files()
    grown = {pid: (files[pid], after[pid]) for pid in files.keys() & after.keys() if after[pid] > files[pid] + 8}
    assert not grown, grown
    Console(width=100).print(quick.table())


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_the_whole_matrix(tmp_path: Path, tiny_gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Round after round of all cells, for SOAK_MINUTES; ``make soak`` prints the table."""
    minutes = float(os.environ.get("SOAK_MINUTES", LEAST_MINUTES))
    rig = Rig(tmp_path, tiny_gguf, "", stop_s=10.0, silence_s=45)
    until_s = time.monotonic() + minutes * 60
    try:
        before = rig.levels()
        for cell in itertools.cycle(itertools.product(VICTIMS, PHASES, ACTIONS)):
            if time.monotonic() > until_s:
                break
            rig.strike(cell)
        rig.settled(before)
    finally:
        with capfd.disabled():
            Console(width=100).print(rig.table())
        rig.fleet.stop()
