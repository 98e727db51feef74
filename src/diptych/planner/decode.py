"""A decode worker: iteration-level batching, in closed form between the moments at which its batch changes.

    anchor              a boundary between two steps: time, steps done, batch, context; nothing changes until `planned`
      |-- step -- step -- step -- ...          after k steps: time + k*first + slope*batch*k(k-1)/2
      '-- planned: the next completion, the next boundary after an arrival, the KV's last room, or a knee

A sequence joins at a boundary and its first token is there one step later. A prompt that the worker reads itself
is mixed into the steps chunk by chunk, each planned alone; the last of them yields its first token.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import Protocol

from diptych.chips.stepcost import DecodeLine
from diptych.planner.fleetplan import DecodePool
from diptych.planner.links import Nic
from diptych.routing.placement import DecodeState

TIE_S = 1e-9
"""An arrival that is not later than this after a boundary joins there."""


class Sequence:
    """One request in a decode worker. ``context`` is its KV at the boundary where it joins, ``left`` its tokens to go.

    ``read`` counts the tokens of the prompt that this worker has read itself, ``to_read`` those that it has to.
    """

    __slots__ = ("context", "joined_step", "left", "order", "read", "request", "to_read")

    def __init__(self, request: int, context: int, left: int, to_read: int) -> None:
        self.request, self.context, self.left, self.to_read = request, context, left, to_read
        self.read = self.joined_step = self.order = 0


class Host(Protocol):
    """What a worker tells the simulation."""

    def wake(self, at_s: float, worker: DecodeWorker, version: int) -> None:
        """Asks to be called back: ``worker.on_wake(at_s, version)``."""

    def reading(self, at_s: float, request: int) -> None: ...

    def has_read(self, at_s: float, request: int) -> None: ...

    def joined(self, at_s: float, first_token_s: float, request: int) -> None: ...

    def finished(self, at_s: float, request: int) -> None: ...

    def preempted(self, at_s: float, request: int, generated: int) -> None: ...

    def rejected(self, request: int) -> None: ...


class DecodeWorker:
    """Call :meth:`put` when a request is there, and :meth:`on_wake` when asked to."""

    def __init__(self, name: str, pool: DecodePool, host: Host, exact: bool) -> None:
        self.name, self.pool, self.cost, self.host, self.exact = name, pool, pool.cost, host, exact
        self.capacity = pool.cost.kv_capacity_tokens
        self.line = pool.cost if isinstance(pool.cost, DecodeLine) else None
        self.nic = Nic(pool.nic_bytes_s)
        self.alive = True
        self.prefills = pool.prefills
        self.idle = DecodeState(name, pool.cost, prefills=pool.prefills)
        self.inbound = self.inbound_tokens = 0
        self.waiting: deque[Sequence] = deque()
        self.to_read: deque[Sequence] = deque()
        self.reading: Sequence | None = None
        self.running: list[tuple[int, int, Sequence]] = []
        self.fresh: list[Sequence] = []
        self.time_s = self.lost_s = self.first_s = self.slope_s = 0.0
        self.until = math.inf
        self.step = self.batch = self.context = self.planned = self.version = self._order = 0
        self.reserved = 0
        self.to_read_s = 0.0

    def state(self, now: float) -> DecodeState:
        """The worker as a router sees it, with what is on its way to it counted in."""
        batch = self.batch + self.inbound + len(self.waiting) + len(self.to_read)
        if not batch and self.reading is None:
            return self.idle
        context = self.context + self.inbound_tokens + self.reserved
        wait_s = self.to_read_s
        if self.batch and self.first_s > 0.0:
            done = int((now - self.time_s) / self.first_s) if now > self.time_s else 0
            context += done * self.batch
            if batch >= self.pool.slots or context >= self.capacity:
                wait_s += max(0.0, (self.running[0][0] - self.step - done) * self.first_s)
        return DecodeState(self.name, self.cost, wait_s, batch, context, 0, self.prefills)

    def put(self, now: float, sequence: Sequence) -> None:
        """The request is here; it joins at the next boundary with room, after being read if it has to be."""
        if sequence.context + sequence.left > self.capacity:
            self.host.rejected(sequence.request)
            return
        if sequence.to_read:
            self.to_read.append(sequence)
            self.to_read_s += self.cost.prefill_s(sequence.to_read, sequence.context - sequence.to_read)
        else:
            self.waiting.append(sequence)
        if not self.batch and self.reading is None:
            self.time_s, self.lost_s = max(now, self.time_s), 0.0
            self._change()
        elif now - self.time_s <= TIE_S:
            self._change()
        elif self.reading is None and self._has_room():
            self._plan_until(self._steps_until(now))

    def on_wake(self, version: int) -> None:
        """The planned boundary is reached."""
        if version != self.version or not self.alive:
            return
        if self.reading is not None:
            self._advance(1, self._mixed_s())
            self._read_chunk(self.reading)
        else:
            self._advance(self.planned, self._elapsed(self.planned))
        self._change()

    def lose(self) -> list[Sequence]:
        """The worker is gone; returns what it was working on."""
        self.alive, self.version = False, self.version + 1
        held = [entry[2] for entry in self.running] + list(self.waiting) + list(self.to_read)
        return held if self.reading is None else [*held, self.reading]

    def generated(self, sequence: Sequence) -> int:
        """Tokens that a running sequence has emitted by the last boundary."""
        return self.step - sequence.joined_step

    # -- boundaries ------------------------------------------------------------------------------------------------

    def _advance(self, steps: int, seconds: float) -> None:
        # Compensated summation: millions of steps must not drift from a jump over all of them.
        seconds -= self.lost_s
        now = self.time_s + seconds
        self.lost_s = (now - self.time_s) - seconds
        self.time_s = now
        self.step += steps
        self.context += steps * self.batch
        self.fresh.clear()

    def _change(self) -> None:
        """At a boundary: who has finished leaves, who fits joins, and the next boundary is planned."""
        running = self.running
        while running and running[0][0] <= self.step:
            _, _, sequence = heapq.heappop(running)
            self.batch -= 1
            self.context -= sequence.context + self.step - sequence.joined_step
            self.host.finished(self.time_s, sequence.request)
        self._admit()
        while self.batch and self.context + self.reserved + self.batch > self.capacity:
            self._preempt()
        if self.batch:
            self._draw_line()
        elif self.reading is None:
            self.version += 1
            return
        if self.reading is not None:
            first_token_s = self.time_s + self._mixed_s()
            self.planned = 1
            self._wake(first_token_s)
        else:
            first_token_s = self.time_s + self.first_s
            self._plan()
        for sequence in self.fresh:
            self.host.joined(self.time_s, first_token_s, sequence.request)

    def _admit(self) -> None:
        waiting = self.waiting
        while waiting and self._fits(waiting[0]):
            self._join(waiting.popleft())
        if self.reading is None and self.to_read and self._fits(self.to_read[0]):
            self.reading = self.to_read.popleft()
            self.reserved = self.reading.context
            self.host.reading(self.time_s, self.reading.request)

    def _join(self, sequence: Sequence, emitted: int = 0) -> None:
        """Into the batch; ``emitted`` is 1 after a prompt that was read here, whose last step yields a token."""
        self._order += 1
        sequence.joined_step, sequence.order = self.step - emitted, self._order
        heapq.heappush(self.running, (sequence.joined_step + sequence.left, self._order, sequence))
        self.batch += 1
        self.context += sequence.context + emitted
        if not emitted:
            self.fresh.append(sequence)

    def _fits(self, sequence: Sequence) -> bool:
        taken = self.context + self.reserved + sequence.context + self.batch + 1
        return self.batch + (self.reading is not None) < self.pool.slots and taken <= self.capacity

    def _has_room(self) -> bool:
        head = self.waiting[0] if self.waiting else self.to_read[0]
        return self._fits(head)

    def _preempt(self) -> None:
        """The last that joined gives up its KV; it is computed again later."""
        entry = max(self.running, key=lambda running: running[1])
        self.running.remove(entry)
        heapq.heapify(self.running)
        sequence = entry[2]
        if sequence in self.fresh:
            self.fresh.remove(sequence)
        generated = self.generated(sequence)
        self.batch -= 1
        self.context -= sequence.context + generated
        self.host.preempted(self.time_s, sequence.request, generated)

    # -- reading prompts here --------------------------------------------------------------------------------------

    def _chunk(self, sequence: Sequence) -> int:
        return min(self.pool.chunk_tokens, sequence.to_read - sequence.read)

    def _mixed_s(self) -> float:
        """One step with a chunk in it: what the chunk adds to the prompt's own time, and the decode beside it."""
        sequence = self.reading
        assert sequence is not None, "only called while a prompt is read"
        cached = sequence.context - sequence.to_read
        cost, done = self.cost, sequence.read
        chunk_s = cost.prefill_s(done + self._chunk(sequence), cached) - cost.prefill_s(done, cached)
        if not self.batch:
            return chunk_s
        return cost.decode_s(self.batch, self.context) + self.pool.interference * chunk_s

    def _read_chunk(self, sequence: Sequence) -> None:
        sequence.read += self._chunk(sequence)
        if sequence.read < sequence.to_read:
            return
        self.to_read_s = max(
            0.0, self.to_read_s - self.cost.prefill_s(sequence.to_read, sequence.context - sequence.to_read)
        )
        self.reading, self.reserved = None, 0
        self.host.has_read(self.time_s, sequence.request)
        self._join(sequence, emitted=1)

    # -- time ------------------------------------------------------------------------------------------------------

    def _draw_line(self) -> None:
        """Seconds of the next step and how they grow with the context."""
        self.until = math.inf
        if self.line is None:
            self.first_s, self.slope_s = self.cost.decode_s(self.batch, self.context), 0.0
        else:
            base_s, self.slope_s, self.until = self.line.decode_line(self.batch, self.context)
            self.first_s = base_s + self.slope_s * self.context

    def _elapsed(self, steps: int) -> float:
        """Seconds from the anchor to the boundary ``steps`` later."""
        if self.exact:
            return self.cost.decode_s(self.batch, self.context)
        return steps * (self.first_s + 0.5 * self.slope_s * self.batch * (steps - 1))

    def _steps_until(self, now: float) -> int:
        """The first boundary after the anchor that is not before ``now``."""
        gap_s = now - self.time_s - TIE_S
        if self.exact or gap_s <= 0.0:
            return 1
        growth_s = 0.5 * self.slope_s * self.batch
        if growth_s == 0.0:
            return max(1, math.ceil(gap_s / self.first_s))
        linear_s = self.first_s - growth_s
        steps = (math.sqrt(linear_s * linear_s + 4.0 * growth_s * gap_s) - linear_s) / (2.0 * growth_s)
        return max(1, math.ceil(steps))

    def _plan(self) -> None:
        """The furthest boundary before which nothing changes."""
        steps = self.running[0][0] - self.step
        steps = min(steps, (self.capacity - self.context) // self.batch)
        if self.line is None or self.exact:
            steps = 1
        elif self.until < math.inf:
            steps = min(steps, max(1, math.ceil((self.until - self.context) / self.batch)))
        self.planned = steps
        self._wake(self.time_s + self._elapsed(steps))

    def _plan_until(self, steps: int) -> None:
        if steps < self.planned:
            self.planned = steps
            self._wake(self.time_s + self._elapsed(steps))

    def _wake(self, at_s: float) -> None:
        self.version += 1
        self.host.wake(at_s, self, self.version)
