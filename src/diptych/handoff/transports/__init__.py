"""Ways for KV bytes to travel, one file each, loaded when first named."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, Protocol, cast

from diptych.errors import ConfigError
from diptych.handoff.choice import choose as choose
from diptych.handoff.contract import KVForm
from diptych.handoff.landing import Landing
from diptych.handoff.plan import plan
from diptych.handoff.ticket import Ticket
from diptych.handoff.writer import Channel, Writer

KNOWN = ("shm", "nixl", "mooncake", "tcp")
"""By name; ``fault`` wraps one of them and is made by hand."""


class Transport(Protocol):
    """The producer's end. Keeps what is worth keeping between handoffs (mappings, connections)."""

    def open_channel(self, ticket: Ticket) -> Channel:
        """Raises StaleWrite (the ticket is not in force), WorkerLost (the receiver is gone)."""

    def close(self) -> None: ...


class Sender:
    """What a prefill worker holds: writers over one transport."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def open_writer(self, ticket: Ticket, source: KVForm) -> Writer:
        """A writer into the ticket's region from KV of form ``source``.

        Raises IncompatibleForms, and as :meth:`Transport.open_channel`.
        """
        return Writer(plan(source, ticket.form), ticket, self.transport.open_channel(ticket))

    def close(self) -> None:
        self.transport.close()


class Door(Protocol):
    """The receiver's end: puts what arrives into a landing's regions."""

    @property
    def via(self) -> tuple[str, str]:
        """(transport, address) for :meth:`Landing.offer`."""

    def close(self) -> None: ...


def load(name: str, key: bytes = b"", **options: Any) -> Sender:
    """The producer's end of the transport of that name; ``key`` signs tickets, ``options`` are its own.

    Raises ConfigError, which lists the known ones, or says which extra is not installed.
    """
    return Sender(_module(name).Transport(key, **options))


def open_door(name: str, landing: Landing, key: bytes = b"", **options: Any) -> Door:
    """The receiver's end. ``options`` are the transport's own (host, encrypted). Raises ConfigError."""
    return cast("Door", _module(name).Door(landing, key, **options))


def _module(name: str) -> ModuleType:
    if name not in KNOWN:
        raise ConfigError(f"there is no transport {name!r}; known: {', '.join(KNOWN)}")
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ImportError as error:
        raise ConfigError(f"transport {name} needs diptych[{name}]: {error}") from error
