"""The life of one handoff as a pure state machine: events and times in, states out.

    offered --write--> streaming --seal--> sealed --admit--> admitted --release--> released
       |   \\-----seal (all in one go)------^  |                 |
       +-------------+------------------------+--fail(reason)----+----------------> failed

``released`` and ``failed`` are final; releasing or failing twice changes nothing. Every other phase has a
deadline.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from diptych.errors import StaleWrite

Phase = Literal["offered", "streaming", "sealed", "admitted", "released", "failed"]
Event = Literal["write", "seal", "admit", "release"]

FINAL: frozenset[Phase] = frozenset({"released", "failed"})

_NEXT: dict[tuple[Phase, Event], Phase] = {
    ("offered", "write"): "streaming",
    ("streaming", "write"): "streaming",
    ("offered", "seal"): "sealed",
    ("streaming", "seal"): "sealed",
    ("sealed", "admit"): "admitted",
    ("offered", "release"): "released",
    ("streaming", "release"): "released",
    ("sealed", "release"): "released",
    ("admitted", "release"): "released",
    ("released", "release"): "released",
    ("failed", "release"): "failed",
}


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that a handoff may spend in each phase; ``streaming_s`` counts from the latest piece."""

    offered_s: float = 30.0
    streaming_s: float = 30.0
    sealed_s: float = 30.0
    admitted_s: float = 3600.0


class HandoffState(msgspec.Struct, frozen=True):
    """Where a handoff is. Times are seconds of one monotonic clock; ``reason`` says why it failed."""

    phase: Phase
    since: float
    deadline: float | None
    reason: str | None = None

    @property
    def final(self) -> bool:
        return self.phase in FINAL

    def expired(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline


def offered(now: float, deadlines: Deadlines) -> HandoffState:
    """The first state."""
    return HandoffState("offered", now, now + deadlines.offered_s)


def step(state: HandoffState, event: Event, now: float, deadlines: Deadlines) -> HandoffState:
    """The state after ``event``. Raises StaleWrite where the event is not possible any more, or not yet."""
    phase = _NEXT.get((state.phase, event))
    if phase is None:
        raise StaleWrite(f"a handoff that is {state.phase} ({state.reason or 'no failure'}) cannot {event}")
    if phase == state.phase and phase in FINAL:
        return state
    limit = {
        "streaming": deadlines.streaming_s,
        "sealed": deadlines.sealed_s,
        "admitted": deadlines.admitted_s,
    }.get(phase)
    return HandoffState(phase, now, None if limit is None else now + limit)


def fail(state: HandoffState, reason: str, now: float) -> HandoffState:
    """The failed state, with the first reason; a final state stays as it is."""
    return state if state.final else HandoffState("failed", now, None, reason)
