"""Where one request runs: its predicted time on every pair and on every decode worker alone. Pure, no I/O.

The same function places requests in the live service and in the simulator. It looks at a snapshot
(:class:`Fleet`) and answers with a :class:`Placement`; it never waits, measures or remembers.

    aggregated:     [ D queue ][ D prefill of new tokens, which yields the first token ][ decode ... ]
    disaggregated:  [ P queue ][ P prefill of new tokens ][ tail ][ D queue ][ first step ][ decode ... ]

A prefill inside a decode engine also holds up the streams that run there. That delay is somebody's latency,
so it is added to the score (not to the prediction): the choice minimises the time of all, not of one.
"""

from __future__ import annotations

import msgspec

from diptych.chips.cost import CostModel
from diptych.types import PlacementKind


class Demand(msgspec.Struct, frozen=True):
    """What the router knows of a request: its prompt's length, the output expected, and whether it may use the pair."""

    prompt_tokens: int
    output_tokens: int
    may_disaggregate: bool = True


class PrefillState(msgspec.Struct, frozen=True):
    """One prefill worker now. ``queue_s`` is work accepted before us; ``cached_tokens`` our prefix already there."""

    id: str
    cost: CostModel
    queue_s: float = 0.0
    cached_tokens: int = 0


class DecodeState(msgspec.Struct, frozen=True):
    """One decode worker now. ``wait_s`` is the time until a slot is free for us (0 when one is)."""

    id: str
    cost: CostModel
    wait_s: float = 0.0
    batch: int = 0
    context_tokens: int = 0
    cached_tokens: int = 0
    prefills: bool = True


class Link(msgspec.Struct, frozen=True):
    """A qualified (prefill, decode) pair: what remains after prefill's last chunk, fixed and per token."""

    prefill: str
    decode: str
    base_s: float = 0.0
    s_per_token: float = 0.0


class Fleet(msgspec.Struct, frozen=True):
    """A snapshot of every worker and of the pairs that may be used."""

    prefill: tuple[PrefillState, ...]
    decode: tuple[DecodeState, ...]
    links: tuple[Link, ...]


class Estimate(msgspec.Struct, frozen=True):
    """Predicted seconds of one way to serve a request. ``score_s`` adds the delay that it imposes on others."""

    kind: PlacementKind
    decode: str
    prefill: str | None
    ttft_s: float
    total_s: float
    score_s: float


class Placement(msgspec.Struct, frozen=True):
    """The way chosen and the best of each kind that was possible."""

    chosen: Estimate
    disaggregated: Estimate | None
    aggregated: Estimate | None


def place(demand: Demand, fleet: Fleet) -> Placement:
    """The placement with the lowest score. Raises LookupError when no worker can serve the request at all."""
    alone = min((_aggregated(demand, d) for d in fleet.decode if d.prefills), key=_score, default=None)
    pairs = _pairs(demand, fleet) if demand.may_disaggregate and demand.prompt_tokens > 1 else []
    pair = min(pairs, key=_score, default=None)
    ways = [way for way in (alone, pair) if way is not None]
    if not ways:
        raise LookupError("no worker can serve the request")
    return Placement(min(ways, key=_score), pair, alone)


def _pairs(demand: Demand, fleet: Fleet) -> list[Estimate]:
    prefill = {worker.id: worker for worker in fleet.prefill}
    decode = {worker.id: worker for worker in fleet.decode}
    return [
        _disaggregated(demand, prefill[link.prefill], decode[link.decode], link)
        for link in fleet.links
        if link.prefill in prefill and link.decode in decode
    ]


def _score(estimate: Estimate) -> tuple[float, float, str, str]:
    return (estimate.score_s, estimate.ttft_s, estimate.decode, estimate.prefill or "")


def _aggregated(demand: Demand, decode: DecodeState) -> Estimate:
    cached = min(decode.cached_tokens, demand.prompt_tokens - 1)
    reading_s = decode.cost.prefill_s(demand.prompt_tokens - cached, cached)
    _, rest_s = _decoding(demand, decode)
    ttft_s = decode.wait_s + reading_s
    total_s = ttft_s + rest_s
    score_s = total_s + decode.batch * reading_s
    return Estimate("aggregated", decode.id, None, ttft_s, total_s, score_s)


def _disaggregated(demand: Demand, prefill: PrefillState, decode: DecodeState, link: Link) -> Estimate:
    handed_over = demand.prompt_tokens - 1
    cached = min(prefill.cached_tokens, handed_over)
    reading_s = prefill.queue_s + prefill.cost.prefill_s(handed_over - cached, cached)
    tail_s = link.base_s + link.s_per_token * handed_over
    first_s, rest_s = _decoding(demand, decode)
    ttft_s = max(reading_s + tail_s, decode.wait_s) + first_s
    total_s = ttft_s + rest_s
    return Estimate("disaggregated", decode.id, prefill.id, ttft_s, total_s, total_s)


def _decoding(demand: Demand, decode: DecodeState) -> tuple[float, float]:
    """Seconds of the first step, and of the steps after it at the mean context of the output."""
    batch = decode.batch + 1
    context = decode.context_tokens + demand.prompt_tokens
    first_s = decode.cost.decode_s(batch, context)
    mean_s = decode.cost.decode_s(batch, context + demand.output_tokens // 2)
    return first_s, mean_s * max(0, demand.output_tokens - 1)
