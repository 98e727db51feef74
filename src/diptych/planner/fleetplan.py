"""A fleet to simulate: pools of equal workers, what a handoff between them costs, and what breaks when."""

from __future__ import annotations

import math

import msgspec

from diptych.chips.cost import CostModel


class PrefillPool(msgspec.Struct, frozen=True, kw_only=True):
    """``count`` workers that read prompts one after another, ``chunk_tokens`` at a time.

    Each keeps the prefixes of the last ``cache_tokens`` tokens it read, and sends with ``nic_bytes_s``.
    """

    name: str
    cost: CostModel
    count: int
    chunk_tokens: int = 2048
    cache_tokens: int = 0
    nic_bytes_s: float = math.inf


class DecodePool(msgspec.Struct, frozen=True, kw_only=True):
    """``count`` workers that decode up to ``slots`` sequences together.

    With ``prefills`` they also read prompts themselves, mixing ``chunk_tokens`` into each step. ``interference`` is
    the part of a chunk's own time by which it holds up the sequences beside it.
    """

    name: str
    cost: CostModel
    count: int
    slots: int = 256
    prefills: bool = False
    chunk_tokens: int = 512
    interference: float = 1.0
    nic_bytes_s: float = math.inf


class Handoff(msgspec.Struct, frozen=True):
    """Bytes and times of one handoff. Layers with a window hand over at most ``window`` tokens.

    With ``overlap``, chunks are converted and sent while the next is computed, so that after prefill only the last
    chunk remains, and whatever a slow link could not carry meanwhile.
    """

    bytes_per_token: float = 0.0
    near_bytes_per_token: float = 0.0
    window: int = 0
    base_s: float = 0.0
    convert_bytes_s: float = math.inf
    overlap: bool = True

    def bytes_of(self, tokens: int) -> float:
        return self.bytes_per_token * tokens + self.near_bytes_per_token * min(tokens, self.window)


class Failure(msgspec.Struct, frozen=True):
    """``worker`` (a pool's name and an index, as "P0" or "D3") is gone from ``at_s`` on."""

    at_s: float
    worker: str


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Aggregated fleets have no prefill pool; disaggregated ones have no decode pool that prefills; mixed have both.

    ``price_per_hour``, ``power_w`` and ``rack_units`` are of the whole machines; None where one is unknown.
    """

    prefill: tuple[PrefillPool, ...] = ()
    decode: tuple[DecodePool, ...]
    handoff: Handoff = Handoff()
    failures: tuple[Failure, ...] = ()
    price_per_hour: float | None = None
    power_w: float | None = None
    rack_units: float | None = None

    @property
    def mode(self) -> str:
        """ "aggregated", "disaggregated" or "mixed"."""
        if not self.prefill:
            return "aggregated"
        return "mixed" if any(pool.prefills for pool in self.decode) else "disaggregated"
