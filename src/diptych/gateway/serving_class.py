"""The class of service that a client asked for, and the echo of what it got. Pure."""

from __future__ import annotations

import msgspec

from diptych.types import Latency, RequestRecord, Tier


class ServingClass(msgspec.Struct, frozen=True):
    """``latency`` and ``tier`` are None where the client did not say; what it did say is echoed."""

    latency: Latency | None = None
    tier: Tier | None = None

    @property
    def wanted(self) -> Latency:
        """A priority tier may use the fast path as well as latency "optimized"."""
        return "optimized" if self.latency == "optimized" or self.tier == "priority" else "standard"

    @property
    def admitted_as(self) -> Tier:
        """The tier to ask for; the default one where the client did not say."""
        return self.tier or "default"

    def served_latency(self, record: RequestRecord | None) -> Latency | None:
        """The latency class actually served, if the client asked for one."""
        if self.latency is None:
            return None
        return record.served_latency if record is not None else "standard"

    def served_tier(self, served: Tier) -> Tier | None:
        """The tier actually served, if the client asked for one."""
        return None if self.tier is None else served
