"""Shared memory of one machine: the producer writes straight into the landing region."""

from __future__ import annotations

from pathlib import Path

from diptych.errors import StaleWrite
from diptych.handoff.arena import ROWS, Arena
from diptych.handoff.contract import KVForm
from diptych.handoff.plan import plan
from diptych.handoff.region import Bytes, Region
from diptych.handoff.ticket import Ticket
from diptych.handoff.writer import Writer


class Transport:
    """Keeps every arena mapped, for mapping is slower than writing; forgets those whose owner is gone."""

    def __init__(self) -> None:
        self._arenas: dict[str, Arena] = {}

    def open_writer(self, ticket: Ticket, source: KVForm) -> Writer:
        steps = plan(source, ticket.form)
        return Writer(steps, ticket, _Channel(self._arena(ticket.address), ticket))

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


class _Channel:
    """Writes while the region's epoch is the ticket's; landing.py says what a late write can do."""

    def __init__(self, arena: Arena, ticket: Ticket) -> None:
        start, end = ticket.offset, ticket.offset + ticket.kv_bytes
        fits = 0 <= start < end <= arena.size and 0 <= ticket.slot < ROWS
        if not fits or ticket.kv_bytes != ticket.form.region_bytes(ticket.tokens):
            raise StaleWrite(f"the ticket of handoff {ticket.handoff_id} does not fit its landing area")
        self._row = arena.rows[ticket.slot]
        self._epoch = ticket.epoch
        self._region: Region | None = Region(ticket.form, arena.data[start:end], ticket.tokens)

    def put(self, image: int, token_start: int, tokens: int, staged: Bytes) -> None:
        if self._region is None or self._row[0] != self._epoch:
            raise StaleWrite("the landing region was taken back")
        self._region.put(image, token_start, tokens, staged)
        if image == len(self._region.images) - 1:
            self._row[1] += tokens

    def finish(self) -> None:
        """Nothing is under way: every put has been delivered when it returns."""

    def close(self) -> None:
        self._region = None
