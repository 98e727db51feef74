"""What a deployment may switch on; without it, nothing of it costs anything."""

from __future__ import annotations

import msgspec

from diptych.gateway.guardrails.policy import Guardrails


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """``guardrails`` are those that requests may name."""

    guardrails: Guardrails = msgspec.field(default_factory=Guardrails)
