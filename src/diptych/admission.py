"""Requests that wait until the fleet has room for them, by service tier (:mod:`diptych.routing.admission`)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from diptych.errors import Overloaded
from diptych.routing.admission import Admission
from diptych.types import Request


class Door:
    """What wakes those whose turn it is. Every request that came through :meth:`enter` must :meth:`leave`."""

    def __init__(self, admission: Admission, patience_s: float) -> None:
        self.admission = admission
        self._patience_s = patience_s
        self._turns: dict[str, asyncio.Event] = {}

    async def enter(self, request: Request) -> None:
        """Returns when the request may go on. Raises Overloaded when it has waited too long."""
        turn = self._turns[request.id] = asyncio.Event()
        self._wake(self.admission.enter(request.id, request.tier))
        if turn.is_set():
            return
        try:
            async with asyncio.timeout(self._patience_s):
                await turn.wait()
        except TimeoutError:
            raise Overloaded(f"There was no room for the request within {self._patience_s:g} s.") from None

    def leave(self, request: Request) -> None:
        """Makes room. Leaving again, or without having entered, has no effect."""
        if self._turns.pop(request.id, None) is not None:
            self._wake(self.admission.leave(request.id))

    def _wake(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self._turns[request_id].set()
