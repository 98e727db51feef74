"""What one request has behind it on its way through the fleet, over all its attempts. Pure."""

from __future__ import annotations

import msgspec

from diptych.continuity import Course
from diptych.fleet import messages as m
from diptych.tally import Handoff
from diptych.types import Request


class Kept(msgspec.Struct, frozen=True):
    """KV that a prefill worker keeps for us, under the id of the handoff in which it was computed."""

    prefill: str
    instance: str
    id: str


class Life:
    """One request on its way through the fleet: what its client has, and what is left of the attempts before."""

    def __init__(self, request: Request, replay_tokens: int) -> None:
        self.request = request
        self.course = Course(request, replay_tokens)
        self.kept: Kept | None = None
        self.handoff: Handoff | None = None
        self.again = False
        """Whether that hands over what was kept, not what was computed anew."""
        self.first_kv: str | None = None
        """How the engine that emitted the first token came by its KV, and which engine it was."""
        self.decode: m.Welcome | None = None
        self.avoid: dict[str, float] = {}
        self.attempts = 0
        self.losses = 0

    def next_id(self) -> str:
        """Each attempt has an id of its own: what a late worker still says to an earlier one goes nowhere."""
        self.attempts += 1
        return self.request.id if self.attempts == 1 else f"{self.request.id}/{self.attempts}"

    def began(self, welcome: m.Welcome | None) -> None:
        self.decode = welcome

    def kv(self, *, landed: bool) -> str:
        """What the KV of the attempt under way is; equal where two attempts decode from the same numbers."""
        assert self.decode is not None
        about = self.decode.description
        return f"{'landed' if landed else 'own'} {about.engine} {about.build} {about.device}"

    def ended(self, reason: str) -> None:
        """The attempt is over. A handoff that was not used by now never will be."""
        if self.handoff is not None:
            self.handoff.ended("failed", reason)
            self.handoff = None
