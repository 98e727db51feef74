"""The highest rate at which 90 % of the requests meet every objective, by bisection over simulations."""

from __future__ import annotations

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


def evaluate(candidate: Candidate, trace: Trace, objectives: Objectives) -> Evaluation:
    """Doubles or halves from the fluid rate until the answer is bracketed, then bisects."""
    guess = fluid_rps(candidate, trace, objectives)
    low, high, best = 0.0, guess, run_at(candidate, trace, objectives, guess)
    if best["attainment"] >= ATTAINMENT:
        low, high = high, high * 2
        while (run := run_at(candidate, trace, objectives, high))["attainment"] >= ATTAINMENT and high < guess * 8:
            low, high, best = high, high * 2, run
    else:
        while low == 0.0 and high > guess * LOWEST:
            run = run_at(candidate, trace, objectives, high / 2)
            if run["attainment"] >= ATTAINMENT:
                low, best = high / 2, run
            else:
                high, best = high / 2, run
    while low and high / low > 1.0 + PRECISION:
        middle = (low * high) ** 0.5
        run = run_at(candidate, trace, objectives, middle)
        if run["attainment"] >= ATTAINMENT:
            low, best = middle, run
        else:
            high = middle
    return Evaluation(
        candidate=candidate, max_goodput_rps=low, price_per_hour=total(candidate, "price"),
        power_w=total(candidate, "power"), rack_units=total(candidate, "rack_units"), kind=kind(candidate), run=best,
    )  # fmt: skip
