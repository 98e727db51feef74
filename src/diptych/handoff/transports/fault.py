"""A transport that goes wrong on purpose, by seed: wraps another one. For tests, soaks and demonstrations.

harmless    duplicate, reorder, delay          the handoff must still be admitted, to the byte
altering    drop, truncate, flip               it must be refused: CorruptKV
breaking    cut (the receiver is gone), stall  it must fail in time, at both ends
"""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Protocol

import msgspec

from diptych.errors import WorkerLost
from diptych.handoff.region import Bytes
from diptych.handoff.ticket import Ticket
from diptych.handoff.writer import Channel

ALTERING = frozenset({"drop", "truncate", "flip"})


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """The chance of each fault at each delivery of a chunk of an image; how long the slow ones last."""

    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    drop: float = 0.0
    truncate: float = 0.0
    flip: float = 0.0
    cut: float = 0.0
    stall: float = 0.0
    delay_s: float = 0.001
    stall_s: float = 10.0


class _Opens(Protocol):
    def open_channel(self, ticket: Ticket) -> Channel: ...

    def close(self) -> None: ...


class Transport:
    """``done`` counts the faults done; ``altered`` has the handoffs whose bytes were changed on the way."""

    def __init__(self, inner: _Opens, faults: Faults, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self.altered: set[str] = set()
        self._inner, self._faults = inner, faults
        self._random = random.Random(seed)  # noqa: S311  not a secret

    def open_channel(self, ticket: Ticket) -> _Channel:
        chance = random.Random(self._random.random())  # noqa: S311  not a secret
        return _Channel(self, self._inner.open_channel(ticket), ticket.handoff_id, self._faults, chance)

    def close(self) -> None:
        self._inner.close()


class _Channel:
    def __init__(
        self, owner: Transport, inner: Channel, handoff_id: str, faults: Faults, chance: random.Random
    ) -> None:
        self._owner, self._inner, self._handoff_id = owner, inner, handoff_id
        self._faults, self._chance = faults, chance
        self._held: list[tuple[int, int, int, Bytes]] = []

    def put(self, image: int, token_start: int, tokens: int, staged: Bytes) -> None:
        if self._happens("cut"):
            raise WorkerLost("the connection was cut")
        if self._happens("stall"):
            time.sleep(self._faults.stall_s)
        if self._happens("delay"):
            time.sleep(self._faults.delay_s)
        if self._happens("drop"):
            return
        if self._happens("reorder"):
            self._held.append((image, token_start, tokens, staged.copy()))
            return
        if self._happens("truncate"):
            staged = staged.copy()
            staged[self._chance.randrange(staged.size) :] = 0
        if self._happens("flip"):
            staged = staged.copy()
            staged[self._chance.randrange(staged.size)] ^= 1 << self._chance.randrange(8)
        for _ in range(2 if self._happens("duplicate") else 1):
            self._inner.put(image, token_start, tokens, staged)

    def finish(self) -> None:
        self._chance.shuffle(self._held)
        for late in self._held:
            self._inner.put(*late)
        self._inner.finish()

    def close(self) -> None:
        self._inner.close()

    def _happens(self, fault: str) -> bool:
        chance: float = getattr(self._faults, fault)
        if not chance or self._chance.random() >= chance:
            return False
        self._owner.done[fault] += 1
        if fault in ALTERING:
            self._owner.altered.add(self._handoff_id)
        return True
