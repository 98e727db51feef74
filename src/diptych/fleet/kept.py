"""KV that a prefill worker has handed over and keeps until the first tokens are out, to hand it over once more.

What is kept are the engine's own arrays, by reference: no copy, no second form. A lease's owner is the service that
asked; it ends by the service's word (Cancel), with its connection, with time, or when newer ones need the room.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from diptych.engines.protocol import KVSink
from diptych.errors import CorruptKV, StaleWrite
from diptych.handoff.leases import Lease, Leases
from diptych.handoff.seal import Seal
from diptych.handoff.ticket import Ticket

Key = tuple[bytes, str]
"""A service's connection and its id for the handoff."""


class Chunk(NamedTuple):
    """One call of :meth:`KVSink.write`."""

    token_start: int
    keys: Sequence[Any]
    values: Sequence[Any]

    @property
    def kv_bytes(self) -> int:
        return sum(int(array.nbytes) for array in (*self.keys, *self.values))


class Remembering:
    """A sink that passes on what it gets and remembers it."""

    def __init__(self, sink: KVSink) -> None:
        self.chunks: list[Chunk] = []
        self._sink = sink

    def write(self, token_start: int, keys: Sequence[object], values: Sequence[object]) -> None:
        self._sink.write(token_start, keys, values)
        self.chunks.append(Chunk(token_start, keys, values))


class KeptKV(NamedTuple):
    """One prompt's KV, and what it was sealed as in the form of its first receiver."""

    prompt: tuple[int, ...]
    chunks: list[Chunk]
    ticket: Ticket
    seal: Seal

    def steps(self, prompt: Sequence[int], sink: KVSink) -> Generator[int, None, int]:
        """As :meth:`PrefillEngine.prefill`, with nothing left to compute. Raises StaleWrite for another prompt."""
        if tuple(prompt) != self.prompt:
            raise StaleWrite("the KV that is kept is of another prompt")
        for chunk in self.chunks:
            sink.write(*chunk)
            yield chunk.token_start
        return len(self.prompt)

    def check(self, ticket: Ticket, seal: Seal) -> None:
        """Raises CorruptKV unless ``seal`` is of the same bytes; in another form there is nothing to compare."""
        if ticket.form == self.ticket.form and seal.pieces != self.seal.pieces:
            raise CorruptKV("the KV that was kept has changed since it was handed over")


class Keeper:
    """What is kept, by key; at most ``limit_bytes`` of it, each for at most ``keep_s`` seconds."""

    def __init__(self, limit_bytes: int, keep_s: float) -> None:
        self._keep_s = keep_s
        # a service that falls silent is dropped by the endpoint, which ends its leases by `lost`
        self._leases: Leases[KeptKV] = Leases(limit_bytes, float("inf"))

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def kv_bytes(self) -> int:
        return self._leases.kv_bytes

    def keep(self, key: Key, kept: KeptKV, now: float) -> None:
        """Makes room for it at the cost of the oldest; what is larger than all the room is not kept."""
        self.expire(now)
        kv_bytes = sum(chunk.kv_bytes for chunk in kept.chunks)
        self._leases.grant(Lease(_lease_id(key), key[0].hex(), kv_bytes, now + self._keep_s, kept), now)

    def get(self, key: Key) -> KeptKV:
        """Raises StaleWrite where it is gone."""
        lease = self._leases.get(_lease_id(key))
        if lease is None:
            gone = StaleWrite("the KV of this handoff is not kept any more")
            gone.reason = "kv_gone"
            raise gone
        return lease.what

    def release(self, key: Key) -> None:
        self._leases.release(_lease_id(key))

    def lost(self, client: bytes) -> None:
        self._leases.lost(client.hex())

    def expire(self, now: float) -> None:
        self._leases.expire(now)


def _lease_id(key: Key) -> str:
    return f"{key[0].hex()}/{key[1]}"
