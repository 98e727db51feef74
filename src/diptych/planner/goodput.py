"""The highest rate at which 90 % of the requests meet every objective, by bisection over simulations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from diptych.planner.candidates import Candidate, fleet_plan, fluid_rps, kind, total
from diptych.planner.outcome import Objectives, measure, summary
from diptych.planner.simulate import simulate
from diptych.planner.traces import Trace

ATTAINMENT = 0.9
PRECISION = 0.03
"""The search ends when the rate is known to this relative precision."""
LOWEST = 1 / 64
"""A fleet that does not meet the objectives at this part of its fluid rate is taken not to meet them at all."""

HIGHEST = 8.0
"""And one that still does at so many times its fluid rate is not pressed further."""
MOST_RUNS = 24
"""Doublings, halvings and bisections together need no more; whatever a simulation says, a search ends."""

HORIZON = 20.0
"""A run lasts so many times the longest that a good request takes: in a much shorter one, a fleet that cannot keep up
would still be inside the objectives when the requests end."""
LEAST_REQUESTS, MOST_REQUESTS = 200, 10_000


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """One fleet: ``max_goodput_rps`` (0 when the objectives cannot be met), and the run at that rate."""

    candidate: Candidate
    max_goodput_rps: float
    price_per_hour: float | None
    power_w: float | None
    rack_units: float | None
    kind: str
    run: dict[str, Any]

    def per(self, what: str) -> float | None:
        """Goodput per dollar an hour, watt or rack unit; None where that is unknown."""
        amount: float | None = getattr(
            self, {"dollar": "price_per_hour", "watt": "power_w", "rack": "rack_units"}[what]
        )
        return self.max_goodput_rps / amount if amount else None

    @property
    def usd_per_million_tokens(self) -> float | None:
        """Price of a million output tokens at that rate."""
        rate = self.run.get("output_tokens_per_s", 0.0)
        return self.price_per_hour / 3600.0 / rate * 1e6 if self.price_per_hour is not None and rate else None


def run_at(candidate: Candidate, trace: Trace, objectives: Objectives, rate: float) -> dict[str, Any]:
    """The summary of the trace at ``rate`` requests a second through the fleet."""
    stretched = trace.sized(_requests(trace, objectives, rate)).at_rate(rate)
    outcome = simulate(stretched, fleet_plan(candidate, bool(trace.blocks)))
    metrics = measure(outcome, stretched.arrival_s, stretched.output_tokens)
    return summary(outcome, metrics, stretched.output_tokens, objectives)


def _requests(trace: Trace, objectives: Objectives, rate: float) -> int:
    """As many as arrive in the horizon; a gap without an objective counts as 10 ms a token, a TTFT as a second."""
    output = sum(trace.output_tokens) / len(trace)
    longest_ms = (objectives.ttft_ms or 1000.0) + (objectives.itl_ms or 10.0) * output
    horizon_s = HORIZON * min(longest_ms, objectives.e2e_ms or longest_ms) / 1e3
    return int(min(MOST_REQUESTS, max(LEAST_REQUESTS, rate * horizon_s)))


def evaluate(
    candidate: Candidate, trace: Trace, objectives: Objectives, ran: Callable[[], None] = lambda: None
) -> Evaluation:
    """The fleet at its best. Runs at most :data:`MOST_RUNS` simulations; ``ran`` hears of each."""

    def run(rate: float) -> dict[str, Any]:
        found = run_at(candidate, trace, objectives, rate)
        ran()
        return found

    rate, best = _highest(run, fluid_rps(candidate, trace, objectives))
    return Evaluation(
        candidate=candidate, max_goodput_rps=rate, price_per_hour=total(candidate, "price"),
        power_w=total(candidate, "power"), rack_units=total(candidate, "rack_units"), kind=kind(candidate), run=best,
    )  # fmt: skip


def _highest(run: Callable[[float], dict[str, Any]], guess: float) -> tuple[float, dict[str, Any]]:
    """Brackets the answer by doubling or halving from ``guess``, then bisects. The rate (0: none) and its run."""
    low, high, best = 0.0, math.inf, {}
    rate = guess
    for _ in range(MOST_RUNS):
        found = run(rate)
        if found["attainment"] >= ATTAINMENT:
            low, best = rate, found
        else:
            high, best = rate, best if low else found
        if high <= low * (1.0 + PRECISION) or (not low and high <= guess * LOWEST) or low >= guess * HIGHEST:
            break
        rate = low * 2 if high == math.inf else (low * high) ** 0.5 if low else high / 2
    return low, best
