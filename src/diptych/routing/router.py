"""The live router: what is in flight where, what each worker holds and costs, and a placement for each request.

No I/O and no clock: the service tells it what happened. The decision itself is :func:`placement.place`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from diptych.errors import WorkerLost
from diptych.routing.learned import LearnedCost
from diptych.routing.placement import DecodeState, Demand, Fleet, Link, Links, Placement, PrefillState, place
from diptych.routing.remembered import Remembered, Tokens
from diptych.types import Request

TYPICAL_OUTPUT = 128.0
FOLLOW = 0.1


class Way(msgspec.Struct, frozen=True):
    """A placement asked for by name, for benchmarks and start-up; ``prefill`` None is decode alone."""

    decode: str
    prefill: str | None


class Flying(msgspec.Struct):
    """A request in flight on a decode worker: the tokens in its context so far, and whether it decodes yet."""

    context: int
    decoding: bool = False


class PrefillView:
    """What the router knows of a prefill worker. ``cores`` names what it computes on; an empty name is its own."""

    def __init__(self, cost: LearnedCost, cache_tokens: int, cores: str = "") -> None:
        self.cost = cost
        self.cores = cores
        self.alive = True
        self.held = Remembered(256, cache_tokens)
        self.reading_s: dict[str, float] = {}

    def queue_s(self, own_s: float) -> float:
        """Seconds until our chunks are through beside the others': shorter prompts go first, longer ones share."""
        return sum(min(other_s, own_s) for other_s in self.reading_s.values())


class DecodeView:
    """What the router knows of a decode worker."""

    def __init__(self, cost: LearnedCost, slots: int, capacity: int, cores: str = "") -> None:
        self.cost = cost
        self.cores = cores
        self.alive = True
        self.slots = slots
        self.held = Remembered(slots, capacity)
        self.flying: dict[str, Flying] = {}

    @property
    def batch(self) -> int:
        return sum(flight.decoding for flight in self.flying.values())

    @property
    def context_tokens(self) -> int:
        return sum(flight.context for flight in self.flying.values() if flight.decoding)

    def wait_s(self, typical_output: float) -> float:
        """Seconds until a slot is free, were every stream of typical length and half done."""
        ahead = len(self.flying) - self.slots + 1
        if ahead <= 0:
            return 0.0
        step_s = self.cost.decode_s(self.slots, self.context_tokens)
        return ahead / self.slots * step_s * typical_output / 2


class Router:
    """Views by worker id; ``links`` are the pairs that passed qualification."""

    def __init__(self, mode: str) -> None:
        self.prefill: dict[str, PrefillView] = {}
        self.decode: dict[str, DecodeView] = {}
        self.links: dict[tuple[str, str], Link] = {}
        self.reserved: set[str] = set()
        """Workers that serve only requests that ask for them by name."""
        self._mode = mode
        self._typical_output = TYPICAL_OUTPUT

    def room(self, ahead: int) -> int:
        """Requests that the fleet takes at once: a slot each, and ``ahead`` that are read meanwhile. 0: none is up."""
        slots = sum(view.slots for view in self.decode.values() if view.alive)
        return slots + ahead if slots else 0

    def place(self, request: Request, *, without: Iterable[str] = (), only: Way | None = None) -> Placement:
        """Where to serve the request: ``only`` there, and never on ``without``, workers that just failed it.

        Raises WorkerLost when no worker is left.
        """
        try:
            return place(self._demand(request), self._fleet(request, set(without), only))
        except LookupError:
            raise WorkerLost("no decode worker is running; try again in a few seconds") from None

    def _fleet(self, request: Request, without: set[str], only: Way | None) -> Fleet:
        tokens = np.asarray(request.prompt, np.int32)
        prefill = {i: v for i, v in self.prefill.items() if v.alive and i not in without}
        decode = {i: v for i, v in self.decode.items() if v.alive and i not in without}
        links = self.links
        if only is not None:
            prefill = {i: v for i, v in prefill.items() if i == only.prefill}
            decode = {i: v for i, v in decode.items() if i == only.decode}
            links = {key: link for key, link in links.items() if key == (only.prefill, only.decode)}
        else:
            decode = {i: v for i, v in decode.items() if i not in self.reserved}
        alone = only is None or only.prefill is None
        return Fleet(
            tuple(self._prefill_state(name, view, tokens) for name, view in prefill.items()),
            tuple(self._decode_state(name, view, tokens, alone) for name, view in decode.items()),
            Links(links.values()),
        )

    def _demand(self, request: Request) -> Demand:
        sampling = request.sampling
        output = sampling.max_tokens if sampling.ignore_eos else min(sampling.max_tokens, int(self._typical_output))
        may = self._mode == "transparent" or request.latency == "optimized"
        return Demand(len(request.prompt), output, may)

    def _prefill_state(self, name: str, view: PrefillView, tokens: Tokens) -> PrefillState:
        cached = view.held.longest_prefix(tokens)
        own_s = view.cost.prefill_s(max(0, len(tokens) - cached), cached)
        return PrefillState(name, view.cost, view.queue_s(own_s), cached)

    def _decode_state(self, name: str, view: DecodeView, tokens: Tokens, alone: bool) -> DecodeState:
        cached = view.held.longest_prefix(tokens)
        wait_s = view.wait_s(self._typical_output)
        rivals = [p for p in self.prefill.values() if p.alive and p.cores and p.cores == view.cores]
        return DecodeState(
            name,
            view.cost,
            wait_s,
            view.batch,
            view.context_tokens,
            cached,
            alone,
            sum(sum(rival.reading_s.values()) for rival in rivals),
            sum(len(rival.reading_s) for rival in rivals),
        )

    def began(self, request: Request, placement: Placement) -> None:
        """The request goes where ``placement`` says."""
        chosen = placement.chosen
        self.decode[chosen.decode].flying[request.id] = Flying(len(request.prompt))
        if chosen.prefill is not None:
            view = self.prefill[chosen.prefill]
            cached = view.held.longest_prefix(np.asarray(request.prompt, np.int32))
            view.reading_s[request.id] = view.cost.prefill_s(len(request.prompt) - cached, cached)

    def read(self, worker: str, request: Request, cached: int, seconds: float) -> None:
        """A prefill worker has read the prompt in ``seconds`` of its own compute.

        Beside streams on the same cores it gives way, and would not be asked again until it had read as fast as alone.
        """
        view = self.prefill[worker]
        view.reading_s.pop(request.id, None)
        if not self._beside_streams(view.cores):
            view.cost.saw_prefill(len(request.prompt) - 1 - cached, cached, seconds)
        view.held.add(request.id, request.prompt)

    def _beside_streams(self, cores: str) -> bool:
        return bool(cores) and any(view.cores == cores and view.batch for view in self.decode.values())

    def keeps(self, worker: str, request_id: str, tokens: Sequence[int]) -> None:
        """A prefill worker holds these tokens now, although it did not read them all."""
        self.prefill[worker].held.add(request_id, tokens)

    def read_alone(self, worker: str, new: int, cached: int, seconds: float) -> None:
        """A decode worker has read a prompt itself."""
        self.decode[worker].cost.saw_prefill(new, cached, seconds)

    def first_token(self, worker: str, request_id: str) -> None:
        flight = self.decode[worker].flying.get(request_id)
        if flight is not None:
            flight.decoding = True

    def stepped(self, worker: str, request_id: str, tokens: int, seconds: float) -> None:
        """A stream got ``tokens`` tokens ``seconds`` after the ones before."""
        view = self.decode[worker]
        flight = view.flying.get(request_id)
        if flight is not None and flight.decoding:
            flight.context += tokens
            view.cost.saw_step(view.batch, view.context_tokens, seconds / tokens)

    def ended(self, request: Request, placement: Placement, output: list[int]) -> None:
        """The request is over, however it ended."""
        chosen = placement.chosen
        self.decode[chosen.decode].flying.pop(request.id, None)
        if chosen.prefill is not None:
            self.prefill[chosen.prefill].reading_s.pop(request.id, None)
        if output:
            self.decode[chosen.decode].held.add(request.id, (*request.prompt, *output))
            self._typical_output += FOLLOW * (len(output) - self._typical_output)

    def lost(self, worker: str) -> None:
        """The worker is gone: it gets no requests and holds nothing."""
        for view in (self.prefill.get(worker), self.decode.get(worker)):
            if view is not None:
                view.alive = False
                view.held.clear()

    def back(self, worker: str) -> None:
        """The worker answers again."""
        for view in (self.prefill.get(worker), self.decode.get(worker)):
            if view is not None:
                view.alive = True
