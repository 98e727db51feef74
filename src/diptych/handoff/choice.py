"""Which transport two workers use. By itself, so that whoever only chooses need not load any."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.errors import ConfigError


def choose(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """The best transport that both ends have; ``ours`` has the best first. Raises ConfigError."""
    for name in ours:
        if name in theirs:
            return name
    one, other = (", ".join(names) or "none" for names in (ours, theirs))
    raise ConfigError(f"no transport in common: one end has {one}, the other {other}")
