"""What every worker was doing when: utilisation in bins of time, and a trace for chrome://tracing or Perfetto."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.planner.fleetplan import FleetPlan
from diptych.planner.outcome import Outcome

Floats = NDArray[np.float64]
PHASES = (
    ("prefill", "prefill_start", "prefill_end"), ("convert", "prefill_end", "converted"),
    ("transfer", "converted", "landed"), ("decode queue", "landed", "joined"), ("decode", "joined", "finish"),
)  # fmt: skip


def utilisation(outcome: Outcome, plan: FleetPlan, bins: int = 120) -> tuple[Floats, Floats, Floats]:
    """(times, prefill, decode): share of prefill workers that read, and mean sequences in a decode worker."""
    finish = outcome.column("finish")
    end = float(np.nanmax(finish)) if np.isfinite(finish).any() else 1.0
    edges = np.linspace(0.0, max(end, 1e-9), bins + 1)
    readers = sum(pool.count for pool in plan.prefill) or sum(pool.count for pool in plan.decode)
    reading = _occupied(outcome.column("prefill_start"), outcome.column("prefill_end"), edges) / readers
    writing = _occupied(outcome.column("joined"), finish, edges) / sum(pool.count for pool in plan.decode)
    return (edges[:-1] + edges[1:]) / 2, reading, writing


def _occupied(start: Floats, end: Floats, edges: Floats) -> Floats:
    """Mean number of intervals that are open in each bin."""
    whole = np.isfinite(start) & np.isfinite(end)
    begun = _time_since(start[whole], edges)
    ended = _time_since(end[whole], edges)
    return np.diff(begun - ended) / np.diff(edges)


def _time_since(moments: Floats, edges: Floats) -> Floats:
    """Summed over the moments before it, the time from each to the edge."""
    ordered = np.sort(moments)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    before = np.searchsorted(ordered, edges)
    found: Floats = before * edges - sums[before]
    return found


def chrome_trace(outcome: Outcome, limit: int = 20_000) -> list[dict[str, Any]]:
    """Complete events ("ph": "X", microseconds) of the first ``limit`` requests, a row a worker."""
    events: list[dict[str, Any]] = []
    for request in range(min(limit, len(outcome.finish))):
        source, target = outcome.placed_prefill[request], outcome.placed_decode[request]
        for name, begin, end in PHASES:
            start, stop = getattr(outcome, begin)[request], getattr(outcome, end)[request]
            if not stop > start:
                continue
            worker = f"P{source}" if name in ("prefill", "convert") and source >= 0 else f"D{target}"
            events.append({
                "name": name, "ph": "X", "ts": start * 1e6, "dur": (stop - start) * 1e6, "pid": worker,
                "tid": request, "args": {"request": request},
            })  # fmt: skip
    return events
