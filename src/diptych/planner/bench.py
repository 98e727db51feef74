"""How fast the simulator is: the Mooncake conversation on 16 prefill and 8 decode workers, and a million requests."""

from __future__ import annotations

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from diptych.chips.stepcost import StepCost
from diptych.planner.fleetplan import DecodePool, FleetPlan, Handoff, PrefillPool
from diptych.planner.simulate import simulate
from diptych.planner.traces import Trace, load

TRACE = Path("traces/mooncake_conversation.jsonl")
STEPS_MS = (28.0, 0.33)
MILLION = 1_000_000


def fleet(step_ms: float) -> FleetPlan:
    """16 prefill workers of 20,000 tokens/s with prefix caches, 8 decode workers of a constant step, 400 Gbit/s."""
    cost = StepCost(
        prefill_fixed_s=0.05, prefill_token_s=1 / 20_000, decode_fixed_s=step_ms / 1e3, decode_token_s=0.0,
        kv_capacity_tokens=3_000_000,
    )  # fmt: skip
    return FleetPlan(
        prefill=(PrefillPool(name="P", cost=cost, count=16, cache_tokens=3_000_000, nic_bytes_s=50e9),),
        decode=(DecodePool(name="D", cost=cost, count=8, nic_bytes_s=50e9),),
        handoff=Handoff(bytes_per_token=327_680.0, base_s=0.0004, convert_bytes_s=40e9),
    )


def measure(trace: Path, step_ms: float, requests: int | None) -> dict[str, Any]:
    """Seconds of one run, and the peak memory of this process, which should be a fresh one."""
    loaded = load(str(trace))
    if requests is not None:
        loaded = loaded.repeated(-(-requests // len(loaded))).head(requests)
    started = time.perf_counter()
    simulate(loaded, fleet(step_ms))
    seconds = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"requests": len(loaded), "step_ms": step_ms, "seconds": seconds, "peak_mb": peak_mb}


def measure_simpy(trace: Path, step_ms: float) -> float:
    """Seconds that a plain simpy model takes for the same trace and fleet."""
    from diptych.planner.simpy_model import run  # noqa: PLC0415  simpy is a development dependency

    loaded = load(str(trace))
    started = time.perf_counter()
    run(loaded, fleet(step_ms))
    return time.perf_counter() - started


def agreement(trace: Trace, step_ms: float) -> float:
    """Largest difference in seconds between jumping and going step by step, over first and last tokens."""
    jumped, stepped = simulate(trace, fleet(step_ms)), simulate(trace, fleet(step_ms), exact=True)
    pairs = [*zip(jumped.first, stepped.first, strict=True), *zip(jumped.finish, stepped.finish, strict=True)]
    return max(abs(a - b) for a, b in pairs)


def bench(data: Path, *, million: bool = True, simpy: bool = True) -> dict[str, Any]:
    """Every figure, each in a process of its own. ``seconds`` and ``peak_mb`` are the worse of both step times."""
    trace = data / TRACE
    runs = [_fresh(measure, trace, step_ms, None) for step_ms in STEPS_MS]
    worst = max(runs, key=lambda run: run["seconds"])
    found = {**worst, "peak_mb": max(run["peak_mb"] for run in runs), "runs": runs}
    found["exact_difference_s"] = _fresh(_agree, trace, STEPS_MS[0])
    if simpy:
        found["simpy_seconds"] = _fresh(measure_simpy, trace, STEPS_MS[1])
    if million:
        big = _fresh(measure, trace, STEPS_MS[1], MILLION)
        found |= {"million_seconds": big["seconds"], "million_peak_mb": big["peak_mb"]}
    return found


def _agree(trace: Path, step_ms: float) -> float:
    return agreement(load(str(trace)), step_ms)


def _fresh(function: Any, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
