"""The producer's side of one handoff: converts in the background, digests, passes the bytes on, seals.

The engine computes its next chunk while the last one is converted, so what is left when it ends is about
one chunk.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import xxhash

from diptych.errors import StaleWrite
from diptych.handoff.convert import Converter
from diptych.handoff.layout import Chunk
from diptych.handoff.plan import Plan
from diptych.handoff.rechunk import Rechunker
from diptych.handoff.region import Bytes
from diptych.handoff.seal import Piece, Seal, make_seal
from diptych.handoff.ticket import Ticket

QUEUED_CHUNKS = 4
"""Chunks that may wait for conversion before :meth:`Writer.write` blocks: back-pressure on the engine."""


class Channel(Protocol):
    """What a transport does: carry dense bytes to a place in the landing region."""

    def put(self, image: int, token_start: int, tokens: int, staged: Bytes) -> None:
        """Delivers one chunk of the ``image``-th image; ``staged`` is valid during the call only.

        Raises HandoffError when the region is no longer ours, WorkerLost when the receiver is gone.
        """

    def finish(self) -> None:
        """Returns when everything that was put has been delivered. Raises as ``put`` does."""

    def close(self) -> None:
        """Lets go, delivered or not. Idempotent, never raises."""


class Timing(msgspec.Struct):
    """``convert_ms``: converting, digesting and delivering, in all; ``tail_ms``: from the last write to the
    seal.
    """

    convert_ms: float = 0.0
    tail_ms: float = 0.0


class Writer:
    """One handoff's KVSink. Used by one thread; errors of the background surface at the next call."""

    def __init__(self, plan: Plan, ticket: Ticket, channel: Channel) -> None:
        self.timing = Timing()
        self.ticket = ticket
        self._plan = plan
        self._channel = channel
        self._converter = Converter(plan)
        self._rechunker = Rechunker(plan.source, plan.target.unit_tokens)
        self._pieces: list[Piece] = []
        self._error: Exception | None = None
        self._closed = False
        self._queue: queue.Queue[tuple[int, Chunk] | None] = queue.Queue(QUEUED_CHUNKS)
        self._last_write = time.perf_counter()
        self._thread = threading.Thread(target=self._run, name=f"handoff-{ticket.handoff_id[:8]}", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether :meth:`write` would return at once: there is room, or an error to be raised."""
        return self._error is not None or not self._queue.full()

    @property
    def error(self) -> Exception | None:
        """What went wrong on the way, once it did."""
        return self._error

    def write(
        self,
        token_start: int,
        keys: Sequence[Any],
        values: Sequence[Any],
        *,
        tokens: int | None = None,
        blocks: Sequence[int] | None = None,
    ) -> None:
        """Takes one chunk: an array per layer. They must stay unchanged until ``seal`` or ``abort`` returns.

        ``tokens`` and ``blocks`` (the table) say where they are in paged storage. Chunks may come in any
        order where they start at the target's blocks, else one after the other. Raises StaleWrite after the
        end or beyond the ticket's tokens, CorruptKV for arrays of another form, and what befell earlier
        chunks.
        """
        self._check()
        chunk = Chunk.of(self._plan.source, keys, values, tokens, blocks)
        if token_start < 0 or token_start + chunk.tokens > self.ticket.tokens:
            raise StaleWrite(f"tokens {token_start}+{chunk.tokens} lie beyond the ticket's {self.ticket.tokens}")
        self._queue.put((token_start, chunk))
        self._last_write = time.perf_counter()

    def seal(self) -> Seal:
        """Waits for what is under way and returns the seal. Raises as ``write`` does."""
        self._check()
        self._end()
        self.timing.tail_ms = (time.perf_counter() - self._last_write) * 1e3
        if self._error is not None:
            raise self._error
        return make_seal(self.ticket.handoff_id, self.ticket.epoch, self.ticket.kv_bytes, self._pieces)

    def abort(self) -> None:
        """Gives the handoff up; at most the image under way is still delivered. Idempotent."""
        if not self._closed:
            self._error = self._error or StaleWrite(f"handoff {self.ticket.handoff_id} was given up")
            self._end()

    def _check(self) -> None:
        if self._error is not None:
            self.abort()
            raise self._error
        if self._closed:
            raise StaleWrite(f"handoff {self.ticket.handoff_id} is sealed")

    def _end(self) -> None:
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        self._channel.close()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                self._guard(self._deliver, *item)
        if self._error is None:
            self._guard(self._finish)

    def _guard(self, work: Callable[..., None], *arguments: Any) -> None:
        started = time.perf_counter()
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001  it is raised again where the engine's thread can see it
            self._error = error
        self.timing.convert_ms += (time.perf_counter() - started) * 1e3

    def _deliver(self, token_start: int, chunk: Chunk) -> None:
        for start, piece in self._rechunker.add(token_start, chunk):
            self._piece(start, piece)

    def _finish(self) -> None:
        for start, piece in self._rechunker.rest():
            self._piece(start, piece)
        self._channel.finish()

    def _piece(self, token_start: int, chunk: Chunk) -> None:
        digest = xxhash.xxh3_128()
        for image, staged in enumerate(self._converter.images(chunk)):
            if self._error is not None:
                return
            digest.update(staged.data)
            self._channel.put(image, token_start, chunk.tokens, staged)
        self._pieces.append(Piece(token_start, chunk.tokens, digest.digest()))
