"""A service with placements of the test's choice, over workers in processes of their own or in this one."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from diptych.config import DecodeSettings, FleetSettings, ModelSettings
from diptych.engines.llamacpp.serving import start as start_llamacpp
from diptych.engines.protocol import PrefillEngine
from diptych.fleet import local
from diptych.fleet.decode import DecodeWorker
from diptych.fleet.prefill import PrefillWorker
from diptych.fleet.qualification import Cache
from diptych.gateway.main import served_model
from diptych.handoff.landing import Landing
from diptych.models.cache import cache_folder
from diptych.models.resolve import ModelBundle
from diptych.routing.router import Way
from diptych.service import Service
from diptych.serving import find_model
from diptych.startup import open_service
from diptych.types import Request, RequestRecord, Sampling
from support.likeness import Reference

PAIR, ALONE = Way("decode-0", "prefill-0"), Way("decode-0", None)
SECRET = b"a secret of the test's own, 32 b"


class Output(NamedTuple):
    tokens: tuple[int, ...]
    reference: Reference
    record: RequestRecord


async def generate(
    service: Service, prompt: Sequence[int], output_tokens: int, way: Way | None, *, gaps: bool = False
) -> Output:
    """One greedy request to its end; with ``gaps``, the lead of each token over the second best."""
    sampling = Sampling(max_tokens=output_tokens, temperature=0.0, ignore_eos=True, logprobs=2 if gaps else None)
    request = Request(id=uuid.uuid4().hex, model="", prompt=tuple(prompt), sampling=sampling)
    tokens: list[int] = []
    leads: list[float] = []
    async for chunk in service.generate(request, only=way):
        tokens += chunk.tokens
        leads += [found.top[0][1] - found.top[1][1] for found in chunk.logprobs]
    record = service.record(request.id)
    assert record is not None
    assert record.output_tokens == len(tokens) == output_tokens
    if gaps:
        assert len(leads) == len(tokens)
    return Output(tuple(tokens), Reference(tokens, leads), record)


def settings_for(source: str, **decode: object) -> FleetSettings:
    return FleetSettings(
        model=ModelSettings(source=source),
        decode=(msgspec.structs.replace(DecodeSettings(), **decode),),
    )


@asynccontextmanager
async def running_service(settings: FleetSettings) -> AsyncGenerator[Service, None]:
    """The workers as processes, as `diptych serve` starts them, and the service in this one."""
    bundle = find_model(settings)
    model = served_model(bundle, settings)
    async with local.running(settings, bundle) as workers:
        service = await open_service(settings, model, workers.addresses, Cache(Path(cache_folder("qualified"))))
        try:
            yield service
        finally:
            await service.close()


class Workers:
    """Both workers on this event loop, the prefill engine of the test's choice, the decode engine a real one."""

    def __init__(self, bundle: ModelBundle, settings: FleetSettings, folder: Path) -> None:
        self.bundle, self.settings = bundle, settings
        self.addresses = {name: f"ipc://{folder}/{name}.sock" for name in ("prefill-0", "decode-0")}
        self.folder = folder
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start_decode(self) -> None:
        settings = self.settings.decode[0]
        self.engine = await start_llamacpp(self.bundle, settings, self.folder)
        self.landing = Landing(self.folder, settings.landing_mb << 20, receiver=settings.id)
        worker = DecodeWorker(
            self.engine, self.landing, settings, self.settings.deadlines, SECRET, self.settings.handoff
        )
        self._tasks.append(asyncio.create_task(worker.serve(self.addresses[settings.id], self._stop)))

    def start_prefill(self, engine: PrefillEngine) -> None:
        settings = self.settings.prefill[0]
        worker = PrefillWorker(engine, settings, self.settings.deadlines, SECRET, self.settings.handoff)
        self._tasks.append(asyncio.create_task(worker.serve(self.addresses[settings.id], self._stop)))

    async def close(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)


@asynccontextmanager
async def workers_here(settings: FleetSettings, prefill: PrefillEngine) -> AsyncGenerator[Workers, None]:
    """Both workers, ready to be met."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="diptych-test-") as folder:
        workers = Workers(find_model(settings), settings, Path(folder))
        try:
            await workers.start_decode()
            workers.start_prefill(prefill)
            yield workers
        finally:
            await workers.close()


@asynccontextmanager
async def service_over(workers: Workers, cache: Path | None = None) -> AsyncGenerator[Service, None]:
    """A service over workers of this process."""
    model = served_model(workers.bundle, workers.settings)
    folder = cache or Path(cache_folder("qualified"))
    service = await open_service(workers.settings, model, workers.addresses, Cache(folder))
    try:
        yield service
    finally:
        await service.close()
