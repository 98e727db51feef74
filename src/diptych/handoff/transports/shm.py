"""Shared memory of one machine: the producer writes straight into the landing region."""

from __future__ import annotations

import secrets
from pathlib import Path

from diptych.errors import StaleWrite
from diptych.handoff.arena import ROWS, Arena
from diptych.handoff.landing import Landing
from diptych.handoff.region import Bytes, Region
from diptych.handoff.ticket import Ticket


class Transport:
    """Keeps every arena mapped, for mapping is slower than writing; forgets those whose owner is gone."""

    def __init__(self, _key: bytes) -> None:
        self._arenas: dict[str, Arena] = {}

    def open_channel(self, ticket: Ticket) -> _Channel:
        return _Channel(self._arena(ticket.address), ticket)

    def close(self) -> None:
        for arena in self._arenas.values():
            arena.close()
        self._arenas.clear()

    def _arena(self, address: str) -> Arena:
        for known in [name for name in self._arenas if not Path(name).exists()]:
            self._arenas.pop(known).close()
        if address not in self._arenas:
            self._arenas[address] = Arena.attach(Path(address))
        return self._arenas[address]


class Door:
    """Nothing to open: writers map the landing's arena."""

    def __init__(self, landing: Landing, _key: bytes) -> None:
        self.via = ("shm", landing.address)

    def close(self) -> None:
        """Nothing to close: the arena is the landing's."""


class _Channel:
    """Writes while the region's epoch is the ticket's; landing.py says what a late write can do."""

    def __init__(self, arena: Arena, ticket: Ticket) -> None:
        start, end = ticket.offset, ticket.offset + ticket.kv_bytes
        fits = 0 <= start < end <= arena.size and 0 <= ticket.slot < ROWS
        if not fits or ticket.kv_bytes != ticket.form.region_bytes(ticket.tokens):
            raise StaleWrite(f"the ticket of handoff {ticket.handoff_id} does not fit its landing area")
        self._row = arena.row(ticket.slot)
        self._epoch = ticket.epoch
        self._region = Region(ticket.form, arena.data[start:end], ticket.tokens)
        self._over = False
        if not self._row.holds(self._epoch) or not self._row.claim(secrets.randbits(63) + 1):
            raise StaleWrite(f"handoff {ticket.handoff_id} is over or has a writer already")

    def put(self, image: int, token_start: int, tokens: int, staged: Bytes) -> None:
        self._check()
        self._region.put(image, token_start, tokens, staged)
        if image == len(self._region.images) - 1:
            self._row.wrote(tokens)

    def finish(self) -> None:
        """Nothing is under way, for every put has been delivered when it returns; only: is it still wanted?"""
        self._check()
        self._over = True

    def close(self) -> None:
        if not self._over:
            self._row.give_up(self._epoch)
            self._over = True

    def _check(self) -> None:
        if not self._row.holds(self._epoch):
            raise StaleWrite("the landing region was taken back")
