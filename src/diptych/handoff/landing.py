"""The receiver's side: regions for KV that is on its way, and the one gate through which it reaches an
engine.

    offer ----> [ region in the arena, row with epoch ] <---- writers, while they hold the epoch's ticket
    admit ----> copy into the engine's private buffers, digest over *that copy* ----> the engine may use it

Why no late write can become a wrong token. A writer compares the row's epoch with its ticket's before each
image; when a handoff ends in any way its epoch is struck out before the region can be offered again. What
remains is a writer that was stopped between that look and its copy, and goes on when the region already
belongs to another handoff:

    the late copy lands ...                   ... and so
    before the new writer's bytes             they overwrite it: harmless
    after them, before admission              admit's copy differs from the new writer's digest, which was
                                              taken over its private staging buffer: CorruptKV, recomputed
    while admit copies                        the same, for the digest is taken over the copy, not the region
    after admission                           nobody reads the region any more: harmless

The digest is never taken over memory that another process can still write, at either end.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import xxhash

from diptych.errors import CorruptKV, HandoffError, IncompatibleForms, LandingFull, StaleWrite
from diptych.handoff import state
from diptych.handoff.arena import PAGE, ROWS, Arena, Row
from diptych.handoff.contract import KVForm
from diptych.handoff.region import Bytes, Region
from diptych.handoff.seal import Seal, check_seal
from diptych.handoff.state import Deadlines, HandoffState
from diptych.handoff.ticket import Ticket


class _Landed:
    """One handoff: its ticket, its state, and how many tokens its writer had written when we last looked."""

    def __init__(self, ticket: Ticket, begun: HandoffState) -> None:
        self.ticket = ticket
        self.state = begun
        self.tokens_seen = 0


class Landing:
    """One arena and every handoff in it. Safe to call from several threads.

    ``counts`` holds "offered", "admitted", "released" (before admission) and "failed.<reason>"; a handoff
    that is over is counted in exactly one of the last three.
    """

    def __init__(
        self,
        directory: Path,
        capacity_bytes: int,
        *,
        receiver: str,
        deadlines: Deadlines | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``directory`` is private (0700), best under /dev/shm. Raises ConfigError where the memory is not
        to be had.
        """
        self.receiver = receiver
        self.counts: Counter[str] = Counter()
        self._deadlines = deadlines or Deadlines()
        self._clock = clock
        self._arena = Arena.create(directory, capacity_bytes)
        self._lock = threading.Lock()
        self._handoffs: dict[str, _Landed] = {}
        self._taken: list[tuple[int, int]] = []
        self._free_rows = list(range(ROWS))
        self._epoch = secrets.randbits(62)

    @property
    def capacity_bytes(self) -> int:
        return self._arena.size

    @property
    def address(self) -> str:
        """The arena's file, which names this landing to writers on the same machine."""
        return str(self._arena.path)

    @property
    def memory(self) -> Bytes:
        """All regions, for transports that write here from afar; a ticket's region is at its ``offset``."""
        return self._arena.data

    @property
    def used_bytes(self) -> int:
        """Bytes of regions in use now."""
        with self._lock:
            return sum(length for _, length in self._taken)

    def offer(
        self, request_id: str, form: KVForm, tokens: int, ttl_s: float, via: tuple[str, str] | None = None
    ) -> Ticket:
        """Sets a region aside and says where to write, for at most ``ttl_s`` seconds.

        ``via`` is the (transport, address) for the ticket, by default this machine's shared memory. Raises
        LandingFull when there is no room now, and IncompatibleForms when there never will be.
        """
        needed = form.region_bytes(tokens)
        if tokens <= 0 or needed > self.capacity_bytes:
            raise IncompatibleForms("region_bytes", needed, f"1 to {self.capacity_bytes}")
        transport, address = via or ("shm", self.address)
        with self._lock:
            offset = self._take(needed)
            self._epoch += 1
            ticket = Ticket(
                handoff_id=secrets.token_hex(12),
                request_id=request_id,
                receiver=self.receiver,
                transport=transport,
                address=address,
                form=form,
                tokens=tokens,
                kv_bytes=needed,
                offset=offset,
                slot=self._free_rows.pop(),
                epoch=self._epoch,
                expires_at=time.time() + ttl_s,
            )
            self._arena.row(ticket.slot).offer(ticket.epoch)
            self._handoffs[ticket.handoff_id] = _Landed(ticket, state.offered(self._clock(), self._deadlines))
            self.counts["offered"] += 1
        return ticket

    def admit(self, handoff_id: str, seal: Seal, blocks: Sequence[Bytes]) -> None:
        """Copies the KV into ``blocks`` and proves that copy; the region is free afterwards, whatever
        happened.

        ``blocks`` are the engine's private buffers, one writable uint8 array per image of the ticket's form
        (K layers, then V layers) of shape [outer, units, unit_bytes], or (tokens, row_bytes) for rows; they
        may be strided. Raises StaleWrite (unknown, finished or another epoch) or CorruptKV; the buffers'
        content is then worthless.
        """
        ticket = self._move(handoff_id, "seal").ticket
        try:
            check_seal(seal, ticket)
            self._copy_and_prove(ticket, seal, blocks)
            self._move(handoff_id, "admit")
        except BaseException as error:
            self.fail(handoff_id, error.reason if isinstance(error, HandoffError) else "admission_error")
            raise

    def fail(self, handoff_id: str, reason: str) -> None:
        """Ends a handoff that went wrong. Does nothing to one that is over."""
        with self._lock:
            landed = self._handoffs.get(handoff_id)
            if landed is not None and not landed.state.final:
                self._end(landed, state.fail(landed.state, reason, self._clock()))

    def release(self, handoff_id: str) -> None:
        """Ends a handoff that is not needed (any more). Idempotent; an unknown one is taken as over."""
        with self._lock:
            landed = self._handoffs.get(handoff_id)
            if landed is not None:
                self._end(landed, state.step(landed.state, "release", self._clock(), self._deadlines))

    def expire(self, now: float | None = None) -> list[str]:
        """Fails every handoff that its writer gave up or whose phase ran out of time; returns their ids.

        Call it about once a second.
        """
        now = self._clock() if now is None else now
        with self._lock:
            held = list(self._handoffs.values())
            for landed in held:
                self._look(landed, now)
                if not landed.state.final and landed.state.expired(now):
                    self._end(landed, state.fail(landed.state, f"{landed.state.phase}_deadline", now))
        return [landed.ticket.handoff_id for landed in held if landed.state.phase == "failed"]

    def phase(self, handoff_id: str) -> state.Phase | None:
        """The phase of a handoff that is not over, else None."""
        with self._lock:
            landed = self._handoffs.get(handoff_id)
            if landed is None:
                return None
            self._look(landed, self._clock())
            return None if landed.state.final else landed.state.phase

    def close(self) -> None:
        """Removes the arena. Writers that still hold it write into memory that nobody reads."""
        with self._lock:
            for landed in self._handoffs.values():
                self._arena.row(landed.ticket.slot).strike()
            self._handoffs.clear()
        self._arena.close(remove=True)

    def open(self, ticket: Ticket) -> tuple[Region, Row]:
        """Where a transport's receiving end in this process puts a ticket's bytes.

        Raises StaleWrite unless the ticket is one of ours, to the letter, and its handoff is still under way.
        """
        with self._lock:
            landed = self._handoffs.get(ticket.handoff_id)
            if landed is None or landed.ticket != ticket or landed.state.phase not in {"offered", "streaming"}:
                raise StaleWrite(f"handoff {ticket.handoff_id} is unknown or over")
        return self._region(ticket), self._arena.row(ticket.slot)

    def _region(self, ticket: Ticket) -> Region:
        data = self._arena.data[ticket.offset : ticket.offset + ticket.kv_bytes]
        return Region(ticket.form, data, ticket.tokens)

    def _copy_and_prove(self, ticket: Ticket, seal: Seal, blocks: Sequence[Bytes]) -> None:
        images = ticket.form.images
        try:
            places = [
                block.reshape(image.outer, image.units(ticket.tokens), image.unit_bytes, copy=False)
                for image, block in zip(images, blocks, strict=True)
            ]
        except ValueError as error:
            raise CorruptKV(f"the engine's buffers are not of the form {ticket.form.name}: {error}") from error
        region = self._region(ticket)
        for piece in seal.pieces:
            digest = xxhash.xxh3_128()
            for index, (image, place) in enumerate(zip(images, places, strict=True)):
                first = piece.token_start // image.unit_tokens
                private = place[:, first : first + image.units(piece.tokens)]
                private[...] = region.piece(index, piece.token_start, piece.tokens)
                digest.update(private.data if private.flags.c_contiguous else private.tobytes())
            if digest.digest() != piece.digest:
                raise CorruptKV(f"the digest of tokens {piece.token_start}+{piece.tokens} differs")

    def _move(self, handoff_id: str, event: state.Event) -> _Landed:
        with self._lock:
            landed = self._handoffs.get(handoff_id)
            if landed is None:
                raise StaleWrite(f"handoff {handoff_id} is unknown or over")
            landed.state = state.step(landed.state, event, self._clock(), self._deadlines)
            if landed.state.phase == "admitted":
                self.counts["admitted"] += 1
                self._free(landed.ticket)
            return landed

    def _look(self, landed: _Landed, now: float) -> None:
        """Takes note of what the writer left in the row: tokens written, or that it gave up."""
        if landed.state.phase not in {"offered", "streaming"}:
            return
        row = self._arena.row(landed.ticket.slot)
        if row.given_up(landed.ticket.epoch):
            self._end(landed, state.fail(landed.state, "given_up", now))
        elif row.tokens != landed.tokens_seen:
            landed.tokens_seen = row.tokens
            landed.state = state.step(landed.state, "write", now, self._deadlines)

    def _end(self, landed: _Landed, final: HandoffState) -> None:
        before, landed.state = landed.state, final
        del self._handoffs[landed.ticket.handoff_id]
        if before.phase != "admitted":
            self.counts[f"failed.{final.reason}" if final.phase == "failed" else "released"] += 1
            self._free(landed.ticket)

    def _take(self, needed: int) -> int:
        """First fit: the offset of the first gap that is wide enough."""
        length = -(-needed // PAGE) * PAGE
        start = 0
        for index, (offset, taken) in enumerate([*self._taken, (self.capacity_bytes, 0)]):
            if offset - start >= length and self._free_rows:
                self._taken.insert(index, (start, length))
                return start
            start = offset + taken
        raise LandingFull(f"no room for {needed} bytes of KV now")

    def _free(self, ticket: Ticket) -> None:
        self._arena.row(ticket.slot).strike()
        self._free_rows.append(ticket.slot)
        self._taken = [region for region in self._taken if region[0] != ticket.offset]
