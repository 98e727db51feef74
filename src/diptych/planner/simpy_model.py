"""The same fleet as a plain simpy model, step by step, to compare the simulator's speed and results with."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import simpy

from diptych.planner.fleetplan import FleetPlan
from diptych.planner.traces import Trace

Events = Generator[simpy.Event, Any, None]


class _Decode:
    """A loop that sleeps until there is work, then emits one token of every sequence per step."""

    def __init__(self, env: simpy.Environment, plan: FleetPlan) -> None:
        self.env, self.pool = env, plan.decode[0]
        self.running: list[list[int]] = []
        self.waiting: list[list[int]] = []
        self.work = env.event()
        self.finish: dict[int, float] = {}

    def put(self, request: int, left: int) -> None:
        self.waiting.append([request, left])
        if not self.work.triggered:
            self.work.succeed()

    def loop(self) -> Events:
        while True:
            self.running += self.waiting
            self.waiting = []
            if not self.running:
                yield self.work
                self.work = self.env.event()
                continue
            yield self.env.timeout(self.pool.cost.decode_s(len(self.running), 0))
            for sequence in self.running:
                sequence[1] -= 1
                if not sequence[1]:
                    self.finish[sequence[0]] = self.env.now
            self.running = [sequence for sequence in self.running if sequence[1]]


def run(trace: Trace, plan: FleetPlan) -> dict[int, float]:
    """Request -> time of its last token. Prefill by the shortest queue, decode by the smallest batch."""
    env = simpy.Environment()
    prefill = [simpy.Resource(env) for _ in range(plan.prefill[0].count)]
    decode = [_Decode(env, plan) for _ in range(plan.decode[0].count)]
    for worker in decode:
        env.process(worker.loop())
    env.process(_arrivals(env, trace, plan, prefill, decode))
    env.run()
    return {request: at_s for worker in decode for request, at_s in worker.finish.items()}


def _arrivals(
    env: simpy.Environment,
    trace: Trace,
    plan: FleetPlan,
    prefill: list[simpy.Resource],
    decode: list[_Decode],
) -> Events:
    for request, arrival_s in enumerate(trace.arrival_s):
        if arrival_s > env.now:
            yield env.timeout(arrival_s - env.now)
        env.process(_request(env, request, trace, plan, prefill, decode))


def _request(
    env: simpy.Environment,
    request: int,
    trace: Trace,
    plan: FleetPlan,
    prefill: list[simpy.Resource],
    decode: list[_Decode],
) -> Events:
    prompt = trace.input_tokens[request]
    worker = min(prefill, key=lambda resource: resource.count + len(resource.queue))
    with worker.request() as turn:
        yield turn
        yield env.timeout(plan.prefill[0].cost.prefill_s(prompt - 1))
    size = plan.handoff.bytes_of(min(prompt, plan.prefill[0].chunk_tokens))
    yield env.timeout(plan.handoff.base_s + size / plan.handoff.convert_bytes_s + size / plan.prefill[0].nic_bytes_s)
    target = min(decode, key=lambda one: len(one.running) + len(one.waiting))
    target.put(request, trace.output_tokens[request])
