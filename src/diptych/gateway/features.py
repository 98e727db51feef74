"""What a deployment may switch on; without it, nothing of it costs anything."""

from __future__ import annotations

import msgspec

from diptych.config import Prices
from diptych.gateway.guardrails.policy import Guardrails
from diptych.gateway.invocation_log import InvocationLog
from diptych.gateway.tracing import Tracing


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """``guardrails`` are those that requests may name; ``prices`` are for every model."""

    guardrails: Guardrails = msgspec.field(default_factory=Guardrails)
    prices: Prices | None = None
    tracing: Tracing | None = None
    invocation_log: InvocationLog | None = None

    def close(self) -> None:
        """Sends and writes what is still to be."""
        for part in (self.tracing, self.invocation_log):
            if part is not None:
                part.close()
