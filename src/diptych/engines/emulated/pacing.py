"""Steps at absolute times, so that a late wake-up shortens the next wait instead of adding up.

An event loop wakes to a millisecond, a step may take a third of one: steps that are due together are taken together,
and each still gives every sequence its token.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from diptych.engines.emulated.batch import Batch, Sequence

LATE_S = 0.25
"""Behind by more than this the machine cannot keep up, or stood still: the chip is taken to have waited with it."""
TOGETHER = 8
"""Steps taken at most before the event loop gets its turn: what they emitted has to be sent by somebody."""


class Pacer:
    """Drives a batch. ``joined`` is told of each sequence that leaves the queue."""

    def __init__(self, batch: Batch, clock: Callable[[], float] = time.monotonic) -> None:
        self._batch, self._clock = batch, clock
        self._work = asyncio.Event()
        self._waiters: dict[Sequence, asyncio.Future[None]] = {}
        self._due_s = 0.0
        self.counts: Counter[str] = Counter()

    def add(self, sequence: Sequence) -> None:
        self._batch.add(sequence)
        self._work.set()

    def remove(self, sequence: Sequence) -> None:
        self._batch.remove(sequence)

    async def more(self, sequence: Sequence) -> None:
        """Returns when something has happened to the sequence: it has joined, or has another token."""
        waiter = self._waiters[sequence] = asyncio.get_running_loop().create_future()
        try:
            await waiter
        finally:
            self._waiters.pop(sequence, None)

    async def run(self) -> None:
        """For ever."""
        while True:
            if self._batch.idle:
                self._work.clear()
                await self._work.wait()
                self._due_s = self._clock()
            await self._round()

    async def _round(self) -> None:
        """The steps that are due, and then a wait for the next one."""
        for _ in range(TOGETHER):
            self._tell(self._batch.admit())
            if self._batch.idle:
                return
            self._due_s += self._batch.step_s()
            if (wait_s := self._due_s - self._clock()) > 0.0:
                await asyncio.sleep(wait_s)
            elif wait_s < -LATE_S:
                self._due_s = self._clock()
                self.counts["late"] += 1
            self._tell(self._batch.step())
        await asyncio.sleep(0)

    def _tell(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            waiter = self._waiters.get(sequence)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
