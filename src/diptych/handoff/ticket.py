"""Tickets: who may write which KV where, until when. Made and signed by the receiver, carried inside the
fleet only.

No address in a handoff ever comes from a client: a writer connects to what a signed ticket names and to
nothing else. A ticket names one handoff of one request to one receiver, so it cannot be used for another;
it expires; and it caps the bytes, so a broken producer cannot fill the receiver's memory.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec

from diptych.errors import StaleWrite
from diptych.handoff.contract import KVForm

_MAC_BYTES = hashlib.sha256().digest_size


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """Leave to write one request's KV. ``expires_at`` is Unix time in seconds; ``epoch`` fences the region.

    ``address`` is the transport's own way of naming the receiver; ``offset`` and ``slot`` are the region
    and its row of control words in the landing arena.
    """

    handoff_id: str
    request_id: str
    receiver: str
    transport: str
    address: str
    form: KVForm
    tokens: int
    kv_bytes: int
    offset: int
    slot: int
    epoch: int
    expires_at: float


def sign(ticket: Ticket, key: bytes) -> bytes:
    """The ticket on the wire: HMAC-SHA256, then msgpack."""
    body = msgspec.msgpack.encode(ticket)
    return hmac.digest(key, body, "sha256") + body


def verify(wire: bytes, key: bytes, now: float) -> Ticket:
    """The ticket, if its signature is ours and it has not expired at Unix time ``now``. Raises StaleWrite."""
    mac, body = wire[:_MAC_BYTES], wire[_MAC_BYTES:]
    if not hmac.compare_digest(mac, hmac.digest(key, body, "sha256")):
        raise StaleWrite("a handoff ticket's signature is not ours")
    try:
        ticket = msgspec.msgpack.decode(body, type=Ticket)
    except msgspec.MsgspecError as error:
        raise StaleWrite(f"a handoff ticket is of another version: {error}") from error
    if now >= ticket.expires_at:
        raise StaleWrite(f"the ticket of handoff {ticket.handoff_id} expired {now - ticket.expires_at:.1f} s ago")
    return ticket
