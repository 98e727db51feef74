"""Who may go into the fleet next, by service tier. Pure.

    reserved > priority > default > flex        first come, first served within a tier

At most ``capacity`` requests are in the fleet at once; what waits, waits here, where it can be overtaken. Of the
capacity ``kept`` places are for the tier ``reserved``, which takes a place of the others only when its own are taken.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from diptych.types import TIERS, Tier


class Admission:
    """``capacity`` is asked at every step, since workers come and go; 0 lets everybody in, to be told so."""

    def __init__(self, capacity: Callable[[], int], kept: int = 0) -> None:
        self._capacity = capacity
        self._kept = kept
        self._inside: dict[str, Tier] = {}
        self._waiting: dict[Tier, OrderedDict[str, None]] = {tier: OrderedDict() for tier in TIERS}

    @property
    def waiting(self) -> dict[str, int]:
        """Tier -> requests that wait."""
        return {tier: len(queue) for tier, queue in self._waiting.items()}

    @property
    def inside(self) -> int:
        return len(self._inside)

    def enter(self, request_id: str, tier: Tier) -> list[str]:
        """The request has come. Returns who goes in now, in order."""
        self._waiting[tier][request_id] = None
        return self._admit()

    def leave(self, request_id: str) -> list[str]:
        """The request is over, or waits no longer. Returns who goes in now."""
        self._inside.pop(request_id, None)
        for queue in self._waiting.values():
            queue.pop(request_id, None)
        return self._admit()

    def _admit(self) -> list[str]:
        admitted: list[str] = []
        while (tier := self._next()) is not None:
            request_id, _ = self._waiting[tier].popitem(last=False)
            self._inside[request_id] = tier
            admitted.append(request_id)
        return admitted

    def _next(self) -> Tier | None:
        """The tier whose turn it is, or None."""
        capacity = self._capacity()
        tier = next((tier for tier in TIERS if self._waiting[tier]), None)
        if tier is None or capacity <= 0:
            return tier
        if len(self._inside) >= capacity:
            return None
        if tier == "reserved":
            return tier
        own = sum(inside == "reserved" for inside in self._inside.values())
        free = capacity - len(self._inside) - max(0, min(self._kept, capacity - 1) - own)
        return tier if free > 0 else None
