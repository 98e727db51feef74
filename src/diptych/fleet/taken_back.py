"""The prefill worker's side of a return: a small landing area, and the way from there into the prefix cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from diptych.engines.protocol import KeepsKV
from diptych.errors import LandingFull, StaleWrite
from diptych.fleet import messages as m
from diptych.fleet.landed import Landed
from diptych.fleet.transports import Doors
from diptych.handoff.contract import KVForm
from diptych.handoff.landing import Landing
from diptych.handoff.ticket import Ticket, sign

LEAST_TOKENS = 64
"""Fewer are not worth the way: reading them is as quick."""
TTL_S = 60.0

Key = tuple[bytes, str]
Reply = Callable[[Key, m.Answer], object]


class _Coming(NamedTuple):
    ticket: Ticket
    tokens: tuple[int, ...]
    start: int


class TakenBack:
    """Answers TakeBack and Keep. ``engine_thread`` runs a call where the engine's cache may be touched."""

    def __init__(
        self,
        engine: KeepsKV,
        form: KVForm,
        landing: Landing,
        doors: Doors,
        secret: bytes,
        engine_thread: Callable[[Callable[[], None]], None],
        reply: Reply,
    ) -> None:
        self._engine, self._form, self._landing, self._doors = engine, form, landing, doors
        self._secret, self._engine_thread, self._reply = secret, engine_thread, reply
        self._coming: dict[Key, _Coming] = {}

    def want(self, key: Key, message: m.TakeBack) -> m.Wanted:
        """What the cache lacks of these tokens and where it may land. Raises HandoffError."""
        start, stop = self._engine.lacking(message.tokens)
        fits = self._form.region_bytes(max(1, stop - start)) <= self._landing.capacity_bytes
        if stop - start < LEAST_TOKENS or not fits:
            return m.Wanted(message.id, b"", 0, 0)
        via = self._doors.via(message.transport)
        try:
            ticket = self._landing.offer(message.id, self._form, stop - start, TTL_S, via)
        except LandingFull:
            return m.Wanted(message.id, b"", 0, 0)
        self._coming[key] = _Coming(ticket, message.tokens[:stop], start)
        return m.Wanted(message.id, sign(ticket, self._secret), start, stop)

    def keep(self, key: Key, message: m.Keep) -> None:
        """Proves what has landed and puts it into the cache, on the engine's thread. Raises StaleWrite."""
        coming = self._coming.pop(key, None)
        if coming is None:
            raise StaleWrite("a return that is unknown or over")
        landed = Landed(self._landing, coming.ticket, message.seal, lambda: None)

        def work() -> None:
            try:
                held = self._engine.keep(coming.tokens, coming.start, landed)
            except Exception as error:  # noqa: BLE001  # it ends this return and nothing else
                self._reply(key, m.Failed.of(message.id, error))
            else:
                self._reply(key, m.Kept(message.id, held))

        self._engine_thread(work)

    def drop(self, key: Key) -> None:
        """Frees what was set aside for a return that is off. Idempotent."""
        coming = self._coming.pop(key, None)
        if coming is not None:
            self._landing.release(coming.ticket.handoff_id)

    def lost(self, client: bytes) -> None:
        for key in [key for key in self._coming if key[0] == client]:
            self.drop(key)

    def close(self) -> None:
        self._doors.close()
        self._landing.close()
