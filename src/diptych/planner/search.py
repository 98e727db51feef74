"""Evaluates fleets on all cores, remembers what it has evaluated, and ranks what it found."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import closing, contextmanager
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any, Literal

import msgspec

from diptych.fleet.lifeline import tie_to_parent
from diptych.planner.candidates import Candidate, cost_of, fluid_rps
from diptych.planner.goodput import Evaluation, evaluate
from diptych.planner.outcome import Objectives
from diptych.planner.traces import Trace

Ranking = Literal["dollar", "watt", "rack"]
RANKINGS: tuple[Ranking, ...] = ("dollar", "watt", "rack")
TICK_S = 0.2
"""How often a search says how far it is."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a search found. ``evaluations`` are in the order of goodput per dollar, best first."""

    model: str
    trace: str
    objectives: Objectives
    budget: float
    evaluations: tuple[Evaluation, ...]

    @property
    def met(self) -> bool:
        """Whether any fleet meets the objectives."""
        return any(e.max_goodput_rps > 0 for e in self.evaluations)

    def best(self, ranking: Ranking = "dollar", mode: str | None = None) -> Evaluation | None:
        """The best fleet by a ranking, of one mode if given; None when no fleet can be ranked by it."""
        able = [
            e for e in self.evaluations if e.max_goodput_rps > 0 and e.per(ranking) and mode in (None, e.candidate.mode)
        ]
        return max(able, key=lambda e: e.per(ranking) or 0.0, default=None)

    def nearest(self) -> Evaluation:
        """Where nothing meets the objectives: the fleet that comes nearest."""
        return max(self.evaluations, key=lambda e: e.run["attainment"])

    def unranked(self, ranking: Ranking) -> list[str]:
        """Why fleets are left out of a ranking, one line a kind of machine."""
        what = {"dollar": "price", "watt": "power", "rack": "rack units"}[ranking]
        machines = {side.machine for e in self.evaluations if e.per(ranking) is None for side in e.candidate.sides}
        known = {s.machine for e in self.evaluations if e.per(ranking) is not None for s in e.candidate.sides}
        return [f"{machine}: not ranked by {ranking}: {what} unknown" for machine in sorted(machines - known)]


class Memory:
    """Evaluations in a JSON-lines file, so that a search that was stopped goes on where it was."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, Evaluation] = {}
        if path is not None and path.exists():
            for line in path.read_bytes().splitlines():
                try:
                    key, found = msgspec.json.decode(line, type=tuple[str, Evaluation])
                except msgspec.DecodeError:
                    continue  # the line that was being written when the search was stopped
                self._known[key] = found

    def get(self, key: str) -> Evaluation | None:
        return self._known.get(key)

    def put(self, key: str, found: Evaluation) -> None:
        self._known[key] = found
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode((key, found)) + b"\n")


def search(
    candidates: Sequence[Candidate],
    trace: Trace,
    objectives: Objectives,
    *,
    memory: Path | None = None,
    jobs: int | None = None,
    done: Callable[[Evaluation], None] = lambda _: None,
    ran: Callable[[int], None] = lambda _: None,
) -> list[Evaluation]:
    """Every candidate evaluated, in their order. ``done`` hears of each when it is finished, ``ran`` now and then
    of the number of simulations so far. Stopped (KeyboardInterrupt), it leaves no process, and in ``memory`` all that
    was finished.
    """
    known, keys = Memory(memory), [_key(c, trace, objectives) for c in candidates]
    found: dict[str, Evaluation] = {}
    for key in keys:
        if (old := known.get(key)) is not None and key not in found:
            found[key] = old
            done(old)
    open_ = [(key, c) for key, c in zip(keys, candidates, strict=True) if key not in found]
    with closing(_evaluate_all(open_, trace, objectives, jobs, ran)) as evaluations:
        for key, evaluation in evaluations:
            found[key] = evaluation
            known.put(key, evaluation)
            done(evaluation)
    return [found[key] for key in keys]


def rank(model: str, trace: Trace, objectives: Objectives, budget: float, found: Sequence[Evaluation]) -> Plan:
    """The plan: by goodput per dollar, ties by the cheaper and then by name."""
    order = sorted(found, key=lambda e: (-(e.per("dollar") or 0.0), e.price_per_hour or 0.0, e.candidate.describe()))
    return Plan(model=model, trace=trace.name, objectives=objectives, budget=budget, evaluations=tuple(order))


def promising(
    candidates: Sequence[Candidate],
    trace: Trace,
    objectives: Objectives,
    most: int,
    price: Callable[[Candidate], float],
) -> list[Candidate]:
    """Of each kind (mode and chips), those that are among the ``most`` best by fluid rate per dollar of all that cost
    no more. So a larger budget only adds to what is simulated, and its best plan is never worse."""
    kinds: dict[tuple[str, ...], list[float]] = {}
    kept = []
    for candidate in sorted(candidates, key=lambda c: (price(c), c.describe())):
        kind = (candidate.mode, *(side.chip for side in candidate.sides))
        value = fluid_rps(candidate, trace, objectives) / price(candidate)
        cheaper = kinds.setdefault(kind, [])
        if sum(other > value for other in cheaper) < most:
            kept.append(candidate)
        cheaper.append(value)
    return kept


def _evaluate_all(
    work: Sequence[tuple[str, Candidate]],
    trace: Trace,
    objectives: Objectives,
    jobs: int | None,
    ran: Callable[[int], None],
) -> Generator[tuple[str, Evaluation], None, None]:
    """(key, evaluation) as they are finished; ``ran`` hears how many simulations that has taken so far."""
    if jobs == 1 or len(work) <= 1:
        counted = itertools.count(1)
        for key, candidate in work:
            yield key, evaluate(candidate, trace, objectives, lambda: ran(next(counted)))
        return
    context = multiprocessing.get_context("spawn")
    runs = context.Value("q", 0)
    with _pool(jobs, context, (os.getpid(), trace, objectives, runs)) as pool:
        waiting = {pool.submit(_evaluate_shared, candidate): key for key, candidate in work}
        while waiting:
            over, _ = wait(waiting, TICK_S, FIRST_COMPLETED)
            ran(runs.value)
            for future in over:
                yield waiting.pop(future), future.result()


@contextmanager
def _pool(jobs: int | None, context: SpawnContext, shared: _Shared) -> Iterator[ProcessPoolExecutor]:
    """Worker processes, which are ended when the block is, whatever they are at then."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, context, _begin, shared)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
            child.join()


_Shared = tuple[int, Trace, Objectives, Any]
_shared: list[_Shared] = []


def _begin(*shared: Any) -> None:
    """In a new worker: it ends with its parent, which alone decides what Ctrl-C means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tie_to_parent(shared[0])
    _shared[:] = [shared]


def _evaluate_shared(candidate: Candidate) -> Evaluation:
    _, trace, objectives, runs = _shared[0]

    def ran() -> None:
        with runs.get_lock():
            runs.value += 1

    return evaluate(candidate, trace, objectives, ran)


def _key(candidate: Candidate, trace: Trace, objectives: Objectives) -> str:
    """Names the candidate, the requests and the objectives, and the numbers behind the cost models."""
    digest = hashlib.blake2b(digest_size=16)
    costs = [cost_of(candidate, side) for side in candidate.sides]
    digest.update(msgspec.json.encode((candidate, objectives, costs, trace.block_tokens)))
    for column in (trace.arrival_s, trace.input_tokens, trace.output_tokens):
        digest.update(column.tobytes())
    digest.update(msgspec.json.encode(list(trace.blocks)))
    return digest.hexdigest()
