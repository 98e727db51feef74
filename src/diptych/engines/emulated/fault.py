"""What an emulated engine does wrong on purpose: ``fault = "name=number"`` in a worker's settings.

fail_after_tokens=N    the engine fails after N tokens: of the answer, or of the prompt on a prefill worker
stall_after_tokens=N   nothing more comes after N tokens, until the request is cancelled or its deadline is over
wrong_kv=N             from the N-th prompt on one byte of its KV is wrong, and no check can see it
refuse_admission=N     from the N-th handoff on none is admitted (decode only); the prompt is read again
slow=F                 everything takes F times as long
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from diptych.errors import ConfigError

Name = Literal["none", "fail_after_tokens", "stall_after_tokens", "wrong_kv", "refuse_admission", "slow"]


class Fault(msgspec.Struct, frozen=True):
    """One kind of fault, from ``at`` on (tokens, or prompts counted from 1); ``at`` is the factor of "slow"."""

    name: Name = "none"
    at: float = 1.0

    def strikes(self, name: Name, count: int) -> bool:
        """Whether this is the fault, and ``count`` has come to where it begins."""
        return self.name == name and count >= self.at

    @property
    def slowdown(self) -> float:
        return self.at if self.name == "slow" else 1.0


def parse(text: str | None, *, decode: bool) -> Fault:
    """``slow=4`` -> Fault. Raises ConfigError."""
    if text is None:
        return Fault()
    name, _, number = text.partition("=")
    known = [n for n in get_args(Name) if n != "none" and (decode or n != "refuse_admission")]
    try:
        at = float(number or "1")
    except ValueError:
        at = -1.0
    if name not in known or not at > 0:
        raise ConfigError(f"fault = {text!r} is not one of {', '.join(known)} with = and a number above 0")
    return Fault(msgspec.convert(name, Name), at)
