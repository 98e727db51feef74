"""Small fleets and traces, and the shared data where it is there."""

from __future__ import annotations

import os
from array import array
from pathlib import Path

import pytest

from diptych.chips.stepcost import StepCost
from diptych.planner.fleetplan import DecodePool, FleetPlan, Handoff, PrefillPool
from diptych.planner.traces import Trace

DATA = Path(os.environ.get("DIPTYCH_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture
def data() -> Path:
    """The folder with traces/ and measurements/; a skip with the reason where it is not there."""
    if not DATA.is_dir():
        pytest.skip(f"no shared data at {DATA}; set DIPTYCH_DATA")
    return DATA


def cost(*, read: float = 0.001, step: float = 0.02, per_token: float = 0.0, room: int = 10**9,
         start: float = 0.0) -> StepCost:  # fmt: skip
    """A worker that reads a token in ``read`` s and takes a step in ``step`` s + ``per_token`` a KV token."""
    return StepCost(
        prefill_fixed_s=start, prefill_token_s=read, decode_fixed_s=step, decode_token_s=per_token,
        kv_capacity_tokens=room,
    )  # fmt: skip


def trace(*requests: tuple[float, int, int], blocks: tuple[tuple[int, ...], ...] = ()) -> Trace:
    """Requests of (arrival, prompt, output)."""
    times, prompts, outputs = zip(*requests, strict=True)
    return Trace("test", array("d", times), array("q", prompts), array("q", outputs), blocks)


def pair(prefill: StepCost, decode: StepCost, *, p: int = 1, d: int = 1, handoff: Handoff | None = None,
         prefills: bool = False, slots: int = 256, nic: float = float("inf"), cache: int = 0) -> FleetPlan:  # fmt: skip
    """``p`` prefill and ``d`` decode workers."""
    return FleetPlan(
        prefill=(PrefillPool(name="P", cost=prefill, count=p, nic_bytes_s=nic, cache_tokens=cache),),
        decode=(DecodePool(name="D", cost=decode, count=d, slots=slots, prefills=prefills, nic_bytes_s=nic),),
        handoff=handoff or Handoff(),
    )


def alone(decode: StepCost, *, d: int = 1, slots: int = 256, chunk: int = 512) -> FleetPlan:
    """``d`` workers that read and write."""
    return FleetPlan(
        decode=(DecodePool(name="D", cost=decode, count=d, slots=slots, prefills=True, chunk_tokens=chunk),)
    )
