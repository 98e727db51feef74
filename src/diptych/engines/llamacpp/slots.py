"""Which request runs in which slot. No I/O; waiting is first come, first served.

What a slot holds is remembered here, and only what is remembered is ever re-used: a slot whose content is in
doubt is remembered as empty, and its next request computes its whole prompt.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]


class Slot:
    """One of the server's slots. ``tokens`` are those whose KV it certainly holds; ``used`` orders slots by
    age.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.tokens: Tokens = _tokens(())
        self.busy_tokens = 0
        self.used = 0

    def hold(self, tokens: Sequence[int]) -> None:
        self.tokens = _tokens(tokens)

    def shares(self, prompt: Tokens) -> int:
        """Tokens at the start of ``prompt`` that the slot holds."""
        length = min(len(self.tokens), len(prompt))
        differs = self.tokens[:length] != prompt[:length]
        return int(differs.argmax()) if differs.any() else length


class Slots:
    """All slots of one server. Every request holds exactly one from :meth:`acquire` to :meth:`release`."""

    def __init__(self, count: int) -> None:
        self._all = [Slot(index) for index in range(count)]
        self._free = list(self._all)
        self._queue: deque[asyncio.Future[None]] = deque()
        self._clock = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def busy(self) -> list[Slot]:
        return [slot for slot in self._all if slot not in self._free]

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def cached_tokens(self, prompt: Sequence[int]) -> int:
        """Tokens at the start of ``prompt`` that a free slot holds; the last one is always computed."""
        wanted = _tokens(prompt)
        return min(max((slot.shares(wanted) for slot in self._free), default=0), len(prompt) - 1)

    async def acquire(self, prompt: Sequence[int], *, overwrite: bool) -> Slot:
        """A slot of the caller's own, as soon as it is the caller's turn.

        The one that shares the longest prefix with ``prompt``; with ``overwrite`` (the KV comes from
        elsewhere) the one whose loss costs least. Raises what :meth:`fail` was given.
        """
        if not self._free or self._queue:
            await self._turn()
        slot = self._choose(_tokens(prompt), overwrite=overwrite)
        self._free.remove(slot)
        self._idle.clear()
        self._wake()
        return slot

    def take(self, tokens: Sequence[int]) -> Slot | None:
        """A free slot that holds all of ``tokens``, for the caller alone until :meth:`release`; None: there is none."""
        wanted = _tokens(tokens)
        slot = next((slot for slot in self._free if slot.shares(wanted) == len(wanted)), None)
        if slot is not None:
            self._free.remove(slot)
            self._idle.clear()
        return slot

    async def idle(self) -> None:
        """Returns when no slot is in use and nobody waits for one."""
        while self.busy or self._queue:
            await self._idle.wait()

    def release(self, slot: Slot) -> None:
        self._clock += 1
        slot.used, slot.busy_tokens = self._clock, 0
        self._free.append(slot)
        self._wake()
        self._note_idle()

    def fail(self, error: Exception) -> None:
        """Ends every wait with ``error``."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_exception(error)

    async def _turn(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            # the head of the queue stays in it until it has run, so that nobody overtakes it
            await turn
        except asyncio.CancelledError:
            self._leave(turn)
            self._wake()
            raise
        finally:
            self._leave(turn)

    def _leave(self, turn: asyncio.Future[None]) -> None:
        if turn in self._queue:
            self._queue.remove(turn)
        self._note_idle()

    def _note_idle(self) -> None:
        if len(self._free) == len(self._all) and not self._queue:
            self._idle.set()

    def _wake(self) -> None:
        """Tells the head of the queue that a slot is free."""
        if self._free and self._queue and not self._queue[0].done():
            self._queue[0].set_result(None)

    def _choose(self, prompt: Tokens, *, overwrite: bool) -> Slot:
        def lost(slot: Slot) -> int:
            return len(slot.tokens) - slot.shares(prompt)

        if overwrite:
            return min(self._free, key=lambda slot: (lost(slot), slot.used))
        return min(self._free, key=lambda slot: (-slot.shares(prompt), lost(slot), slot.used))


def _tokens(tokens: Sequence[int]) -> Tokens:
    return np.asarray(tokens, np.int32)
