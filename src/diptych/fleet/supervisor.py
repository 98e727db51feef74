"""Keeps a fleet's processes running: starts them, restarts the ones that die, ends them all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping

import msgspec

from diptych.errors import ConfigError

log = logging.getLogger("diptych.supervisor")

BACKOFF_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
STEADY_S = 30.0
STOP_S = 5.0
REFUSED = 2


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One process: a module run by this Python, its settings on stdin, its environment beside ours.

    ``before_start`` runs before every start and ``after_exit`` after every end, to prepare and clear its folder.
    """

    name: str
    module: str
    settings: bytes
    environment: Mapping[str, str] = {}
    before_start: Callable[[], object] = lambda: None
    after_exit: Callable[[], object] = lambda: None


class Supervisor:
    """Runs every spec until :meth:`stop`. A process that refuses its settings (exit code 2) ends the whole."""

    def __init__(self, specs: list[ProcessSpec]) -> None:
        self._specs = specs
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = False
        self._refused: str | None = None

    async def run(self) -> None:
        """Returns after :meth:`stop`. Raises ConfigError when a process refused its settings."""
        async with asyncio.TaskGroup() as group:
            for spec in self._specs:
                group.create_task(self._keep(spec))
        if self._refused is not None:
            raise ConfigError(f"{self._refused} refused its settings; its message is above")

    def pid(self, name: str) -> int | None:
        """The process id of ``name`` now."""
        process = self._running.get(name)
        return process.pid if process is not None else None

    def stop(self) -> None:
        """Asks every process to end; those that do not within ``STOP_S`` seconds are killed."""
        self._stopping = True
        for process in self._running.values():
            _signal(process, signal.SIGTERM)
        asyncio.get_running_loop().call_later(STOP_S, self._kill)

    def _kill(self) -> None:
        for process in self._running.values():
            _signal(process, signal.SIGKILL)

    async def _keep(self, spec: ProcessSpec) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            code = await self._once(spec)
            if self._stopping:
                return
            if code == REFUSED:
                self._refused = spec.name
                self.stop()
                return
            failures = 0 if time.monotonic() - began > STEADY_S else failures + 1
            pause_s = BACKOFF_S[min(failures - 1, len(BACKOFF_S) - 1)] if failures else 0.0
            log.warning("%s ended with code %s; starting it again in %g s", spec.name, code, pause_s)
            await asyncio.sleep(pause_s)

    async def _once(self, spec: ProcessSpec) -> int:
        """Runs the process once and gives its exit code; whatever ends us ends it."""
        spec.before_start()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            spec.module,
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            env={**os.environ, **spec.environment},
            process_group=0,  # Ctrl-C reaches the supervisor alone; not a session of its own, see `be_nice`
        )
        self._running[spec.name] = process
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await process.communicate(spec.settings)
            return await process.wait()
        finally:
            if process.returncode is None:  # we were cancelled
                _signal(process, signal.SIGKILL)
                await asyncio.shield(process.wait())
            del self._running[spec.name]
            spec.after_exit()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
