"""The announcement of AWS and Cerebras (March 2026), claim by claim, from the catalogue and from simulated fleets.

A claim about speed comes from the cost models; a claim about capacity from whole fleets, with KV limits, queues and
objectives. In a fluid the ratio r of prompt to output drops out of the question whether disaggregation pays:

    gain = (1 + r D/Rp) / (1 + r u D/Rt)      crosses 1 at Rp = Rt / u for every r

(D the wafer's decode rate, Rp its prefill rate, Rt the partner's, u the partner's footprint over the wafer's), so
the map below is drawn from fleets of whole machines instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from diptych.chips import catalogue
from diptych.chips.worker import Worker, fewest_chips
from diptych.errors import ConfigError
from diptych.planner import page, plots
from diptych.planner.candidates import (
    WAFER_PREFILL_SHARES,
    Assumptions,
    Candidate,
    Choice,
    Side,
    sides,
    total,
)
from diptych.planner.claims import SHARES, Claim, Gain, capacity_claim, speed_claims
from diptych.planner.goodput import Evaluation
from diptych.planner.outcome import Objectives
from diptych.planner.search import search
from diptych.planner.traces import Trace, load

RATIOS = (1.0, 5.0, 35.0, 100.0, 450.0)
"""Prompt tokens for each output token; the public traces span 5 to 100, agentic coding is at 452."""
FOOTPRINTS = (0.2, 0.5, 0.85, 1.5)
"""A partner machine's footprint over a wafer system's; 0.85 is by price (trn2.48xlarge over the assumed CS-3)."""
MACHINES = (1, 2, 4, 8, 16, 32)
CHUNKS = (256, 2048)
"""Tokens that a wafer alone mixes into a step; the better of them counts."""
TRACES = ("traces/mooncake_conversation.jsonl", "traces/azure_llm_2023_code.csv")
MIXES = ("azure-conv", "mooncake-synthetic")
MIX_REQUESTS = 5000


class Questions(msgspec.Struct, frozen=True, kw_only=True):
    """What the announcement leaves open, as parameters. ``opt_in`` is the share of traffic on the fast path."""

    model: str = "llama-3.1-70b"
    ttft_ms: float = 5000.0
    itl_ms: float = 2.0
    cs3_price: float | None = None
    opt_in: float = 1.0
    reader: str = "trainium2"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Everything on the page."""

    questions: Questions
    claims: tuple[Claim, ...]
    gains: tuple[Gain, ...]
    maps: dict[str, list[list[float]]]
    opt_in: str


def examine(
    questions: Questions,
    data: Path,
    *,
    jobs: int | None = None,
    count: Callable[[int], None] = lambda _: None,
    done: Callable[[], None] = lambda: None,
    ran: Callable[[str, int], None] = lambda _traffic, _runs: None,
) -> Found:
    """Runs every fleet that the page needs; ``ran`` hears of a traffic and its simulations so far.

    Raises ConfigError for a model or chip that cannot be used."""
    if not 0.0 < questions.opt_in <= 1.0:
        raise ConfigError("--opt-in is a share above 0 and at most 1")
    shapes = traffic(data)
    grid = [_ratio_trace(ratio) for ratio in RATIOS]
    count((len(SHARES) * len(CHUNKS) + len(MACHINES)) * (len(shapes) + len(grid)) + 1)
    objectives = Objectives(ttft_ms=questions.ttft_ms, itl_ms=questions.itl_ms)
    measured = [_fleets(questions, trace, objectives, jobs, done, ran) for trace in [*shapes, *grid]]
    gains = [g for t, fleets in zip(shapes, measured, strict=False) for g in _gains(questions, t, *fleets)]
    maps = _maps(questions, measured[len(shapes) :])
    gpu = _aggregated_gpus(questions, shapes[0], jobs)
    done()
    return Found(
        questions=questions, claims=(*speed_claims(), capacity_claim(gains, maps)), gains=tuple(gains),
        maps=maps, opt_in=_opt_in(questions, gains, gpu),
    )  # fmt: skip


def traffic(data: Path) -> list[Trace]:
    """The public traces that are there, and two mixes drawn from the statistics of two that need not be."""
    there = [data / name for name in TRACES if (data / name).is_file()]
    mixes = [f"{name}:requests={MIX_REQUESTS},seed=1" for name in MIXES]
    return [load(str(spec)) for spec in [*there, *mixes]]


def _ratio_trace(ratio: float) -> Trace:
    """Poisson arrivals of one shape: 8,000 tokens in all, of which 1 in ``ratio + 1`` is output."""
    output = max(4, round(8000 / (ratio + 1)))
    drawn = load(f"poisson:requests={MIX_REQUESTS},input={round(output * ratio)},output={output},seed=1")
    return msgspec.structs.replace(drawn, name=f"{ratio:g} prompt tokens per output token")


# -- fleets ------------------------------------------------------------------------------------------------------------


def _wafer_side(questions: Questions, replicas: int) -> Side:
    fewest = fewest_chips(Worker(chip="cs3", model=questions.model, chips=1))
    systems = fewest + -(-fewest // 2)  # the fewest leave next to no room for KV
    return Side(chip="cs3", format="bf16", chips=systems, machine="cs3", machines=systems * replicas)


def _partner_side(questions: Questions, machines: int) -> Side:
    """Whole machines of the partner chip, each one replica as large as a machine allows."""
    found = sides(questions.model, Choice(questions.reader))
    largest = max(found, key=lambda entry: entry[0].chips)
    return msgspec.structs.replace(largest[0], machines=machines * largest[1])


def _fleets(
    questions: Questions,
    trace: Trace,
    objectives: Objectives,
    jobs: int | None,
    done: Callable[[], None],
    ran: Callable[[str, int], None],
) -> tuple[list[Evaluation], list[Evaluation]]:
    """(wafers alone at every prefill share, the same wafers with every number of partner machines)."""
    wafers = _wafer_side(questions, 2)
    alone = [
        Candidate(model=questions.model, mode="aggregated", decode=wafers, chunk_tokens=chunk,
                  assume=Assumptions(prefill_share=share))
        for share in SHARES for chunk in CHUNKS
    ]  # fmt: skip
    pairs = [
        Candidate(model=questions.model, mode="disaggregated", prefill=_partner_side(questions, n), decode=wafers)
        for n in MACHINES
    ]
    found = search(
        [*alone, *pairs], trace, objectives, jobs=jobs, done=lambda _: done(), ran=lambda n: ran(trace.name, n)
    )
    by_share = [found[i : i + len(CHUNKS)] for i in range(0, len(alone), len(CHUNKS))]
    return [max(tried, key=lambda e: e.max_goodput_rps) for tried in by_share], found[len(alone) :]


def _aggregated_gpus(questions: Questions, trace: Trace, jobs: int | None) -> Evaluation:
    """The second baseline: H100s alone, at an ordinary objective of 50 ms a token."""
    side = Side(chip="h100", format="bf16", chips=8, machine="p5.48xlarge", machines=4)
    fleet = Candidate(model=questions.model, mode="aggregated", decode=side, chunk_tokens=512)
    return search([fleet], trace, Objectives(ttft_ms=questions.ttft_ms, itl_ms=50.0), jobs=jobs)[0]


def _wafer_price(questions: Questions) -> float:
    return questions.cs3_price or catalogue.chip("cs3").footprint.price.si


def _price(questions: Questions, e: Evaluation) -> float | None:
    """USD/h with the price of a CS-3 that was asked about."""
    listed = total(e.candidate, "price")
    if listed is None:
        return None
    systems = sum(side.machines for side in e.candidate.sides if side.chip == "cs3")
    return listed + systems * (_wafer_price(questions) - catalogue.chip("cs3").footprint.price.si)


def _gains(questions: Questions, trace: Trace, alone: list[Evaluation], pairs: list[Evaluation]) -> list[Gain]:
    """For every prefill share, with the number of partner machines that serves most per dollar."""
    best = max(pairs, key=lambda e: e.max_goodput_rps / (_price(questions, e) or 1.0))
    partner = best.candidate.prefill
    assert partner is not None, "a pair has a side that reads"
    return [
        Gain(
            trace.name, share, single.max_goodput_rps, best.max_goodput_rps, partner.describe(),
            _ratio(best, single, lambda e: _price(questions, e)),
            _ratio(best, single, lambda e: total(e.candidate, "rack_units")),
        )
        for share, single in zip(SHARES, alone, strict=True)
    ]  # fmt: skip


def _ratio(pair: Evaluation, single: Evaluation, amount: Callable[[Evaluation], float | None]) -> float | None:
    """Goodput for the amount, pair over single; infinite where only the pair can serve the traffic, None where
    neither can or an amount is unknown."""
    own, other = amount(pair), amount(single)
    if own is None or other is None or not (pair.max_goodput_rps or single.max_goodput_rps):
        return None
    if not single.max_goodput_rps:
        return float("inf")
    return pair.max_goodput_rps / own / (single.max_goodput_rps / other)


def _maps(
    questions: Questions, measured: Sequence[tuple[list[Evaluation], list[Evaluation]]]
) -> dict[str, list[list[float]]]:
    """Footprint ratio -> gain by (ratio of prompt to output, prefill share), over the best number of machines."""
    systems = _wafer_side(questions, 2).machines
    maps = {}
    for u in FOOTPRINTS:
        rows = []
        for alone, pairs in measured:
            per_wafer = [(pair.max_goodput_rps / (systems + u * n)) for pair, n in zip(pairs, MACHINES, strict=True)]
            best = max(per_wafer)
            rows.append([best / (e.max_goodput_rps / systems) if e.max_goodput_rps else _only(best) for e in alone])
        maps[f"{u:g}"] = rows
    return maps


def _only(pair: float) -> float:
    return float("inf") if pair else float("nan")


# -- the page ----------------------------------------------------------------------------------------------------


def _opt_in(questions: Questions, gains: Sequence[Gain], gpu: Evaluation) -> str:
    """What the fast path costs when only a share of the traffic asks for it."""
    fast = [g for g in gains if g.prefill_share == WAFER_PREFILL_SHARES[1] and g.pair_rps > 0]
    slow = gpu.per("dollar")
    if not fast or not slow:
        return "The fast path's cost could not be compared: a fleet did not meet its objectives or has no price."
    wafers = _wafer_side(questions, 2).machines * _wafer_price(questions)
    partner = _partner_side(questions, 1)
    machine = total(Candidate(model=questions.model, mode="aggregated", decode=partner), "price") or 0.0
    chosen = fast[0]
    machines = int(chosen.partner.split(" ", 1)[0])
    dear = (wafers + machine * machines / partner.machines) / chosen.pair_rps
    mixed = questions.opt_in * dear + (1.0 - questions.opt_in) / slow
    return (
        f"On {chosen.traffic}, a request/s costs {dear:,.0f} USD/h on the fast pair and {1 / slow:,.0f} on H100s at "
        f"50 ms a token. With {questions.opt_in:.0%} of the traffic on the fast path it is {mixed:,.0f}; invisible to "
        f"all, {dear:,.0f}."
    )


def as_page(found: Found) -> str:
    """One HTML file."""
    maps = [
        plots.heat(RATIOS, SHARES, np.array(rows), (*MAP_LABELS, f"partner footprint {u} of a wafer"))
        for u, rows in found.maps.items()
    ]
    parts = [
        page.paragraphs([_asked(found.questions)]),
        page.table(
            ["claim", "recomputed", "verdict", "weakest input"],
            [[c.claim, c.computed, c.verdict, c.kind] for c in found.claims],
        ),
        page.heading("Wafers alone against wafers with a partner that reads"),
        page.paragraphs([GAINS_NOTE]),
        page.table(GAINS_HEADER, [_gain_row(gain) for gain in found.gains]),
        page.heading("Where disaggregation pays"),
        page.paragraphs([MAP_NOTE]),
        *maps,
        page.heading("Opt-in or invisible"),
        page.paragraphs([found.opt_in]),
    ]
    return page.page("The announcement, re-examined", parts)


MAP_LABELS = ("prompt tokens per output token", "wafer prefill, share of dense peak")
GAINS_HEADER = ["traffic", "share", "alone req/s", "pair req/s", "partner", "gain per dollar", "gain per rack unit"]
GAINS_NOTE = (
    "Two replicas of wafers; the partner's machines are as many as serve most per dollar. The share is the part of its "
    "dense peak that a wafer reaches when it reads prompts itself, which is unpublished."
)
MAP_NOTE = (
    "Gain in goodput for the same footprint. Above 1, the pair wins. In a fluid model the line would not depend on the "
    "traffic at all; with whole machines, KV limits and objectives it does."
)


def _asked(q: Questions) -> str:
    return (
        f"Model {q.model}; objectives: first token within {q.ttft_ms:,.0f} ms, {q.itl_ms:g} ms a token; a CS-3 system "
        f"at {_wafer_price(q):,.2f} USD/h (nobody has published a price); prompts read by {q.reader}; "
        f"{q.opt_in:.0%} of the traffic on the fast path."
    )


def _gain_row(g: Gain) -> list[object]:
    share = f"{g.prefill_share:.0%}"
    return [g.traffic, share, g.alone_rps, g.pair_rps, g.partner, g.gain_by_price, g.gain_by_rack]
