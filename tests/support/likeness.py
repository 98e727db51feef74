"""When two greedy outputs count as the same: they may part only where the reference was of two minds.

Two engines, or one engine at two batch sizes, round differently. Where the two best tokens are nearly as likely,
either may win, and what follows is a different text. So: equal up to the first difference, and there the
reference's lead of the best token over the second is under half a nat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

NEAR_TIE_NATS = 0.5
Token = TypeVar("Token", int, str, bytes)


class Reference(NamedTuple):
    """What decode alone said, and at each token the lead of the best over the second, in nats."""

    tokens: Sequence[int | str | bytes]
    gaps: Sequence[float]


def same(reference: Reference, tokens: Sequence[int | str | bytes], *, complete: bool = True) -> bool:
    """Whether they are equal to the end; fails where they part without a near-tie.

    ``complete``: a whole output; otherwise its beginning is enough.
    """
    assert len(tokens) <= len(reference.tokens), f"{len(tokens)} tokens, not {len(reference.tokens)}"
    if complete:
        assert len(tokens) == len(reference.tokens), f"{len(tokens)} tokens, not {len(reference.tokens)}"
    parts_at = next((i for i, token in enumerate(tokens) if token != reference.tokens[i]), None)
    if parts_at is None:
        return True
    gap = reference.gaps[parts_at]
    assert gap < NEAR_TIE_NATS, f"token {parts_at} differs where the lead was {gap:.3f} nats"
    return False
