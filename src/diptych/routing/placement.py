"""Where one request runs: its predicted time on every pair and on every decode worker alone. Pure, no I/O.

The same function places requests in the live service and in the simulator. It looks at a snapshot
(:class:`Fleet`) and answers with a :class:`Placement`; it never waits, measures or remembers.

    aggregated:     [ D queue ][ D prefill of new tokens, which yields the first token ][ decode ... ]
    disaggregated:  [ P queue ][ P prefill of new tokens ][ tail ][ D queue ][ first step ][ decode ... ]

A prefill inside a decode engine also holds up the streams that run there, and the prompts of a prefill worker on the
same cores. That delay is somebody's latency, so it is added to the score (not to the prediction): the choice
minimises the time of all, not of one.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from diptych.chips.cost import CostModel
from diptych.types import PlacementKind


class Demand(msgspec.Struct, frozen=True, gc=False):
    """What the router knows of a request: its prompt's length, the output expected, and whether it may use the pair."""

    prompt_tokens: int
    output_tokens: int
    may_disaggregate: bool = True


class PrefillState(msgspec.Struct, frozen=True, gc=False):
    """One prefill worker now. ``queue_s`` is work accepted before us; ``cached_tokens`` our prefix already there."""

    id: str
    cost: CostModel
    queue_s: float = 0.0
    cached_tokens: int = 0


class DecodeState(msgspec.Struct, frozen=True, gc=False):
    """One decode worker now. ``wait_s`` is the time until a slot is free for us (0 when one is).

    ``rival_s`` and ``rival_jobs`` are the work queued on prefill workers that compute on the same cores.
    """

    id: str
    cost: CostModel
    wait_s: float = 0.0
    batch: int = 0
    context_tokens: int = 0
    cached_tokens: int = 0
    prefills: bool = True
    rival_s: float = 0.0
    rival_jobs: int = 0


class Link(msgspec.Struct, frozen=True, gc=False):
    """A qualified (prefill, decode) pair: what remains after prefill's last chunk, fixed and per token."""

    prefill: str
    decode: str
    base_s: float = 0.0
    s_per_token: float = 0.0


Tail = tuple[tuple[float, float], tuple[str, ...], tuple[str, ...]]


class Links:
    """The pairs that may be used, grouped once for all snapshots of a fleet that share them.

    ``by_tail`` has (tail, prefill workers, decode workers), every such pair linked with that tail.
    """

    __slots__ = ("by_tail",)

    def __init__(self, links: Iterable[Link] = ()) -> None:
        sources: dict[tuple[float, float, str], list[str]] = {}
        for link in links:
            sources.setdefault((link.base_s, link.s_per_token, link.decode), []).append(link.prefill)
        targets: dict[tuple[float, float, tuple[str, ...]], list[str]] = {}
        for (base_s, s_per_token, target), froms in sources.items():
            targets.setdefault((base_s, s_per_token, tuple(froms)), []).append(target)
        self.by_tail: list[Tail] = [
            ((base_s, each_s), froms, tuple(to)) for (base_s, each_s, froms), to in targets.items()
        ]


class Fleet(msgspec.Struct, frozen=True, gc=False):
    """A snapshot of every worker and of the pairs that may be used."""

    prefill: tuple[PrefillState, ...]
    decode: tuple[DecodeState, ...]
    links: Links


class Estimate(msgspec.Struct, frozen=True, gc=False):
    """Predicted seconds of one way to serve a request. ``score_s`` adds the delay that it imposes on others."""

    kind: PlacementKind
    decode: str
    prefill: str | None
    ttft_s: float
    total_s: float
    score_s: float


class Placement(msgspec.Struct, frozen=True, gc=False):
    """The way chosen and the best of each kind that was possible."""

    chosen: Estimate
    disaggregated: Estimate | None
    aggregated: Estimate | None


def place(demand: Demand, fleet: Fleet) -> Placement:
    """The placement with the lowest score. Raises LookupError when no worker can serve the request at all."""
    decodings = _decodings(demand, fleet.decode)
    alone = min(
        (_aggregated(demand, d, decodings[d.id][1]) for d in fleet.decode if d.prefills), key=_score, default=None
    )
    pair = None
    if demand.may_disaggregate and demand.prompt_tokens > 1:
        pair = _best_pair(demand, fleet, decodings)
    ways = [way for way in (alone, pair) if way is not None]
    if not ways:
        raise LookupError("no worker can serve the request")
    return Placement(min(ways, key=_score), pair, alone)


def _best_pair(demand: Demand, fleet: Fleet, decodings: dict[str, tuple[float, float]]) -> Estimate | None:
    """The pair with the lowest score. Among links with one tail, the prefill worker that is ready first wins.

    So each prefill and each decode worker is estimated once, not once for every link between them.
    """
    handed_over = demand.prompt_tokens - 1
    ready_s = _readings(handed_over, fleet.prefill)
    waits = {worker.id: worker.wait_s for worker in fleet.decode}
    best: tuple[float, float, str, str] | None = None
    for (base_s, s_per_token), sources, targets in fleet.links.by_tail:
        ready = [(ready_s[source], source) for source in sources if source in ready_s]
        if not ready:
            continue
        read_s, source = min(ready)
        landed_s = read_s + base_s + s_per_token * handed_over
        for target in targets:
            if target in waits:
                first_s, rest_s = decodings[target]
                ttft_s = max(landed_s, waits[target]) + first_s
                way = (ttft_s + rest_s, ttft_s, target, source)
                if best is None or way < best:
                    best = way
    if best is None:
        return None
    total_s, ttft_s, target, source = best
    return Estimate("disaggregated", target, source, ttft_s, total_s, total_s)


def _readings(handed_over: int, workers: tuple[PrefillState, ...]) -> dict[str, float]:
    """Worker -> seconds until it has read the prompt. Neighbours with one cost and one prefix are priced once."""
    ready_s = {}
    cost, cached_tokens, reading_s = None, 0, 0.0
    for worker in workers:
        if worker.cost is not cost or worker.cached_tokens != cached_tokens:
            cost, cached_tokens = worker.cost, worker.cached_tokens
            cached = min(cached_tokens, handed_over)
            reading_s = cost.prefill_s(handed_over - cached, cached)
        ready_s[worker.id] = worker.queue_s + reading_s
    return ready_s


def _score(estimate: Estimate) -> tuple[float, float, str, str]:
    return (estimate.score_s, estimate.ttft_s, estimate.decode, estimate.prefill or "")


def _aggregated(demand: Demand, decode: DecodeState, rest_s: float) -> Estimate:
    """Reading yields the first token. On cores that prefill workers use too, both take turns while both have work."""
    cached = min(decode.cached_tokens, demand.prompt_tokens - 1)
    reading_s = decode.cost.prefill_s(demand.prompt_tokens - cached, cached)
    ttft_s = decode.wait_s + reading_s + min(reading_s, decode.rival_s)
    total_s = ttft_s + rest_s
    score_s = total_s + (decode.batch + decode.rival_jobs) * reading_s
    return Estimate("aggregated", decode.id, None, ttft_s, total_s, score_s)


def _decodings(demand: Demand, workers: tuple[DecodeState, ...]) -> dict[str, tuple[float, float]]:
    """Worker -> seconds of the first step, and of the steps after it at the mean context of the output.

    Neighbours in one state (all that are idle, say) are priced once.
    """
    found = {}
    cost, batch, context, priced = None, -1, -1, (0.0, 0.0)
    for worker in workers:
        if worker.context_tokens != context or worker.batch != batch or worker.cost is not cost:
            cost, batch, context = worker.cost, worker.batch, worker.context_tokens
            full = context + demand.prompt_tokens
            mean_s = cost.decode_s(batch + 1, full + demand.output_tokens // 2)
            priced = cost.decode_s(batch + 1, full), mean_s * max(0, demand.output_tokens - 1)
        found[worker.id] = priced
    return found
