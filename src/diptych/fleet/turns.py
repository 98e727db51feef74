"""Whose chunk a prefill engine computes next. Pure.

Shortest remaining prompt first keeps a short prompt from waiting behind a whole long one; ageing keeps a long one
from waiting for ever: a second of waiting counts as ``AGEING_TOKENS_PER_S`` fewer tokens to go.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

AGEING_TOKENS_PER_S = 250.0


class Turn(Protocol):
    """A prompt that has chunks to compute. ``added_s`` is when it was accepted."""

    added_s: float

    @property
    def remaining(self) -> int: ...

    @property
    def started(self) -> bool: ...

    @property
    def ready(self) -> bool:
        """False while what takes its chunks is full: computing one would hold up everybody else's."""


AnyTurn = TypeVar("AnyTurn", bound=Turn)


def next_turn(turns: Iterable[AnyTurn], now_s: float, active_limit: int) -> AnyTurn | None:
    """The turn to give a chunk, or None. At most ``active_limit`` prompts hold KV buffers at once."""
    everyone = list(turns)
    full = sum(turn.started for turn in everyone) >= active_limit
    eligible = [turn for turn in everyone if turn.ready and (turn.started or not full)]
    return min(eligible, key=lambda turn: turn.remaining - AGEING_TOKENS_PER_S * (now_s - turn.added_s), default=None)
