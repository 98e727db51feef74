"""Who still holds what, and until when: leases with an owner, a heartbeat and an expiry. Pure; times are
passed in.

A prefill worker keeps a sealed handoff's KV leased to the decode worker until its first tokens are out, so
that a request can go on elsewhere when that worker dies. An owner's heartbeat renews all its leases at once
by moving one number, so a thousand leases cost no more to keep than one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Lease(msgspec.Struct, Generic[T], frozen=True):
    """``what`` is held for ``owner``; ``until`` is the latest time, however often the owner is heard."""

    id: str
    owner: str
    kv_bytes: int
    until: float
    what: T


class Leases(Generic[T]):
    """Leases, oldest first, of at most ``limit_bytes`` in all.

    A lease ends by :meth:`release`, at its own ``until``, when its owner has not been heard for
    ``silence_s``, or when room is needed for a newer one. Whatever ends one without a release says why.
    """

    def __init__(self, limit_bytes: int, silence_s: float) -> None:
        self._limit, self._silence_s = limit_bytes, silence_s
        self._leases: dict[str, Lease[T]] = {}
        self._heard: dict[str, float] = {}
        self._held: dict[str, int] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def kv_bytes(self) -> int:
        return self._bytes

    def grant(self, lease: Lease[T], now: float) -> list[tuple[Lease[T], str]]:
        """Adds a lease; returns those that had to go for it, oldest first (itself, if too large)."""
        ended = [(old, "superseded") for old in self._take(lease.id)]
        self._leases[lease.id] = lease
        self._bytes += lease.kv_bytes
        self._held[lease.owner] = self._held.get(lease.owner, 0) + 1
        self._heard[lease.owner] = now
        while self._bytes > self._limit:
            ended += [(old, "room") for old in self._take(next(iter(self._leases)))]
        return ended

    def get(self, lease_id: str) -> Lease[T] | None:
        return self._leases.get(lease_id)

    def heartbeat(self, owner: str, now: float) -> None:
        """The owner lives: all its leases go on. An owner without leases is forgotten."""
        if owner in self._held:
            self._heard[owner] = now

    def release(self, lease_id: str) -> Lease[T] | None:
        """Ends a lease. Idempotent: None where it is over already."""
        return next(self._take(lease_id), None)

    def lost(self, owner: str) -> list[Lease[T]]:
        """Ends every lease of an owner that is known to be gone, and returns them: they may go to another."""
        mine = [lease.id for lease in self._leases.values() if lease.owner == owner]
        return [lease for lease_id in mine for lease in self._take(lease_id)]

    def expire(self, now: float) -> list[tuple[Lease[T], str]]:
        """Ends what is over at ``now``; returns each with its reason, "silent" or "expired"."""
        silent = {owner for owner, heard in self._heard.items() if now - heard >= self._silence_s}
        over = [
            (lease.id, "silent" if lease.owner in silent else "expired")
            for lease in self._leases.values()
            if lease.owner in silent or now >= lease.until
        ]
        return [(lease, why) for lease_id, why in over for lease in self._take(lease_id)]

    def _take(self, lease_id: str) -> Iterator[Lease[T]]:
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            return
        self._bytes -= lease.kv_bytes
        self._held[lease.owner] -= 1
        if not self._held[lease.owner]:
            del self._held[lease.owner], self._heard[lease.owner]
        yield lease
