"""Which token sequences a worker still holds, as far as the router knows. Pure.

A copy kept at the router costs no round trip to ask; where it is wrong, only the prediction is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


class Remembered:
    """The latest sequences of one worker, least recently used first, bounded in number and in tokens."""

    def __init__(self, sequences: int, tokens: int) -> None:
        self._limit = sequences
        self._token_limit = tokens
        self._held: OrderedDict[str, Tokens] = OrderedDict()

    def add(self, request_id: str, tokens: Sequence[int]) -> None:
        """Remembers a request's tokens; the oldest go when there is no room."""
        self._held[request_id] = np.asarray(tokens, np.int32)
        self._held.move_to_end(request_id)
        while len(self._held) > 1 and self._over():
            self._held.popitem(last=False)

    def _over(self) -> bool:
        return len(self._held) > self._limit or sum(map(len, self._held.values())) > self._token_limit

    def longest_prefix(self, tokens: Tokens) -> int:
        """Tokens at the start that one of the sequences shares."""
        return max((_shared(held, tokens) for held in self._held.values()), default=0)

    def clear(self) -> None:
        """The worker is gone and with it what it held."""
        self._held.clear()


def _shared(one: Tokens, other: Tokens) -> int:
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
