"""Transfers between network interfaces that share their bandwidth equally among the flows of the moment."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float, Callable[[float, "Flow"], None], "Flow"], None]


class Nic:
    """One direction of one worker's interface."""

    __slots__ = ("bytes_s", "flows")

    def __init__(self, bytes_s: float) -> None:
        self.bytes_s = bytes_s
        self.flows: set[Flow] = set()


class Flow:
    """Bytes under way. ``due_s`` is the time at which it will be done at the present rate."""

    __slots__ = ("due_s", "left", "number", "rate", "since_s", "source", "target", "then")

    def __init__(self, number: int, source: Nic, target: Nic, left: float, then: Callable[[float], None]) -> None:
        self.number, self.source, self.target, self.left, self.then = number, source, target, left, then
        self.rate = self.since_s = 0.0
        self.due_s = math.inf


class Links:
    """Starts flows and says, through ``schedule``, when each is done; a flow's share changes as others come and go."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._number = 0

    def start(self, now: float, source: Nic, target: Nic, size: float, then: Callable[[float], None]) -> None:
        """Moves ``size`` bytes from ``source`` to ``target`` and calls ``then`` with the time when they are there."""
        rate = min(source.bytes_s, target.bytes_s)
        if size <= 0.0 or rate == math.inf:
            then(now)
            return
        self._number += 1
        flow = Flow(self._number, source, target, size, then)
        flow.since_s = now
        source.flows.add(flow)
        target.flows.add(flow)
        self._share(now, source, target)

    def _share(self, now: float, source: Nic, target: Nic) -> None:
        if not (touched := source.flows | target.flows):
            return
        for flow in sorted(touched, key=_by_number) if len(touched) > 1 else touched:
            rate = min(flow.source.bytes_s / len(flow.source.flows), flow.target.bytes_s / len(flow.target.flows))
            if rate != flow.rate:
                flow.left = max(0.0, flow.left - flow.rate * (now - flow.since_s))
                flow.since_s, flow.rate = now, rate
                flow.due_s = now + flow.left / rate
                self._schedule(flow.due_s, self._done, flow)

    def _done(self, now: float, flow: Flow) -> None:
        if now != flow.due_s:
            return  # its rate has changed since this was scheduled
        flow.due_s = math.inf
        flow.source.flows.discard(flow)
        flow.target.flows.discard(flow)
        self._share(now, flow.source, flow.target)
        flow.then(now)


def _by_number(flow: Flow) -> int:
    return flow.number
