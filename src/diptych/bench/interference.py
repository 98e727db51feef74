"""``diptych bench interference``: how long running streams stand still while long prompts arrive."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec
import numpy as np

from diptych.bench.rig import Rig, measure, rig
from diptych.config import FleetSettings
from diptych.routing.router import Way
from diptych.types import Request, Sampling

ALONE_BATCHES = (64, 128)
STREAMS = 4
STREAM_PROMPT = 64
ARRIVING = (774, 1029, 1284, 1539, 1793, 2048)
ARRIVING_OUTPUT = 8


class Gaps(msgspec.Struct, frozen=True):
    """The gaps between tokens of the running streams while prompts arrived, in milliseconds."""

    p99_gap_ms: float
    max_gap_ms: float
    median_gap_ms: float
    arriving_ttft_ms: float


async def run(settings: FleetSettings, runs: int) -> dict[str, Any]:
    """Medians over ``runs``; decode alone on the ``n_batch`` whose longest gap in the first run was shortest."""
    async with rig(settings, ALONE_BATCHES) as fleet:
        fleet.progress.phase("measuring", 2 * runs - 1 + len(fleet.alone))
        first = {way: await _run(fleet, way, number * 10) for number, way in enumerate(fleet.alone)}
        best = min(fleet.alone, key=lambda way: first[way].max_gap_ms)
        alone, pair = [first[best]], [await _run(fleet, fleet.pair, 50)]
        for seed in range(100, 100 * runs, 100):
            alone.append(await _run(fleet, best, seed))
            pair.append(await _run(fleet, fleet.pair, seed + 50))
    medians = {"pair": _medians(pair), "decode_alone": _medians(alone)}
    return {
        "streams": STREAMS,
        "arriving_prompt_tokens": ARRIVING,
        "runs": runs,
        "pair": medians["pair"],
        "decode_alone": {**medians["decode_alone"], "n_batch": fleet.batch_of(best)},
        "ratio": {name: medians["pair"][name] / medians["decode_alone"][name] for name in ("p99_gap_ms", "max_gap_ms")},
        "every_n_batch": {str(fleet.batch_of(way)): _medians([gaps]) for way, gaps in first.items()},
        "every_max_gap_ms": {
            "pair": [gaps.max_gap_ms for gaps in pair],
            "decode_alone": [gaps.max_gap_ms for gaps in alone],
        },
    }


async def _run(fleet: Rig, way: Way, seed: int) -> Gaps:
    gaps = await _gaps(fleet, way, seed)
    fleet.progress.advance()
    return gaps


async def _gaps(fleet: Rig, way: Way, seed: int) -> Gaps:
    """The gaps of ``STREAMS`` streams by ``way`` while the prompts of ``ARRIVING`` come by it, one after another."""
    streaming = Way(way.decode, None)
    stamps: list[list[float]] = [[] for _ in range(STREAMS)]
    flowing = [asyncio.Event() for _ in range(STREAMS)]
    streams = [
        asyncio.create_task(_stream(fleet, streaming, fleet.prompt(STREAM_PROMPT, seed + i), stamps[i], flowing[i]))
        for i in range(STREAMS)
    ]
    await asyncio.gather(*(event.wait() for event in flowing))
    began = time.monotonic()
    ttft_ms = []
    for index, tokens in enumerate(ARRIVING):
        record = await measure(fleet, fleet.prompt(tokens, seed + 5_000 + index), ARRIVING_OUTPUT, way)
        ttft_ms.append(record.ttft_ms or 0.0)
    ended = time.monotonic()
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    gaps = np.concatenate([_within(times, began, ended) for times in stamps]) * 1e3
    return Gaps(float(np.percentile(gaps, 99)), float(gaps.max()), float(np.median(gaps)), median(ttft_ms))


async def _stream(fleet: Rig, way: Way, prompt: Sequence[int], stamps: list[float], flowing: asyncio.Event) -> None:
    """Decodes until it is cancelled; a finished answer is followed by another."""
    room = fleet.service.context_tokens - len(prompt)
    sampling = Sampling(max_tokens=room, temperature=0.0, ignore_eos=True)
    while True:
        request = Request(id=f"bench-{uuid.uuid4().hex}", model=fleet.model.id, prompt=tuple(prompt), sampling=sampling)
        async for _ in fleet.service.generate(request, only=way):
            stamps.append(time.monotonic())  # stamped as each one comes
            flowing.set()


def _within(times: Sequence[float], began: float, ended: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Gaps that overlap the period in which prompts arrived."""
    stamps = np.asarray([*times, ended])
    gaps = np.diff(stamps)
    return gaps[(stamps[1:] > began) & (stamps[:-1] < ended)]


def _medians(gaps: Sequence[Gaps]) -> dict[str, float]:
    return {name: median(getattr(one, name) for one in gaps) for name in Gaps.__struct_fields__}
