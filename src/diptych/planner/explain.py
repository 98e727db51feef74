"""The winner in words: against the best aggregated fleet, what it is short of, and which assumption it hangs on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from diptych.chips import catalogue
from diptych.chips.quantity import Kind, weakest
from diptych.planner.candidates import Assumptions, Candidate, Side, cost_of, quantities
from diptych.planner.goodput import Evaluation
from diptych.planner.outcome import Objectives
from diptych.planner.search import Plan, Ranking

SENSITIVITIES: tuple[tuple[str, Assumptions], ...] = (
    ("a wafer reads prompts at 5 % of its dense peak, not 15 %", Assumptions(prefill_share=0.05)),
    ("a wafer reads prompts at 40 % of its dense peak, not 15 %", Assumptions(prefill_share=0.40)),
    ("a wafer's speculation emits 1.5 tokens a pass, not 2.5", Assumptions(acceptance=1.5)),
    ("a wafer's speculation emits 3.5 tokens a pass, not 2.5", Assumptions(acceptance=3.5)),
    ("KV is converted at 5 GB/s, not 40", Assumptions(convert_bytes_s=5e9)),
    ("KV transfers reach 35 % of line rate, not 71 %", Assumptions(link_share=0.355)),
)
PRICE_FACTORS = (0.5, 2.0)


class Sensitivity(msgspec.Struct, frozen=True):
    """The winner and the best aggregated fleet again with one assumed input changed; goodput per dollar of both."""

    what: str
    winner: float
    aggregated: float | None = None

    @property
    def holds(self) -> bool:
        return self.aggregated is None or self.winner >= self.aggregated


def sensitivities(plan: Plan, evaluated: Callable[[Sequence[Candidate]], Sequence[Evaluation]]) -> list[Sensitivity]:
    """One line per assumed input that the winner or its rival depends on; ``evaluated`` runs the changed fleets."""
    winner, rival = plan.best(), plan.best(mode="aggregated")
    if winner is None:
        return []
    both = [e for e in (winner, rival) if e is not None]
    changed = {
        (what, e.candidate): msgspec.structs.replace(e.candidate, assume=assume)
        for what, assume in SENSITIVITIES
        for e in both
        if _depends(e.candidate, assume)
    }
    found = dict(zip(changed, evaluated(list(changed.values())), strict=True))
    lines = [
        Sensitivity(what, *(found.get((what, e.candidate), e).per("dollar") or 0.0 for e in both))
        for what in dict.fromkeys(what for what, _ in changed)
    ]
    return lines + _prices(winner, rival)


def _prices(winner: Evaluation, rival: Evaluation | None) -> list[Sensitivity]:
    """The same at other values of every price that is assumed."""
    assumed = {name for e in (winner, rival) if e for name, q in quantities(e.candidate)
               if q.kind == "assumed" and name.startswith("price")}  # fmt: skip
    return [
        Sensitivity(
            f"{name} times {factor:g}",
            _repriced(winner, name, factor),
            _repriced(rival, name, factor) if rival else None,
        )
        for name in sorted(assumed)
        for factor in PRICE_FACTORS
    ]


def _depends(candidate: Candidate, assume: Assumptions) -> bool:
    """Whether the fleet has a part that the changed assumption is about."""
    usual = Assumptions()
    if assume.prefill_share != usual.prefill_share:
        readers = candidate.sides[:1] if candidate.mode == "disaggregated" else candidate.sides
        return any(_wafer(side) for side in readers)
    if assume.acceptance != usual.acceptance:
        return _wafer(candidate.decode)
    return candidate.prefill is not None


def _wafer(side: Side) -> bool:
    return catalogue.chip(side.chip).family == "wafer"


def _repriced(evaluation: Evaluation, name: str, factor: float) -> float:
    """Goodput per dollar when one machine's price is ``factor`` times what the catalogue says."""
    price = 0.0
    for (known_as, quantity), side in zip(
        quantities(evaluation.candidate)[::3], evaluation.candidate.sides, strict=True
    ):
        price += quantity.si * side.machines * (factor if known_as == name else 1.0)
    return evaluation.max_goodput_rps / price


def weakest_kind(evaluation: Evaluation, *, priced: bool = True) -> Kind:
    """The weakest kind among the inputs of a result, its price counted in where it is about price."""
    kinds: list[Kind] = [cost_of(evaluation.candidate, side).kind for side in evaluation.candidate.sides]
    if priced:
        kinds += [q.kind for name, q in quantities(evaluation.candidate) if name.startswith("price")]
    return weakest(kinds)


def words(plan: Plan) -> list[str]:
    """A few sentences on the result."""
    winner, rival = plan.best(), plan.best(mode="aggregated")
    if winner is None:
        return _unmet(plan)
    run = winner.run
    lines = [
        f"Best per dollar: {winner.candidate.describe()}.",
        _serves(winner, plan.objectives),
        _bottleneck(run),
        f"The weakest input behind this is {weakest_kind(winner)}.",
    ]
    if rival is None:
        lines.append("No aggregated fleet within the budget meets the objectives.")
    elif rival is not winner:
        ratio = (winner.per("dollar") or 0.0) / (rival.per("dollar") or 1.0)
        lines.append(
            f"The best aggregated fleet is {rival.candidate.describe()}: {rival.max_goodput_rps:.2f} requests/s for "
            f"{rival.price_per_hour:,.2f} USD/h. The winner serves {ratio:.2f}x as many per dollar."
        )
    else:
        other = max((e for m in ("disaggregated", "mixed") if (e := plan.best(mode=m))),
                    key=lambda e: e.per("dollar") or 0.0, default=None)  # fmt: skip
        if other is not None:
            ratio = (winner.per("dollar") or 0.0) / (other.per("dollar") or 1.0)
            lines.append(f"Aggregated wins here: {ratio:.2f}x the best pair, {other.candidate.describe()}.")
    others: tuple[Ranking, ...] = ("watt", "rack")
    for ranking in others:
        best = plan.best(ranking)
        if best is not None and best is not winner:
            lines.append(
                f"Per {ranking} the best is {best.candidate.describe()} ({best.max_goodput_rps:.2f} requests/s)."
            )
    return lines


def _serves(e: Evaluation, objectives: Objectives) -> str:
    return (
        f"It serves {e.max_goodput_rps:.2f} requests/s with {e.run['attainment']:.0%} inside {_bounds(objectives)}, "
        f"for {e.price_per_hour:,.2f} USD/h ({_money(e)} per million output tokens)."
    )


def _bottleneck(run: dict[str, Any]) -> str:
    parts = {name: values["p90"] for name, values in run["ttft_parts_ms"].items() if values}
    largest = sorted(parts.items(), key=lambda part: -part[1])[:2]
    shown = " and ".join(f"{name.replace('_', ' ')} {value:,.0f} ms" for name, value in largest)
    return (
        f"At that rate the 90th percentile of the time to first token is {run['ttft_ms']['p90']:,.0f} ms "
        f"(mostly {shown}), of the gap between tokens {run['itl_ms']['p90']:.2f} ms."
    )


def _unmet(plan: Plan) -> list[str]:
    nearest = plan.nearest()
    run = nearest.run
    first, gap = run.get("ttft_ms", {}), run.get("itl_ms", {})
    best = f"TTFT p90 {first['p90']:,.0f} ms and gap p90 {gap['p90']:.2f} ms" if first else "no request finished"
    return [
        f"No fleet within {plan.budget:,.0f} USD/h keeps 90 % of the requests inside {_bounds(plan.objectives)}.",
        f"The nearest is {nearest.candidate.describe()}: {run['attainment']:.0%} of them even at a low rate ({best}).",
    ]


def _bounds(objectives: Objectives) -> str:
    bounds = msgspec.structs.asdict(objectives)
    return ", ".join(f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None) or "no objective"


def _money(evaluation: Evaluation) -> str:
    price = evaluation.usd_per_million_tokens
    return f"{price:,.2f} USD" if price is not None else "unknown"
