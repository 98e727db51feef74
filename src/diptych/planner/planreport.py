"""A plan as a table on the terminal, as JSON, and as a page with plots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from rich.table import Table

from diptych.errors import ConfigError
from diptych.planner import page, plots, timeline
from diptych.planner.candidates import fleet_plan, quantities
from diptych.planner.explain import Sensitivity, weakest_kind, words
from diptych.planner.goodput import ATTAINMENT, Evaluation, run_at
from diptych.planner.outcome import Metrics, Outcome, measure
from diptych.planner.search import RANKINGS, Plan
from diptych.planner.simulate import simulate
from diptych.planner.traces import Trace

SHOWN = 12
LOADS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)


def as_dict(plan: Plan, sensitivities: list[Sensitivity]) -> dict[str, Any]:
    """What ``--json`` writes."""
    return {
        "model": plan.model,
        "trace": plan.trace,
        "objectives": plan.objectives,
        "budget_usd_per_hour": plan.budget,
        "met": plan.met,
        "words": words(plan),
        "not_ranked": {ranking: plan.unranked(ranking) for ranking in RANKINGS},
        "sensitivities": sensitivities,
        "fleets": [_fleet(e) for e in plan.evaluations],
    }


def _fleet(e: Evaluation) -> dict[str, Any]:
    return {
        "fleet": e.candidate.describe(),
        "mode": e.candidate.mode,
        "max_goodput_rps": e.max_goodput_rps,
        "usd_per_hour": e.price_per_hour,
        "power_w": e.power_w,
        "rack_units": e.rack_units,
        **{f"goodput_per_{ranking}": e.per(ranking) for ranking in RANKINGS},
        "usd_per_million_output_tokens": e.usd_per_million_tokens,
        "weakest_input": weakest_kind(e),
        "candidate": e.candidate,
        "run": e.run,
    }


def as_table(plan: Plan) -> Table:
    """The best fleets of the plan, for a terminal."""
    table = Table(title=f"{plan.model} on {plan.trace}", title_justify="left")
    for name, justify in (("fleet", "left"), ("req/s", "right"), ("USD/h", "right"), ("req/s per k$/h", "right"),
                          ("USD/M tok", "right"), ("TTFT p90", "right"), ("ITL p90", "right"),
                          ("weakest input", "left")):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # from the same literals
    for e in plan.evaluations[:SHOWN]:
        table.add_row(*[v if isinstance(v, str) else page.number(v) for v in _row(e)])
    return table


def as_text(plan: Plan, changed: list[Sensitivity]) -> Iterator[Table | str]:
    """What ``diptych plan`` prints: the table, the explanation, what is not ranked, what an assumption would change."""
    yield as_table(plan)
    yield from words(plan)
    for ranking in RANKINGS:
        yield from (f"[dim]{line}[/]" for line in plan.unranked(ranking))
    for item in changed:
        yield f"[dim]If {item.what}: the choice {'holds' if item.holds else 'flips'}.[/]"


def _row(e: Evaluation) -> list[str | float]:
    first, gap = e.run.get("ttft_ms", {}), e.run.get("itl_ms", {})
    return [
        e.candidate.describe(), e.max_goodput_rps, e.price_per_hour or "unknown", 1e3 * (e.per("dollar") or 0.0),
        e.usd_per_million_tokens or "unknown", first.get("p90", "-"), gap.get("p90", "-"), weakest_kind(e),
    ]  # fmt: skip


def play(e: Evaluation, trace: Trace) -> tuple[Outcome, Metrics]:
    """The run at the fleet's highest good rate again, in full."""
    stretched = trace.sized(e.run["requests"]).at_rate(e.max_goodput_rps) if e.max_goodput_rps else trace
    outcome = simulate(stretched, fleet_plan(e.candidate, bool(trace.blocks)))
    return outcome, measure(outcome, stretched.arrival_s, stretched.output_tokens)


def as_page(plan: Plan, trace: Trace, sensitivities: list[Sensitivity]) -> str:
    """One HTML file with the plots."""
    header = [
        "fleet",
        "req/s",
        "USD/h",
        "req/s per k$/h",
        "USD/M tokens",
        "TTFT p90 ms",
        "ITL p90 ms",
        "weakest input",
    ]
    parts = [
        page.paragraphs(words(plan)),
        page.table(header, [_row(e) for e in plan.evaluations[:SHOWN]]),
        page.paragraphs([line for ranking in RANKINGS for line in plan.unranked(ranking)], "note"),
    ]
    winner = plan.best()
    if winner is not None:
        parts += _drawings(plan, trace, winner)
    if sensitivities:
        parts += [page.heading("If an assumption is wrong"), _sensitivity_table(sensitivities)]
    parts += [page.heading("Where the numbers come from"), _sources(plan)]
    return page.page(f"A fleet for {plan.model}", parts)


def _drawings(plan: Plan, trace: Trace, winner: Evaluation) -> list[str]:
    rival = plan.best(mode="aggregated")
    compared = [("winner", winner)] + ([("best aggregated", rival)] if rival and rival is not winner else [])
    runs = {name: play(e, trace) for name, e in compared}
    outcome, _ = runs["winner"]
    good = [e for e in plan.evaluations if e.max_goodput_rps > 0]
    points = [(e.candidate.mode, 1e3 / max(1e-6, e.run["itl_ms"]["p50"]), e.per("dollar") or 0.0) for e in good]
    bars = [(e.candidate.describe(), e.candidate.mode, e.usd_per_million_tokens or 0.0) for e in good[:SHOWN]]
    loads = [_against_load(name, e, trace, plan) for name, e in compared]
    return [
        page.heading("Latency"),
        plots.distributions([(name, m.ttft_ms, m.itl_ms) for name, (_, m) in runs.items()]),
        page.heading("Utilisation of the winner over time"),
        plots.over_time(*timeline.utilisation(outcome, fleet_plan(winner.candidate, bool(trace.blocks)))),
        page.heading("Goodput against load"),
        plots.against_load(loads, ATTAINMENT),
        page.heading("Cost"),
        plots.cost(bars),
        page.heading("Speed against goodput per dollar"),
        plots.pareto(points),
    ]


def _against_load(name: str, e: Evaluation, trace: Trace, plan: Plan) -> tuple[str, list[float], list[float]]:
    rates = [e.max_goodput_rps * load for load in LOADS]
    return name, rates, [run_at(e.candidate, trace, plan.objectives, rate)["attainment"] for rate in rates]


def _sensitivity_table(sensitivities: list[Sensitivity]) -> str:
    rows = [
        [
            s.what,
            1e3 * s.winner,
            None if s.aggregated is None else 1e3 * s.aggregated,
            "holds" if s.holds else "flips",
        ]
        for s in sensitivities
    ]
    return page.table(["changed", "winner, req/s per k$/h", "best aggregated", "the choice"], rows)


def _sources(plan: Plan) -> str:
    seen = {name: q for e in plan.evaluations[:SHOWN] for name, q in quantities(e.candidate)}
    rows = [[name, q.value, q.unit, q.kind, q.date, q.source] for name, q in sorted(seen.items())]
    return page.table(["input", "value", "unit", "kind", "date", "source"], rows)


def chrome_trace(plan: Plan, trace: Trace) -> bytes:
    """The winner's run for Perfetto; without a winner, no events."""
    winner = plan.best()
    events = timeline.chrome_trace(play(winner, trace)[0]) if winner is not None else []
    return msgspec.json.encode({"traceEvents": events})


def refuse_unmet(plan: Plan) -> None:
    """Raises ConfigError, which says what is the best that can be had, when no fleet meets the objectives."""
    if not plan.met:
        raise ConfigError(" ".join(words(plan)))


def to_json(value: Any) -> bytes:
    """Indented JSON; NaN (a phase that did not happen) becomes null."""
    return msgspec.json.format(msgspec.json.encode(_plain(msgspec.to_builtins(value))), indent=1)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
