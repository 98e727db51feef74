"""A fleet whose workers stop at a phase of a handoff when a test says so, to be struck there.

``python -m support.trapped serve --config FLEET.TOML`` is `diptych serve` with such workers.

A trap is a file in the folder TRAPS, named after the phase. The worker that reaches the phase takes it (it becomes
``PHASE.caught``, holding the worker's name) and stands still until the test removes it, or ``HELD_S`` have passed.

    before_offer   decode: the request for a place to land is here, and nothing is done with it yet
    streaming      prefill: the first chunk is on its way
    sealed         decode: the seal is here, nothing is admitted
    admitted       decode: the KV is copied and proven, the engine does not have it
    decoding       decode: between two tokens

On SIGUSR1 a worker writes what it holds to ``NAME.json``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from diptych import config, serving
from diptych.fleet import messages as m
from diptych.fleet import worker
from diptych.fleet.decode import DecodeWorker
from diptych.fleet.endpoint import Endpoint
from diptych.fleet.local import LocalWorkers
from diptych.fleet.prefill import PrefillWorker
from diptych.handoff.landing import Landing
from diptych.handoff.writer import Writer

PHASES = ("before_offer", "streaming", "sealed", "admitted", "decoding")
HELD_S = 5.0
TRAPS = Path(os.environ.get("TRAPS", "/nonexistent"))
_NAME = [""]


def reach(phase: str) -> None:
    """Stands still here when the phase's trap is set."""
    caught = TRAPS / f"{phase}.caught"
    try:
        (TRAPS / phase).rename(caught)
    except FileNotFoundError:
        return
    caught.write_text(_NAME[0])
    until = time.monotonic() + HELD_S
    while caught.exists() and time.monotonic() < until:
        time.sleep(0.001)


def _around(owner: type, name: str, before: Callable[..., object] | None, after: Callable[..., object] | None) -> None:
    plain = getattr(owner, name)

    def trapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(self, *args)
        made = plain(self, *args, **kwargs)
        if after is not None:
            after(self, *args)
        return made

    setattr(owner, name, trapped)


def _tell(worker: Any, held: Callable[[], dict[str, int]]) -> None:
    _NAME[0] = worker.welcome().worker
    path = TRAPS / f"{_NAME[0]}.json"

    def write(*_: object) -> None:
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(held()))
        draft.rename(path)

    signal.signal(signal.SIGUSR1, write)


def trap_prefill() -> None:
    def made(self: Any, *_: object) -> None:
        _tell(self, lambda: {"jobs": len(self._jobs) + len(self._sealing), "kept_bytes": self._keeper.kv_bytes})

    _around(PrefillWorker, "__init__", None, made)
    _around(Writer, "write", None, lambda *_: reach("streaming"))


def trap_decode() -> None:
    def made(self: Any, *_: object) -> None:
        _tell(
            self,
            lambda: {
                "landing_bytes": self._landing.used_bytes,
                "handoffs": len(self._handoffs),
                "tasks": len(self._tasks),
                "slots": self._engine.batch + self._engine.waiting,
            },
        )

    def offered(_: Any, client: bytes, message: Any) -> None:
        if isinstance(message, m.Offer):
            reach("before_offer")

    def sent(_: Any, client: bytes, message: Any) -> None:
        if isinstance(message, m.Tokens) and message.chunk.prepared is None:
            reach("decoding")

    _around(DecodeWorker, "__init__", None, made)
    _around(DecodeWorker, "on_message", offered, None)
    _around(DecodeWorker, "_landed", lambda *_: reach("sealed"), None)
    _around(Landing, "admit", None, lambda *_: reach("admitted"))
    _around(Endpoint, "send", sent, None)


def run_worker() -> None:
    """Until the parent ends, as :func:`diptych.fleet.worker.main`."""
    prefill, decode = worker._prefill, worker._decode

    async def trapped_prefill(*args: Any) -> None:
        trap_prefill()
        await prefill(*args)

    async def trapped_decode(*args: Any) -> None:
        trap_decode()
        await decode(*args)

    worker._prefill, worker._decode = trapped_prefill, trapped_decode
    worker.main()


def _serve(path: Path) -> None:
    plain = LocalWorkers._spec

    def spec(self: Any, worker: Any) -> Any:
        return msgspec.structs.replace(plain(self, worker), module="support.trapped_worker")

    LocalWorkers._spec = spec  # type: ignore[method-assign]  # the point of this program
    asyncio.run(serving.run(config.load(path)))


if __name__ == "__main__":
    _serve(Path(sys.argv[-1]))
