"""What a worker has to say to one client: tokens of its streams travel together while they are dense.

A message costs its receiver two wake-ups, many times what a token costs. So tokens leave at most every ``GATHER_S``:

    a token after a quiet moment          leaves at the end of this turn of the event loop, with all others of the turn
    a token within GATHER_S of the last   waits for the rest of it, with all others that come meanwhile
    what somebody waits for               leaves now (a first token, an offer's answer, an error), after what waited
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from diptych.fleet import messages as m

GATHER_S = 0.002
"""No token waits longer. An engine's step takes several times as long; docs/performance.md has what it saves."""


class Outbox:
    """Keeps the order of what is put in. ``send`` is called with one message, or with several as Together."""

    def __init__(self, send: Callable[[m.FromWorker], None]) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._waiting: list[m.Answer] = []
        self._leaving: asyncio.Handle | None = None
        self._sent_at = -GATHER_S

    def put(self, message: m.Answer) -> None:
        self._waiting.append(message)
        if not isinstance(message, m.Tokens) or message.chunk.prepared is not None:
            self._leave()
        elif self._leaving is None:
            wait_s = self._sent_at + GATHER_S - self._loop.time()
            later = self._loop.call_later(wait_s, self._leave) if wait_s > 0 else self._loop.call_soon(self._leave)
            self._leaving = later

    def _leave(self) -> None:
        messages = self._waiting
        self.close()
        self._sent_at = self._loop.time()
        self._send(messages[0] if len(messages) == 1 else m.Together(tuple(messages)))

    def close(self) -> None:
        """Drops what has not left."""
        self._waiting = []
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
