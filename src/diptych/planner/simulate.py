"""Discrete events: arrivals -> the live router's own placement -> prefill -> convert -> link -> decode.

    arrival --place()--> prefill worker's queue --> [chunks] --> convert --> link --> decode worker --> tokens
                    '--> decode worker that reads the prompt itself ----------------------^

Everything that happens at one moment happens in the order in which it was scheduled, so the same inputs give the
same bytes. A prefill worker takes prompts first come, first served: when a prompt is placed, its end is known.
"""

from __future__ import annotations

import gc
import heapq
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diptych.errors import ConfigError
from diptych.planner.decode import DecodeWorker, Sequence
from diptych.planner.fleetplan import FleetPlan, PrefillPool
from diptych.planner.links import Links, Nic
from diptych.planner.outcome import Outcome
from diptych.planner.prefix import PrefixIndex
from diptych.planner.traces import Trace
from diptych.routing.placement import Demand, Fleet, Link, PrefillState, place
from diptych.routing.placement import Links as Pairs

Handler = Callable[[float, Any], None]
_NO_DEPTHS: dict[int, int] = {}


class PrefillWorker:
    """A queue whose end is known: ``free_s`` is when the last prompt accepted will have been read."""

    __slots__ = ("cost", "free_s", "idle", "index", "name", "nic", "pool")

    def __init__(self, index: int, name: str, pool: PrefillPool) -> None:
        self.index, self.name, self.pool, self.cost = index, name, pool, pool.cost
        self.nic = Nic(pool.nic_bytes_s)
        self.free_s = 0.0
        self.idle = PrefillState(name, pool.cost)


def simulate(trace: Trace, plan: FleetPlan, *, exact: bool = False) -> Outcome:
    """Runs the trace through the fleet. ``exact`` takes decode step by step instead of jumping (same result, slower).

    Raises ConfigError when the plan names a worker that fails and is not there.
    """
    with _without_collector():
        return _Simulation(trace, plan, exact).run()


@contextmanager
def _without_collector() -> Iterator[None]:
    """A simulation leaves no cycles behind, so the cyclic collector would walk millions of objects for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Simulation:
    def __init__(self, trace: Trace, plan: FleetPlan, exact: bool) -> None:
        self.trace, self.plan, self.out = trace, plan, Outcome(len(trace))
        self.heap: list[tuple[float, int, Handler, Any]] = []
        self.count = 0
        self.links = Links(self._schedule)
        self.prefill = [
            PrefillWorker(i, f"P{i}", pool) for i, pool in enumerate(p for p in plan.prefill for _ in range(p.count))
        ]
        pools = [pool for pool in plan.decode for _ in range(pool.count)]
        self.decode = [DecodeWorker(f"D{i}", pool, self, exact) for i, pool in enumerate(pools)]
        self.by_name = {worker.name: i for i, worker in enumerate(self.decode)}
        self.prefill_by_name = {worker.name: worker for worker in self.prefill}
        blocks = [w.pool.cache_tokens // trace.block_tokens if trace.blocks else 0 for w in self.prefill]
        self.prefixes = PrefixIndex(blocks) if any(blocks) else None
        self.router_links = self._router_links()
        self.shortest = 1 if any(pool.prefills for pool in plan.decode) else 2
        self.attempt = bytearray(len(trace))
        self.emitted: dict[int, int] = {}
        self.gone: set[str] = set()

    def run(self) -> Outcome:
        for failure in self.plan.failures:
            self._schedule(failure.at_s, self._fail, failure.worker)
        heap, pop = self.heap, heapq.heappop
        for request, arrival in enumerate(self.trace.arrival_s):
            while heap and heap[0][0] <= arrival:
                now, _, handler, what = pop(heap)
                handler(now, what)
            self._arrive(arrival, request)
        while heap:
            now, _, handler, what = pop(heap)
            handler(now, what)
        return self.out

    def _schedule(self, at_s: float, handler: Handler, what: Any) -> None:
        self.count += 1
        heapq.heappush(self.heap, (at_s, self.count, handler, what))

    # -- placing ---------------------------------------------------------------------------------------------------

    def _router_links(self) -> Pairs:
        """What the router knows of the tail after prefill: the last chunk at the full rate of the slower interface."""
        handoff = self.plan.handoff
        links = []
        for p in self.prefill:
            for d in self.decode:
                s_per_byte = 1.0 / min(p.nic.bytes_s, d.nic.bytes_s) + 1.0 / handoff.convert_bytes_s
                per_token = 0.0 if handoff.overlap else s_per_byte * handoff.bytes_of(1)
                chunk_s = s_per_byte * handoff.bytes_of(p.pool.chunk_tokens) if handoff.overlap else 0.0
                links.append(Link(p.name, d.name, handoff.base_s + chunk_s, per_token))
        return Pairs(links)

    def _arrive(self, now: float, request: int) -> None:
        """A prompt of one token has nothing to hand over; where only pairs serve, it counts as two."""
        prompt = max(self.shortest, self.trace.input_tokens[request])
        self._place(now, request, prompt, self.trace.output_tokens[request])

    def _place(self, now: float, request: int, prompt: int, output: int) -> None:
        depths = self.prefixes.depths(self.trace.blocks[request]) if self.prefixes else None
        decode = tuple([worker.state(now) for worker in self.decode if worker.alive])
        fleet = Fleet(self._prefill_states(now, depths), decode, self.router_links)
        try:
            chosen = place(Demand(prompt, output), fleet).chosen
        except LookupError:
            self.out.rejected += 1
            return
        target = self.by_name[chosen.decode]
        self.out.placed_decode[request] = target
        self.attempt[request] = (self.attempt[request] + 1) & 0xFF
        if chosen.prefill is None:
            self.out.placed_prefill[request] = -1
            self._alone(now, request, self.decode[target], prompt, output)
        else:
            source = self.prefill_by_name[chosen.prefill]
            self.out.placed_prefill[request] = source.index
            held = depths.get(source.index, 0) * self.trace.block_tokens if depths else 0
            self._disaggregated(now, request, source, self.decode[target], prompt, held)

    def _prefill_states(self, now: float, depths: dict[int, int] | None) -> tuple[PrefillState, ...]:
        each, held = self.trace.block_tokens, depths or _NO_DEPTHS
        return tuple(
            [
                PrefillState(w.name, w.cost, max(0.0, w.free_s - now), held.get(w.index, 0) * each)
                if w.free_s > now or w.index in held
                else w.idle
                for w in self.prefill
            ]
        )

    # -- the two ways ----------------------------------------------------------------------------------------------

    def _alone(self, now: float, request: int, worker: DecodeWorker, prompt: int, output: int) -> None:
        worker.put(now, Sequence(request, prompt, output, prompt))

    def _disaggregated(
        self, now: float, request: int, source: PrefillWorker, target: DecodeWorker, prompt: int, held: int
    ) -> None:
        handed_over = prompt - 1
        held = min(held, handed_over)
        start = max(now, source.free_s)
        end = source.free_s = start + source.cost.prefill_s(handed_over - held, held)
        out = self.out
        out.cached_tokens[request] = held
        if request not in self.emitted:
            out.prefill_start[request], out.prefill_end[request] = start, end
        if self.prefixes is not None:
            self.prefixes.add(source.index, self.trace.blocks[request])
        target.inbound += 1
        target.inbound_tokens += prompt
        job = (request, self.attempt[request], source, target, handed_over, held, end - start)
        self._schedule(end, self._read, job)

    def _read(self, now: float, job: tuple[int, int, PrefillWorker, DecodeWorker, int, int, float]) -> None:
        request, attempt, source, target, tokens, held, took_s = job
        if attempt != self.attempt[request]:
            return
        handoff = self.plan.handoff
        size = rest = handoff.bytes_of(tokens)
        if handoff.overlap:
            chunk = source.pool.chunk_tokens
            last = (tokens - held - 1) % chunk + 1 if tokens > held else 0
            tail = size * last / tokens
            rate = min(source.nic.bytes_s, target.nic.bytes_s)
            rest = tail + max(0.0, size - tail - (rate * took_s if rate < math.inf else math.inf))
            size = tail
        converted = now + size / handoff.convert_bytes_s
        if request not in self.emitted:
            self.out.converted[request] = converted
        self._schedule(converted + handoff.base_s, self._send, (request, attempt, source, target, tokens, rest))

    def _send(self, now: float, job: tuple[int, int, PrefillWorker, DecodeWorker, int, float]) -> None:
        request, attempt, source, target, tokens, rest = job
        if attempt == self.attempt[request]:
            arrived = (request, attempt, source, target, tokens)
            self.links.start(now, source.nic, target.nic, rest, lambda at: self._landed(at, arrived))

    def _landed(self, now: float, job: tuple[int, int, PrefillWorker, DecodeWorker, int]) -> None:
        request, attempt, source, target, tokens = job
        if attempt != self.attempt[request]:
            return
        if self.gone and (source.name in self.gone or target.name in self.gone):
            self._retry_inbound(now, request, target, tokens)
            return
        target.inbound -= 1
        target.inbound_tokens -= tokens + 1
        done = self.emitted.get(request, 0)
        if not done:
            self.out.landed[request] = now
        target.put(now, Sequence(request, tokens, self.trace.output_tokens[request] - done, 0))

    # -- what decode workers say -----------------------------------------------------------------------------------

    def wake(self, at_s: float, worker: DecodeWorker, version: int) -> None:
        self.count += 1
        heapq.heappush(self.heap, (at_s, self.count, worker.on_wake, version))

    def reading(self, at_s: float, request: int) -> None:
        if request not in self.emitted:
            self.out.prefill_start[request] = at_s

    def has_read(self, at_s: float, request: int) -> None:
        if request not in self.emitted:
            out = self.out
            out.prefill_end[request] = out.converted[request] = out.landed[request] = at_s
            out.joined[request] = out.first[request] = at_s

    def joined(self, at_s: float, first_token_s: float, request: int) -> None:
        if request not in self.emitted:
            self.out.joined[request], self.out.first[request] = at_s, first_token_s

    def finished(self, at_s: float, request: int) -> None:
        self.out.finish[request] = at_s

    def rejected(self, request: int) -> None:  # noqa: ARG002  part of the protocol
        self.out.rejected += 1

    def preempted(self, at_s: float, request: int, generated: int) -> None:
        """Its KV is gone: the prompt and what it had written are read again, there or by a prefill worker."""
        self.out.preemptions += 1
        self._again(at_s, request, generated)

    def _again(self, now: float, request: int, generated: int) -> None:
        if generated:
            self.emitted[request] = self.emitted.get(request, 0) + generated
        done = self.emitted.get(request, 0)
        prompt, output = self.trace.input_tokens[request], self.trace.output_tokens[request]
        self._place(now, request, prompt + done, output - done)

    # -- failures --------------------------------------------------------------------------------------------------

    def _fail(self, now: float, name: str) -> None:
        self.gone.add(name)
        if name in self.prefill_by_name:
            self._fail_prefill(now, self.prefill_by_name[name])
        elif name in self.by_name:
            self._fail_decode(now, self.by_name[name])
        else:
            known = ", ".join([*self.prefill_by_name, *self.by_name])
            raise ConfigError(f"no worker {name!r} to fail; the fleet has {known}")

    def _fail_prefill(self, now: float, worker: PrefillWorker) -> None:
        self.prefill.remove(worker)
        if self.prefixes is not None:
            self.prefixes.drop(worker.index)
        lost = {e[3][0]: e[3] for e in self.heap if e[2] == self._read and e[3][2] is worker}
        for request, job in sorted(lost.items()):
            if job[1] == self.attempt[request]:
                self._retry_inbound(now, request, job[3], job[4])

    def _fail_decode(self, now: float, index: int) -> None:
        worker = self.decode[index]
        held = worker.lose()
        inbound = [e[3] for e in self.heap if e[2] in (self._read, self._send) and e[3][3] is worker]
        for sequence in sorted(held, key=lambda s: s.request):
            self.out.retries += 1
            running = any(entry[2] is sequence for entry in worker.running)
            done = worker.generated(sequence) if running else 0
            self._again(now, sequence.request, done)
        for job in sorted(inbound, key=lambda job: job[0]):
            if job[1] == self.attempt[job[0]]:
                self._retry_inbound(now, job[0], worker, job[4])

    def _retry_inbound(self, now: float, request: int, target: DecodeWorker, tokens: int) -> None:
        target.inbound -= 1
        target.inbound_tokens -= tokens + 1
        self.out.retries += 1
        done = self.emitted.get(request, 0)
        output = self.trace.output_tokens[request]
        self._place(now, request, self.trace.input_tokens[request] + done, output - done)
