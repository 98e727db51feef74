"""A search ends whatever a simulation says, shows that it moves, and can be stopped and taken up again."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from array import array
from functools import partial
from pathlib import Path

import pytest

from diptych.planner import goodput
from diptych.planner.candidates import Candidate, Side
from diptych.planner.outcome import Objectives
from diptych.planner.search import search
from diptych.planner.traces import Trace, load

SLO = Objectives(ttft_ms=3000, itl_ms=60)
ROOT = Path(__file__).parents[2]


def fleet(machines: int, chunk: int = 512) -> Candidate:
    side = Side(chip="h100", format="fp8", chips=2, machine="p5.48xlarge", machines=machines)
    return Candidate(model="llama-3.1-70b", mode="aggregated", decode=side, chunk_tokens=chunk)


@pytest.mark.parametrize("knee", [0.0, 1e-9, 0.01, 0.9, 1.0, 1.1, 7.9, 8.1, 1e9])
def test_the_highest_rate_is_found_within_a_bounded_number_of_runs(knee: float):
    """Attainment falls at ``knee`` times the fluid rate."""
    rates: list[float] = []

    def run(rate: float) -> dict[str, float]:
        rates.append(rate)
        return {"attainment": 1.0 if rate <= knee * 5.0 else 0.5, "rate": rate}

    found, best = goodput._highest(run, 5.0)
    assert len(rates) <= goodput.MOST_RUNS
    if knee < goodput.LOWEST:
        assert found == 0.0
    elif knee < goodput.HIGHEST:
        assert found <= knee * 5.0 <= found * (1 + goodput.PRECISION)
    else:
        assert found >= goodput.HIGHEST * 5.0
    assert best["rate"] == (found or min(rates))


def test_a_fleet_whose_answers_make_no_sense_ends_too():
    flip = iter(range(10**6))
    found, _ = goodput._highest(lambda rate: {"attainment": next(flip) % 2, "rate": rate}, 1.0)
    assert found >= 0.0


def test_a_burst_can_be_stretched():
    burst = Trace("burst", array("d", [0.0] * 40), array("q", [100] * 40), array("q", [10] * 40))
    assert burst.rate == math.inf
    assert list(burst.at_rate(4.0).arrival_s[:3]) == [0.0, 0.25, 0.5]
    (found,) = search([fleet(1)], burst, SLO, jobs=1)
    assert found.max_goodput_rps > 0


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_simulation_is_counted(jobs: int):
    traffic = load("poisson:rate=5,input=500,output=20,requests=200")
    heard: list[int] = []
    found = search([fleet(1), fleet(1, 2048)], traffic, SLO, jobs=jobs, ran=heard.append)
    assert len(found) == 2
    assert heard == sorted(heard)
    assert heard[-1] > len(found)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_it_leaves_nothing_behind_and_goes_on_later(tmp_path: Path, number: signal.Signals):
    memory = tmp_path / "memory.jsonl"
    command = [
        sys.executable, "-m", "diptych.planner", "plan", "--model", "llama3-70b", "--chips", "h100:fp8,trainium2",
        "--budget", "200", "--trace", "azure-conv:rate=5,requests=500", "--slo", "ttft_ms=1000,itl_ms=50",
        "--modes", "aggregated", "--most", "1", "--jobs", "2", "--resume", str(memory),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    running = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  our starter may ignore it
    )  # fmt: skip
    while running.poll() is None and not (memory.exists() and memory.read_bytes().count(b"\n") >= 1):
        time.sleep(0.05)
    workers = children(running.pid)
    assert len(workers) >= 2
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    if number == signal.SIGINT:
        assert running.returncode == 130
        assert f"stopped; the same command goes on from {memory}\n" in said
        assert "Traceback" not in said
    while any(alive(pid) for pid in workers):  # the test's own time limit fails it
        time.sleep(0.05)
    kept = memory.read_bytes()
    done = subprocess.run([*command, "--json", str(tmp_path / "plan.json")], env=environment, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert memory.read_bytes().startswith(kept[: kept.rindex(b"\n") + 1])
    assert len({line.split(b'"')[1] for line in memory.read_bytes().splitlines()}) == memory.read_bytes().count(b"\n")
    assert json.loads((tmp_path / "plan.json").read_text())["met"]
