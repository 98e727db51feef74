"""The process of one worker: ``python -m diptych.fleet.worker PARENT_PID``, its settings as JSON on stdin."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from diptych.config import Deadlines, DecodeSettings, HandoffSettings, PrefillSettings
from diptych.engines.protocol import Description, PrefillEngine, VerifiableDecode
from diptych.errors import ConfigError, DiptychError
from diptych.fleet.lifeline import be_nice, stop_on_signals, tie_to_parent
from diptych.fleet.rundir import leave
from diptych.models.resolve import ModelBundle

if TYPE_CHECKING:
    from diptych.fleet.prefill import PrefillWorker


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that a worker is told. ``directory`` is its private folder in shared memory, ``context_tokens`` the longest
    prompt and output that the fleet takes."""

    address: str
    directory: str
    secret: bytes
    model: ModelBundle
    context_tokens: int
    deadlines: Deadlines
    handoff: HandoffSettings = HandoffSettings()
    prefill: PrefillSettings | None = None
    decode: DecodeSettings | None = None


async def _prefill(spec: WorkerSpec, settings: PrefillSettings) -> None:
    stop = stop_on_signals()
    if settings.engine == "llamacpp":
        await _prefill_llamacpp(spec, settings, stop)
        return
    engine = _prefill_engine(spec.model, settings)
    await _prefill_worker(spec, settings, engine).serve(spec.address, stop)


def _prefill_engine(model: ModelBundle, settings: PrefillSettings) -> PrefillEngine:
    if settings.engine == "emulated":
        from diptych.engines.emulated.prefill import EmulatedPrefill  # noqa: PLC0415

        return EmulatedPrefill(model, settings)
    from diptych.engines.torch import TorchConfig, TorchPrefill  # noqa: PLC0415  # PyTorch, for this worker alone

    config = TorchConfig(
        device=settings.device,
        threads=settings.threads,
        chunk_tokens=settings.chunk_tokens,
        prefix_cache_mib=settings.prefix_cache_mb,
    )
    return TorchPrefill(model, config)


def _prefill_worker(spec: WorkerSpec, settings: PrefillSettings, engine: PrefillEngine) -> PrefillWorker:
    from diptych.fleet.prefill import PrefillWorker  # noqa: PLC0415
    from diptych.handoff.landing import Landing  # noqa: PLC0415

    room = spec.handoff.return_mb << 20
    returns = Landing(Path(spec.directory), room, receiver=settings.id) if spec.handoff.returns else None
    return PrefillWorker(engine, settings, spec.deadlines, spec.secret, spec.handoff, returns)


async def _prefill_llamacpp(spec: WorkerSpec, settings: PrefillSettings, stop: asyncio.Event) -> None:
    """Until ``stop``. Raises WorkerLost when the engine ends by itself."""
    from diptych.engines.llamacpp.prefill import LlamaCppPrefill  # noqa: PLC0415
    from diptych.engines.llamacpp.serving import start_for_prefill  # noqa: PLC0415

    server = await start_for_prefill(spec.model, settings, spec.context_tokens, Path(spec.directory))
    ended = asyncio.create_task(server.ended())
    ended.add_done_callback(lambda _: stop.set())
    engine = LlamaCppPrefill(server, settings.chunk_tokens, reuse=settings.prefix_cache_mb > 0)
    try:
        await _prefill_worker(spec, settings, engine).serve(spec.address, stop)
        if server.lost is not None:
            raise server.lost
    finally:
        ended.cancel()


async def _decode_engine(spec: WorkerSpec, settings: DecodeSettings) -> VerifiableDecode:
    if settings.engine == "emulated":
        from diptych.engines.emulated.decode import EmulatedDecode  # noqa: PLC0415

        return EmulatedDecode(spec.model, settings)
    if settings.engine == "torch":
        from diptych.engines.torch_decode import TorchDecode, TorchDecodeConfig  # noqa: PLC0415

        return TorchDecode(spec.model, msgspec.convert(settings, TorchDecodeConfig, from_attributes=True))
    from diptych.engines.llamacpp.serving import start  # noqa: PLC0415

    return await start(spec.model, settings, Path(spec.directory))


async def _decode(spec: WorkerSpec, settings: DecodeSettings) -> None:
    from diptych.fleet.decode import DecodeWorker  # noqa: PLC0415
    from diptych.handoff import state  # noqa: PLC0415
    from diptych.handoff.landing import Landing  # noqa: PLC0415

    stop = stop_on_signals()
    directory = Path(spec.directory)
    engine = await _decode_engine(spec, settings)
    deadlines = state.Deadlines(offered_s=spec.deadlines.prefill_s, streaming_s=spec.deadlines.prefill_s)
    try:
        _check_landing(engine.describe(), settings)
        landing = Landing(directory, settings.landing_mb << 20, receiver=settings.id, deadlines=deadlines)
        worker = DecodeWorker(engine, landing, settings, spec.deadlines, spec.secret, spec.handoff)
    except ConfigError:
        await engine.close()
        raise
    await worker.serve(spec.address, stop)


def _check_landing(about: Description, settings: DecodeSettings) -> None:
    """That the landing area has room for the longest request, which could never be handed over otherwise."""
    needed = about.form.region_bytes(settings.ctx_per_request - 1)
    if needed > settings.landing_mb << 20:
        raise ConfigError(
            f"{settings.id}: landing_mb = {settings.landing_mb} is too small for one request of "
            f"{settings.ctx_per_request} tokens of this model; {-(-needed // (1 << 20))} or more is needed"
        )


def main() -> None:
    """Runs until the parent ends or SIGTERM. Exit code 2: the settings cannot be used."""
    parent = int(sys.argv[1])
    tie_to_parent(parent)
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s", stream=sys.stderr)
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=WorkerSpec)
    try:
        if spec.prefill is not None:
            be_nice(spec.prefill.nice)
            asyncio.run(_prefill(spec, spec.prefill))
        elif spec.decode is not None:
            asyncio.run(_decode(spec, spec.decode))
    except ConfigError as exc:
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(2)
    except DiptychError as exc:
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(1)
    finally:
        leave(Path(spec.directory), parent)


if __name__ == "__main__":
    main()
