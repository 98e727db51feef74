"""What became of every handoff that the service began: exactly one of admitted, recomputed and failed. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

End = Literal["admitted", "recomputed", "failed"]


class Tally:
    """Counts of handoffs. Where none is under way, ``offered`` = ``admitted`` + all recomputed + all failed."""

    def __init__(self) -> None:
        self.offered = 0
        self.admitted = 0
        self.recomputed: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def begin(self) -> Handoff:
        self.offered += 1
        return Handoff(self)

    def as_dict(self) -> Mapping[str, Any]:
        return {
            "offered": self.offered,
            "admitted": self.admitted,
            "recomputed": dict(self.recomputed),
            "failed": dict(self.failed),
        }


class Handoff:
    """One of them, until it has ended."""

    def __init__(self, tally: Tally) -> None:
        self._tally: Tally | None = tally

    def ended(self, end: End, reason: str = "") -> None:
        """The first end counts; what comes after changes nothing.

        ``recomputed``: the decode engine read the prompt itself; ``failed``: the request ended or moved on before.
        """
        tally, self._tally = self._tally, None
        if tally is None:
            return
        if end == "admitted":
            tally.admitted += 1
        else:
            (tally.recomputed if end == "recomputed" else tally.failed)[reason] += 1
