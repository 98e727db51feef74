"""The runtime for one machine: every worker a child process of ours, reached over sockets in shared memory's folder."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import msgspec

from diptych.config import DecodeSettings, FleetSettings, PrefillSettings
from diptych.fleet import cores
from diptych.fleet.rundir import RunDir
from diptych.fleet.supervisor import ProcessSpec, Supervisor
from diptych.fleet.worker import WorkerSpec
from diptych.models.resolve import ModelBundle


class LocalWorkers:
    """The processes of a fleet's workers, not yet started, and where each will listen."""

    def __init__(self, settings: FleetSettings, model: ModelBundle, rundir: RunDir) -> None:
        self._settings = settings
        self._model = model
        self._rundir = rundir
        self._secret = secrets.token_bytes(32)
        self._bound = cores.bound(settings, sorted(os.sched_getaffinity(0)))
        workers = settings.workers
        self.addresses = {worker.id: rundir.address(worker.id) for worker in workers}
        self.specs = [self._spec(worker) for worker in workers]

    def _spec(self, worker: PrefillSettings | DecodeSettings) -> ProcessSpec:
        spec = WorkerSpec(
            address=self.addresses[worker.id],
            directory=str(self._rundir.path / worker.id),
            secret=self._secret,
            model=self._model,
            context_tokens=max(decode.ctx_per_request for decode in self._settings.decode),
            deadlines=self._settings.deadlines,
            handoff=self._settings.handoff,
            prefill=worker if isinstance(worker, PrefillSettings) else None,
            decode=worker if isinstance(worker, DecodeSettings) else None,
        )
        return ProcessSpec(
            name=worker.id,
            module="diptych.fleet.worker",
            settings=msgspec.json.encode(spec),
            environment=_environment(worker, self._bound.get(worker.id, ())),
            before_start=lambda: self._rundir.worker_dir(worker.id),
            after_exit=lambda: self._rundir.clear(worker.id),
        )


def _environment(worker: PrefillSettings | DecodeSettings, bound: Sequence[int]) -> dict[str, str]:
    """How the worker's compute threads wait, the cores that each is ``bound`` to, and what its allocator keeps.

    Two engines on the same cores starve one another when both spin for long, and lose their rhythm when neither does
    (docs/performance.md has the table). A decode worker allocates its KV once; what it frees later (probabilities of
    a whole vocabulary, slot images) goes back to the system instead of staying resident.
    """
    threads = {"OMP_NUM_THREADS": str(worker.threads), "GOMP_SPINCOUNT": str(worker.spin)}
    if bound:
        threads |= {"OMP_PROC_BIND": "true", "OMP_PLACES": ",".join(f"{{{core}}}" for core in bound)}
    if isinstance(worker, PrefillSettings):
        return threads
    returned = {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "1048576", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    return threads | returned


@asynccontextmanager
async def running(settings: FleetSettings, model: ModelBundle) -> AsyncGenerator[LocalWorkers, None]:
    """The workers of a fleet, running until the context ends; nothing of them is left then.

    Raises ConfigError, whatever the context is waiting for, as soon as a worker refuses its settings.
    """
    rundir = RunDir()
    workers = LocalWorkers(settings, model, rundir)
    supervisor = Supervisor(workers.specs)
    keeping = asyncio.create_task(supervisor.run())
    body = asyncio.current_task()
    assert body is not None

    def refused(_: asyncio.Task[None]) -> None:
        body.cancel()  # it may be waiting for a worker that will never come up

    keeping.add_done_callback(refused)
    try:
        yield workers
    except asyncio.CancelledError:
        if keeping.done() and (error := keeping.exception()) is not None:
            body.uncancel()
            raise error from None
        raise
    finally:
        keeping.remove_done_callback(refused)
        supervisor.stop()
        await asyncio.wait([keeping])
        rundir.close()
