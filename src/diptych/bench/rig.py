"""A fleet to measure: the pair as configured, beside further decode workers that serve alone.

Each engine alone runs on its best ``n_batch``: a small one keeps other streams moving, a large one reads faster.
Idle workers sleep; nothing else runs beside the one that is measured.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import msgspec

from diptych.config import FleetSettings
from diptych.errors import ConfigError
from diptych.fleet import canary_prompts, local
from diptych.fleet.qualification import Cache
from diptych.gateway.main import served_model
from diptych.models.cache import cache_folder
from diptych.models.resolve import ModelBundle
from diptych.routing.router import Way
from diptych.service import ServedModel, Service
from diptych.serving import find_model
from diptych.startup import open_service
from diptych.terminal import StartProgress
from diptych.types import Request, RequestRecord, Sampling


class Rig(msgspec.Struct, frozen=True):
    """What a benchmark drives. ``pair`` is the configured pair, ``alone`` the decode workers that serve alone."""

    service: Service
    bundle: ModelBundle
    model: ServedModel
    pair: Way
    alone: tuple[Way, ...]
    progress: StartProgress

    def prompt(self, tokens: int, seed: int) -> tuple[int, ...]:
        """Prose of exactly ``tokens`` tokens; each seed its own, so that no cache answers."""
        return canary_prompts.raw_canary(self.model.chat, tokens, 10_000 + seed)

    def batch_of(self, way: Way) -> int:
        """The ``n_batch`` of a way's decode worker."""
        return next(worker.n_batch for worker in self.service.settings.decode if worker.id == way.decode)


@asynccontextmanager
async def rig(settings: FleetSettings, alone_batches: Sequence[int] = ()) -> AsyncGenerator[Rig, None]:
    """The fleet, running until the context ends. Raises ConfigError when there is no qualified pair."""
    bundle = find_model(settings)
    base = settings.decode[0]
    extra = tuple(msgspec.structs.replace(base, id=f"alone-{batch}", n_batch=batch) for batch in alone_batches)
    wider = msgspec.structs.replace(settings, decode=(*settings.decode, *extra))
    progress = StartProgress()
    model = served_model(bundle, settings)
    async with local.running(wider, bundle) as workers:
        service = await open_service(wider, model, workers.addresses, Cache(Path(cache_folder("qualified"))), progress)
        try:
            pair = Way(base.id, settings.prefill[0].id)
            if (pair.prefill, pair.decode) not in service.router.links:
                raise ConfigError("the pair did not qualify; `diptych qualify` says why")
            service.router.reserved.update(worker.id for worker in extra)
            ways = tuple(Way(worker.id, None) for worker in extra)
            yield Rig(service, bundle, model, pair, ways, progress)
        finally:
            progress.close()
            await service.close()


async def measure(rig: Rig, prompt: Sequence[int], output_tokens: int, way: Way | None) -> RequestRecord:
    """One greedy request, end-of-turn ignored, by ``way`` (None: where the router puts it)."""
    sampling = Sampling(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
    request = Request(id=f"bench-{uuid.uuid4().hex}", model=rig.model.id, prompt=tuple(prompt), sampling=sampling)
    async for _ in rig.service.generate(request, only=way):
        pass
    record = rig.service.record(request.id)
    assert record is not None
    assert record.output_tokens == output_tokens
    if way is not None and way.prefill is not None:
        assert record.recomputed is None
        assert record.kv_tokens == len(prompt) - 1
    return record


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and spread."""
    return {"median": median(values), "min": min(values), "max": max(values)}
