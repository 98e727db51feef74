"""``diptych bench pair``: the same prompts, one at a time, through the pair and through each engine alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec

from diptych.bench.rig import Rig, measure, rig, summary
from diptych.config import FleetSettings
from diptych.engines.torch import TorchConfig, TorchPrefill
from diptych.engines.torch_generate import StockModel
from diptych.serving import find_model
from diptych.types import RequestRecord

ALONE_BATCHES = (512, 2048)


class Timing(msgspec.Struct, frozen=True):
    """One request as its client sees it, in milliseconds."""

    ttft_ms: float
    itl_ms: float
    e2e_ms: float


async def run(settings: FleetSettings, prompt_tokens: int, output_tokens: int, runs: int) -> dict[str, Any]:
    """The result as JSON types; medians over ``runs``, each run with its own prompt."""
    config = TorchConfig(device=settings.prefill[0].device, threads=settings.prefill[0].threads)
    stock = StockModel(TorchPrefill(find_model(settings), config))
    async with rig(settings, ALONE_BATCHES) as fleet:
        await _warm(fleet, stock)
        fleet.progress.phase("measuring", runs)
        rounds = []
        for seed in range(runs):
            rounds.append(await _round(fleet, stock, fleet.prompt(prompt_tokens, seed), output_tokens))
            fleet.progress.advance()
    return _result(fleet, rounds, prompt_tokens, output_tokens)


class Round(msgspec.Struct, frozen=True):
    """One prompt by every way. ``alone`` has one record per decode worker that serves alone."""

    pair: RequestRecord
    routed: RequestRecord
    alone: tuple[RequestRecord, ...]
    prefill_alone: Timing


async def _warm(fleet: Rig, stock: StockModel) -> None:
    prompt = fleet.prompt(64, 9_999)
    for way in (fleet.pair, *fleet.alone):
        await measure(fleet, prompt, 4, way)
    await asyncio.to_thread(_generate, stock, prompt, 4)


async def _round(fleet: Rig, stock: StockModel, prompt: Sequence[int], output_tokens: int) -> Round:
    pair = await measure(fleet, prompt, output_tokens, fleet.pair)
    alone = [await measure(fleet, prompt, output_tokens, way) for way in fleet.alone]
    prefill_alone = await asyncio.to_thread(_generate, stock, prompt, output_tokens)
    # the router's own choice, on a prompt that no worker has seen
    fresh = tuple(reversed(prompt))
    routed = await measure(fleet, fresh, output_tokens, None)
    return Round(pair, routed, tuple(alone), prefill_alone)


def _generate(stock: StockModel, prompt: Sequence[int], output_tokens: int) -> Timing:
    run = stock.generate_greedy(prompt, output_tokens, ignore_eos=True)
    return Timing(run.ttft_ms, run.itl_ms, run.e2e_ms)


def _result(fleet: Rig, rounds: Sequence[Round], prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    alone = [[_timing(round_.alone[i]) for round_ in rounds] for i in range(len(fleet.alone))]
    best = min(range(len(alone)), key=lambda i: median(t.e2e_ms for t in alone[i]))
    pair = _columns([_timing(round_.pair) for round_ in rounds])
    decode_alone = _columns(alone[best])
    prefill_alone = _columns([round_.prefill_alone for round_ in rounds])
    handoff = [round_.pair.parts_ms.convert + round_.pair.parts_ms.transfer for round_ in rounds]
    return {
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "runs": len(rounds),
        "disaggregated": pair,
        "decode_alone": {**decode_alone, "n_batch": fleet.batch_of(fleet.alone[best])},
        "prefill_alone": prefill_alone,
        "routed": {
            **_columns([_timing(round_.routed) for round_ in rounds]),
            "placements": [round_.routed.placement for round_ in rounds],
        },
        "handoff_ms": median(handoff),
        "handoff_share_of_e2e": median(handoff) / pair["e2e_ms"],
        "ratio": {
            "e2e_vs_best_single": _ratio(pair, decode_alone, prefill_alone, "e2e_ms"),
            "ttft_vs_best_single": _ratio(pair, decode_alone, prefill_alone, "ttft_ms"),
        },
        "split_efficiency": median(_efficiency(round_.pair) for round_ in rounds),
        "kv_tokens": rounds[0].pair.kv_tokens,
        "spread": {
            "disaggregated_e2e_ms": summary([_timing(round_.pair).e2e_ms for round_ in rounds]),
            "decode_alone_e2e_ms": summary([timing.e2e_ms for timing in alone[best]]),
            "prefill_alone_e2e_ms": summary([round_.prefill_alone.e2e_ms for round_ in rounds]),
        },
    }


def _timing(record: RequestRecord) -> Timing:
    return Timing(record.ttft_ms or 0.0, record.itl_ms or 0.0, record.e2e_ms or 0.0)


def _columns(timings: Sequence[Timing]) -> dict[str, Any]:
    return {name: median(getattr(timing, name) for timing in timings) for name in Timing.__struct_fields__}


def _ratio(pair: dict[str, Any], one: dict[str, Any], other: dict[str, Any], name: str) -> float:
    return float(min(one[name], other[name]) / pair[name])


def _efficiency(record: RequestRecord) -> float:
    """The engines' own compute time, as each reports it, over end to end."""
    assert record.e2e_ms is not None
    return (record.engine_ms.prefill + record.engine_ms.decode) / record.e2e_ms
