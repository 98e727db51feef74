"""What the router, the emulated engine and the simulator need to know of a chip: four members, nothing else."""

from __future__ import annotations

from typing import Protocol


class CostModel(Protocol):
    """Seconds and capacity of one worker (an engine on its chips) for one model."""

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens of KV cache that the worker holds at once."""

    @property
    def cost_per_hour(self) -> float | None:
        """Price of the worker in US dollars an hour; None where it is unknown."""

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> float:
        """Seconds to compute the KV of ``new_tokens`` that follow ``cached_tokens``, nothing else running."""

    def decode_s(self, batch: int, context_tokens: int) -> float:
        """Seconds of one decode step of ``batch`` sequences with ``context_tokens`` KV tokens in all."""
