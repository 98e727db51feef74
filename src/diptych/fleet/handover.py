"""One handoff, driven from the service's side: a place to land, then a prefill that writes there."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from diptych.config import Deadlines
from diptych.errors import WorkerLost
from diptych.fleet import messages as m
from diptych.fleet.peer import Mailbox, Peer
from diptych.handoff.choice import choose
from diptych.handoff.seal import Seal


class HandedOver(msgspec.Struct, frozen=True):
    """A sealed handoff: what the decode worker needs to admit it, and what each part took."""

    seal: Seal
    prefill: str
    transport: str
    cached_tokens: int
    offer_ms: float
    queue_ms: float
    prefill_ms: float
    compute_ms: float
    convert_ms: float
    tail_ms: float


def transport_between(source: m.Welcome, target: m.Welcome) -> str:
    """The best that both have; shared memory is none between two machines. Raises ConfigError."""
    near = source.host == target.host
    return choose(source.transports, [name for name in target.transports if near or name != "shm"])


def met(peer: Peer) -> m.Welcome:
    """What the worker said of itself. Raises WorkerLost when it is not there."""
    if peer.welcome is None:
        raise WorkerLost(f"{peer.worker} is not running")
    return peer.welcome


async def hand_over(
    prefill: Peer,
    decode: Peer,
    landing: Mailbox,
    request_id: str,
    prompt: Sequence[int],
    deadlines: Deadlines,
    *,
    keep: bool = False,
    kept: str | None = None,
) -> HandedOver:
    """Has ``prefill`` write the KV of all but the last token of ``prompt`` into ``decode``'s landing area.

    ``landing`` is the caller's mailbox at the decode worker. Raises WorkerError or HandoffError; the region at the
    decode worker is then still the caller's to cancel. With ``kept``, the id of an earlier handoff, the KV is that
    one's; with ``keep`` it is kept under ``request_id`` until the worker is told to cancel that.
    """
    transport = transport_between(met(prefill), met(decode))
    decode.send(m.Offer(request_id, len(prompt) - 1, transport))
    offered = await landing.expect(m.Offered, deadlines.offer_s)
    box = prefill.open(request_id)
    finished = False
    try:
        read = tuple(prompt[:-1])
        if kept is None:
            prefill.send(m.Prefill(request_id, read, offered.ticket, keep))
        else:
            prefill.send(m.Again(request_id, read, offered.ticket, kept))
        sealed = await box.expect(m.Sealed, deadlines.prefill_s)
        finished = True
    finally:
        prefill.forget(request_id, cancel=not finished)
    return HandedOver(
        sealed.seal,
        prefill.worker,
        transport,
        sealed.cached_tokens,
        offered.waited_ms,
        sealed.queue_ms,
        sealed.prefill_ms,
        sealed.compute_ms,
        sealed.convert_ms,
        sealed.tail_ms,
    )
