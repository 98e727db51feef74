"""Ways for KV bytes to travel, one file each, loaded when first named."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from diptych.errors import ConfigError
from diptych.handoff.contract import KVForm
from diptych.handoff.ticket import Ticket
from diptych.handoff.writer import Writer

KNOWN = ("shm",)


class Transport(Protocol):
    """The producer's end. Keeps what is worth keeping between handoffs (mappings, connections)."""

    def open_writer(self, ticket: Ticket, source: KVForm) -> Writer:
        """A writer into the ticket's region from KV of form ``source``.

        Raises IncompatibleForms, StaleWrite (the receiver's memory is gone), WorkerLost (the receiver is).
        """

    def close(self) -> None: ...


def load(name: str) -> Transport:
    """The transport of that name. Raises ConfigError, which lists the known ones."""
    if name not in KNOWN:
        raise ConfigError(f"there is no transport {name!r}; known: {', '.join(KNOWN)}")
    return cast("Transport", importlib.import_module(f"{__name__}.{name}").Transport())
