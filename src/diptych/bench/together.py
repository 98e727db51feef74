"""``diptych bench together``: mixed prompts at once, placed by the router, against decode alone."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from diptych.bench.rig import Rig, measure, rig, summary
from diptych.config import FleetSettings
from diptych.routing.router import Way

ALONE_BATCHES = (512, 2048)
SHORTEST, LONGEST = 64, 1500


async def run(settings: FleetSettings, requests: int, output_tokens: int, runs: int) -> dict[str, Any]:
    """Total seconds of all requests at once; each run has its own prompts, the same for every way."""
    async with rig(settings, ALONE_BATCHES) as fleet:
        for way in (fleet.pair, *fleet.alone):
            await measure(fleet, fleet.prompt(64, 9_999), 4, way)
        fleet.progress.phase("measuring", runs)
        routed: list[float] = []
        alone: list[list[float]] = [[] for _ in fleet.alone]
        placements: Counter[str] = Counter()
        for seed in range(runs):
            prompts = [fleet.prompt(size, seed * 100 + i) for i, size in enumerate(sizes(requests))]
            seconds, kinds = await _all(fleet, prompts, output_tokens, None)
            routed.append(seconds)
            placements.update(kinds)
            for index, way in enumerate(fleet.alone):
                alone[index].append((await _all(fleet, prompts, output_tokens, way))[0])
            fleet.progress.advance()
    best = min(range(len(alone)), key=lambda i: median(alone[i]))
    return {
        "requests": requests,
        "runs": runs,
        "fleet_s": summary(routed),
        "decode_alone_s": summary(alone[best]),
        "decode_alone_n_batch": fleet.batch_of(fleet.alone[best]),
        "ratio": median(routed) / median(alone[best]),
        "placements": dict(placements),
    }


def sizes(requests: int) -> list[int]:
    """Prompt lengths from 64 to 1,500 tokens, evenly spread and dealt short and long in turn."""
    step = (LONGEST - SHORTEST) / max(1, requests - 1)
    ordered = [round(SHORTEST + step * index) for index in range(requests)]
    half = (requests + 1) // 2
    low, high = ordered[:half], ordered[half:][::-1]
    mixed = [size for pair in zip(low, high, strict=False) for size in pair]
    return mixed + low[len(high) :]


async def _all(
    fleet: Rig, prompts: Sequence[Sequence[int]], output_tokens: int, way: Way | None
) -> tuple[float, list[str]]:
    began = time.monotonic()
    records = await asyncio.gather(*(measure(fleet, prompt, output_tokens, way) for prompt in prompts))
    return time.monotonic() - began, [record.placement for record in records]
