"""The transports of one worker: doors for KV that comes in, senders for KV that goes out."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.config import FaultSettings
from diptych.errors import TransportLost, WorkerLost
from diptych.fleet.messages import CANARY
from diptych.handoff import transports
from diptych.handoff.contract import KVForm
from diptych.handoff.landing import Landing
from diptych.handoff.ticket import Ticket
from diptych.handoff.transports import Door, Sender, fault
from diptych.handoff.writer import Writer


class Doors:
    """Every door to one landing area. Raises ConfigError for a transport that cannot be had here."""

    def __init__(self, landing: Landing, names: Sequence[str], secret: bytes) -> None:
        self._doors: dict[str, Door] = {}
        try:
            for name in names:
                self._doors[name] = transports.open_door(name, landing, secret)
        except BaseException:
            self.close()
            raise

    def via(self, name: str) -> tuple[str, str]:
        """For :meth:`Landing.offer`. Raises TransportLost for a transport that this worker does not have."""
        door = self._doors.get(name)
        if door is None:
            raise TransportLost(f"nothing is open for {name}; there is {', '.join(self._doors)}")
        return door.via

    def close(self) -> None:
        for door in self._doors.values():
            door.close()


class Senders:
    """One of a kind for all handoffs: a sender keeps what is mapped and connected."""

    def __init__(self, names: Sequence[str], secret: bytes, faults: FaultSettings | None = None) -> None:
        self._senders = {name: transports.load(name, secret) for name in names}
        self._faulty = {} if faults is None else {n: _faulty(s, faults) for n, s in self._senders.items()}

    def waits(self, ticket: Ticket) -> bool:
        """Whether opening a writer waits for the other side: to be done off the event loop."""
        return ticket.transport != "shm"

    def open_writer(self, ticket: Ticket, form: KVForm) -> Writer:
        """A writer of KV of ``form``. Raises HandoffError; TransportLost where nobody answers."""
        senders = self._senders if ticket.request_id.startswith(CANARY) else self._senders | self._faulty
        if ticket.transport not in senders:
            raise TransportLost(f"no sender for {ticket.transport}; there is {', '.join(senders)}")
        try:
            return senders[ticket.transport].open_writer(ticket, form)
        except WorkerLost as error:
            raise TransportLost(str(error)) from error

    def close(self) -> None:
        for sender in self._senders.values():
            sender.close()


def _faulty(sender: Sender, faults: FaultSettings) -> Sender:
    chances = {name: getattr(faults, name) for name in fault.Faults.__struct_fields__}
    return Sender(fault.Transport(sender.transport, fault.Faults(**chances), faults.seed))
