"""The supervisor: it restarts what dies, stops all, and leaves no process behind however it ends."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diptych.config import FleetSettings
from diptych.errors import ConfigError
from diptych.fleet import local
from diptych.fleet.rundir import RunDir
from diptych.fleet.supervisor import ProcessSpec, Supervisor
from diptych.models.resolve import ModelBundle

WORKER = """
import os, signal, sys, time
from diptych.fleet.lifeline import tie_to_parent
tie_to_parent(int(sys.argv[1]))
path = sys.stdin.read()
with open(path, "a") as log:
    log.write(f"{os.getpid()}\\n")
if path.endswith("refuses"):
    sys.exit(2)
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def spec(tmp_path: Path) -> Callable[[str], ProcessSpec]:
    (tmp_path / "toy_worker.py").write_text(WORKER)
    path = os.pathsep.join([str(tmp_path), *sys.path])

    def make(name: str) -> ProcessSpec:
        settings = str(tmp_path / name).encode()
        return ProcessSpec(name=name, module="toy_worker", settings=settings, environment={"PYTHONPATH": path})

    return make


async def pids(path: Path, count: int) -> list[int]:
    async with asyncio.timeout(20):
        while not path.exists() or len(path.read_text().split()) < count:
            await asyncio.sleep(0.02)
    return [int(line) for line in path.read_text().split()]


def gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


async def until_gone(*pids: int) -> None:
    async with asyncio.timeout(10):
        while not all(gone(pid) for pid in pids):
            await asyncio.sleep(0.02)


async def test_what_is_killed_is_started_again_and_stop_ends_all(
    tmp_path: Path, spec: Callable[[str], ProcessSpec]
) -> None:
    supervisor = Supervisor([spec("one"), spec("two")])
    running = asyncio.create_task(supervisor.run())
    first = await pids(tmp_path / "one", 1)
    other = await pids(tmp_path / "two", 1)
    os.kill(first[0], signal.SIGKILL)
    second = await pids(tmp_path / "one", 2)
    assert second[1] != first[0]
    assert not gone(other[0])
    supervisor.stop()
    await asyncio.wait_for(running, 10)
    await until_gone(*second, *other)


async def test_refused_settings_end_the_whole(tmp_path: Path, spec: Callable[[str], ProcessSpec]) -> None:
    supervisor = Supervisor([spec("one"), spec("refuses")])
    with pytest.raises(ConfigError, match="refuses"):
        await asyncio.wait_for(supervisor.run(), 20)
    log = tmp_path / "one"
    await until_gone(*(int(line) for line in (log.read_text().split() if log.exists() else [])))


async def test_a_fleet_in_process_ends_at_once_when_a_worker_refuses(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    spec: Callable[[str], ProcessSpec],
    tiny_bundles: dict[str, ModelBundle],
) -> None:
    """Whoever waits for its workers is told, and does not wait for the start's deadline."""
    monkeypatch.setattr(local.LocalWorkers, "_spec", lambda self, worker: spec("refuses"))
    began = time.monotonic()
    with pytest.raises(ConfigError, match="refuses"):
        async with local.running(FleetSettings(prefill=()), tiny_bundles["llama"]):
            await asyncio.sleep(FleetSettings().deadlines.start_s)
    assert time.monotonic() - began < FleetSettings().deadlines.start_s / 2
    await asyncio.sleep(0)  # the cancellation is used up


async def test_a_killed_parent_takes_its_children_along(tmp_path: Path) -> None:
    (tmp_path / "toy_worker.py").write_text(WORKER)
    log = tmp_path / "log"
    parent = f"""
import asyncio
from diptych.fleet.supervisor import ProcessSpec, Supervisor
spec = ProcessSpec(name="w", module="toy_worker", settings={str(log)!r}.encode())
asyncio.run(Supervisor([spec]).run())
"""
    path = os.pathsep.join([str(tmp_path), *sys.path])
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", parent, env={**os.environ, "PYTHONPATH": path})
    (child,) = await pids(log, 1)
    process.kill()
    await process.wait()
    await until_gone(child)


def test_the_run_folder_is_private_and_swept_up_after_a_kill() -> None:
    code = (
        "from diptych.fleet.rundir import RunDir; import os; print(RunDir().path, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    left = Path(killed.stdout.strip())
    assert left.exists()
    deadline = time.monotonic() + 5
    rundir = RunDir()
    try:
        assert not left.exists()
        assert rundir.path.stat().st_mode & 0o777 == 0o700
        assert time.monotonic() < deadline
    finally:
        rundir.close()
    assert not rundir.path.exists()
