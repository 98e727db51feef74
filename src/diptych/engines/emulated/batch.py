"""Continuous batching, as the planner's simulator does it: who is in the next step, and how long it takes. Pure.

waiting --slot, KV room, at a boundary--> running      its first token is there one step later
       \\--to read--> reading, one prompt at a time, a chunk mixed into each step; the last yields a token
"""

from __future__ import annotations

from collections import deque
from typing import Protocol


class Seconds(Protocol):
    """What a step takes."""

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> float: ...

    def step_s(self, batch: int, context_tokens: int) -> float: ...


class Sequence:
    """One request: KV tokens there (``context``), prompt tokens still ``to_read``, and tokens ``left`` to emit."""

    def __init__(self, context: int, to_read: int, left: int) -> None:
        self.cached, self.to_read, self.left = context, to_read, left
        self.context = context
        self.read = self.emitted = 0

    @property
    def most(self) -> int:
        """KV tokens that it may come to hold, for which room is kept."""
        return self.context + self.to_read - self.read + self.left


class Batch:
    """``slots`` sequences of at most ``capacity`` KV tokens together; ``chunk_tokens`` of a prompt go into a step.

    ``interference`` is the part of a chunk's own time by which it holds up the sequences beside it.
    """

    def __init__(self, seconds: Seconds, slots: int, capacity: int, chunk_tokens: int, interference: float) -> None:
        self._seconds, self._slots, self._capacity = seconds, slots, capacity
        self._chunk_tokens, self._interference = chunk_tokens, interference
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._reading: Sequence | None = None
        self._context = 0

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._running or self._reading)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes it out, wherever it is; one that is over already is nowhere."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        elif sequence in self._running:
            self._running.remove(sequence)
            self._context -= sequence.context
        elif sequence is self._reading:
            self._reading = None

    def admit(self) -> list[Sequence]:
        """At a boundary: those that join now, first come, first served."""
        joined = []
        while self._waiting and self._fits(self._waiting[0]):
            sequence = self._waiting[0]
            if sequence.to_read and self._reading is not None:
                break
            self._waiting.popleft()
            joined.append(sequence)
            if sequence.to_read:
                self._reading = sequence
            else:
                self._run(sequence)
        return joined

    def step_s(self) -> float:
        """Seconds of the next step. The batch must not be idle."""
        chunk_s, reading = 0.0, self._reading
        if reading is not None:
            upto = reading.read + self._chunk(reading)
            done_s = self._seconds.prefill_s(reading.read, reading.cached)
            chunk_s = self._seconds.prefill_s(upto, reading.cached) - done_s
            if not self._running:
                return chunk_s
        return self._seconds.step_s(len(self._running), self._context) + self._interference * chunk_s

    def step(self) -> list[Sequence]:
        """Takes the step: those that got a token. Who has no more to emit leaves."""
        emitting = list(self._running)
        for sequence in emitting:
            sequence.context += 1
        self._context += len(emitting)
        if (reading := self._reading) is not None and self._read(reading):
            emitting.append(reading)
        for sequence in emitting:
            sequence.emitted += 1
            sequence.left -= 1
            if not sequence.left:
                self.remove(sequence)
        return emitting

    def _read(self, sequence: Sequence) -> bool:
        """Reads the chunk; True where it was the last, and the sequence runs from here on."""
        chunk = self._chunk(sequence)
        sequence.read += chunk
        sequence.context += chunk
        if sequence.read < sequence.to_read:
            return False
        self._reading = None
        self._run(sequence)
        return True

    def _run(self, sequence: Sequence) -> None:
        self._running.append(sequence)
        self._context += sequence.context

    def _chunk(self, sequence: Sequence) -> int:
        return min(self._chunk_tokens, sequence.to_read - sequence.read)

    def _fits(self, sequence: Sequence) -> bool:
        held = [*self._running, *([self._reading] if self._reading else [])]
        return len(held) < self._slots and sum(s.most for s in held) + sequence.most <= self._capacity
