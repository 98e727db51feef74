"""The process of one worker: ``python -m diptych.fleet.worker PARENT_PID``, its settings as JSON on stdin."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import msgspec

from diptych.config import Deadlines, DecodeSettings, PrefillSettings
from diptych.errors import ConfigError, DiptychError
from diptych.fleet.lifeline import stop_on_signals, tie_to_parent
from diptych.models.resolve import ModelBundle


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that a worker is told. ``directory`` is its private folder in shared memory."""

    address: str
    directory: str
    secret: bytes
    model: ModelBundle
    deadlines: Deadlines
    prefill: PrefillSettings | None = None
    decode: DecodeSettings | None = None


async def _prefill(spec: WorkerSpec, settings: PrefillSettings) -> None:
    from diptych.engines.torch import TorchPrefill  # noqa: PLC0415  # loads PyTorch, which other workers do without
    from diptych.fleet.prefill import PrefillWorker  # noqa: PLC0415

    stop = stop_on_signals()
    engine = await asyncio.to_thread(TorchPrefill, spec.model, settings)
    await PrefillWorker(engine, settings, spec.deadlines).serve(spec.address, stop)


async def _decode(spec: WorkerSpec, settings: DecodeSettings) -> None:
    from diptych.engines.llamacpp.engine import LlamaCppDecode  # noqa: PLC0415
    from diptych.fleet.decode import DecodeWorker  # noqa: PLC0415
    from diptych.handoff.landing import Landing  # noqa: PLC0415

    stop = stop_on_signals()
    engine = await LlamaCppDecode.start(spec.model, settings, Path(spec.directory))
    landing = Landing(Path(spec.directory), settings.landing_mb << 20, spec.secret, settings.id)
    await DecodeWorker(engine, landing, settings, spec.deadlines).serve(spec.address, stop)


def main() -> None:
    """Runs until the parent ends or SIGTERM. Exit code 2: the settings cannot be used."""
    tie_to_parent(int(sys.argv[1]))
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s", stream=sys.stderr)
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=WorkerSpec)
    try:
        if spec.prefill is not None:
            asyncio.run(_prefill(spec, spec.prefill))
        elif spec.decode is not None:
            asyncio.run(_decode(spec, spec.decode))
    except ConfigError as exc:
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(2)
    except DiptychError as exc:
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
