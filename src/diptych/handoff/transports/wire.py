"""What the two ends of a network transport say to one another, and which frames are still under way. Pure.

    writer                                          receiver
    Hello(ticket, nonce)   ---------------------->  is the ticket ours, in force, and not another writer's?
                           <----------------------  Welcome(session, key)  |  NotWelcome(why)
    a frame on a bulk connection    - - - - - - ->  into the region (tcp; see records.py)
    or Placed(session, seq, ..)     ------------->  the bytes are there already, by remote write
                           <----------------------  Ack(session, seqs)  |  Over(why)
    Ask(session, seqs)     ---------------------->  after a cut: which of these frames have come?
    GiveUp(session)        ---------------------->  the handoff failed

A frame that is not acknowledged in time is sent again, on another connection; a frame that comes twice is
placed once. So a connection may break and come back at any moment, and nothing is lost, doubled or taken
for another handoff's.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from diptych.errors import CorruptKV, WorkerLost
from diptych.handoff.region import Region


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """``ticket`` is the signed ticket; ``nonce`` is the writer's own, so that only it may say hello again."""

    ticket: bytes
    nonce: bytes


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    """``key`` seals the session's records on bulk connections; empty where they go in clear, or there are none."""

    nonce: bytes
    session: int
    key: bytes = b""


class NotWelcome(msgspec.Struct, frozen=True, array_like=True, tag="not_welcome"):
    nonce: bytes
    why: str


class Over(msgspec.Struct, frozen=True, array_like=True, tag="over"):
    """The session is over, or never was; nothing that names it is taken."""

    session: int
    why: str


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One chunk of one image inside a frame."""

    image: int
    token_start: int
    tokens: int


class Placed(msgspec.Struct, frozen=True, array_like=True, tag="placed"):
    """A frame from a writer that has put the bytes into the region itself (remote memory writes)."""

    session: int
    seq: int
    entries: tuple[Entry, ...]


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """Answered with an Ack of those frames that have come, maybe none; or with Over."""

    session: int
    seqs: tuple[int, ...]


class Ack(msgspec.Struct, frozen=True, array_like=True, tag="ack"):
    session: int
    seqs: tuple[int, ...]


class GiveUp(msgspec.Struct, frozen=True, array_like=True, tag="give_up"):
    session: int


ToReceiver = Hello | Placed | Ask | GiveUp
ToWriter = Welcome | NotWelcome | Over | Ack

encode = msgspec.msgpack.Encoder().encode
to_receiver: msgspec.msgpack.Decoder[ToReceiver] = msgspec.msgpack.Decoder(ToReceiver)
to_writer: msgspec.msgpack.Decoder[ToWriter] = msgspec.msgpack.Decoder(ToWriter)


def sizes(region: Region, tokens: int, entries: tuple[Entry, ...]) -> list[int]:
    """Bytes of each entry of a frame. Raises CorruptKV for an entry that lies outside of the region."""
    found = []
    for entry in entries:
        if not 0 <= entry.image < len(region.images):
            raise CorruptKV(f"a frame names image {entry.image} of {len(region.images)}")
        image, end = region.images[entry.image], entry.token_start + entry.tokens
        whole = end % image.unit_tokens == 0 or end == tokens
        if entry.token_start < 0 or entry.tokens <= 0 or end > tokens or not whole:
            raise CorruptKV(f"a frame names tokens {entry.token_start} to {end} of {tokens}")
        if entry.token_start % image.unit_tokens:
            raise CorruptKV(f"a frame starts inside a block, at token {entry.token_start}")
        found.append(image.size(entry.tokens))
    return found


class Window:
    """The writer's frames that are not acknowledged yet: how much may be under way, what to send again, and
    when to give up. Times are seconds of one monotonic clock.
    """

    def __init__(self, limit_bytes: int, resend_s: float, lost_s: float) -> None:
        self._limit, self._resend_s, self._lost_s = limit_bytes, resend_s, lost_s
        self._frames: OrderedDict[int, tuple[int, float]] = OrderedDict()
        self._bytes = 0
        self._heard, self._looked = 0.0, 0.0

    @property
    def full(self) -> bool:
        return self._bytes >= self._limit

    @property
    def empty(self) -> bool:
        return not self._frames

    def sent(self, seq: int, size: int, now: float) -> None:
        if not self._frames:
            self._heard = self._looked = now
        self._frames[seq] = (size, now)
        self._bytes += size

    def heard(self, now: float) -> None:
        """The receiver lives."""
        self._heard = now

    def acknowledged(self, seq: int) -> bool:
        """False where the frame was acknowledged before."""
        frame = self._frames.pop(seq, None)
        if frame is None:
            return False
        self._bytes -= frame[0]
        return True

    def lost(self, seqs: Iterable[int]) -> None:
        """These frames were on a connection that broke: those not acknowledged are due at once."""
        for seq in seqs:
            if seq in self._frames:
                self._frames[seq] = (self._frames[seq][0], -math.inf)

    def check(self, now: float) -> None:
        """Raises WorkerLost when the receiver has been silent for too long while we listened: time in which this
        process was stopped itself, and so looked at nothing, says nothing about the other side.
        """
        away, self._looked = now - self._looked, now
        if away > self._lost_s / 4:
            self._heard += away
        if self._frames and now - self._heard > self._lost_s:
            raise WorkerLost(f"the receiver has acknowledged nothing for {now - self._heard:.1f} s")

    def due(self, now: float) -> list[int]:
        """Frames to send again now. Raises WorkerLost as :meth:`check`."""
        self.check(now)
        late = [seq for seq, (_, at) in self._frames.items() if now - at > self._resend_s]
        for seq in late:
            self._frames[seq] = (self._frames[seq][0], now)
        return late
