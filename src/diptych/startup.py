"""From running workers to a service: meet them, qualify every pair, measure what they cost.

    meet -> full qualification, unless its verdict is cached -> three short canaries, always -> two timed requests
A pair that fails is not linked, so no request is ever placed on it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from diptych.config import Deadlines, FleetSettings
from diptych.errors import ConfigError, HandoffError, WorkerError
from diptych.fleet import canary_prompts
from diptych.fleet.handover import transport_between
from diptych.fleet.messages import Welcome
from diptych.fleet.peer import Peer
from diptych.fleet.qualification import Cache, Measured, impossible, run_canaries
from diptych.fleet.verdict import Verdict, judge
from diptych.routing.learned import LearnedCost, fit_prefill
from diptych.routing.placement import Link
from diptych.routing.router import DecodeView, PrefillView, Router, Way
from diptych.service import ServedModel, Service
from diptych.types import Request, RequestRecord, Sampling

log = logging.getLogger("diptych.startup")

BATCH_SHARE = 0.5  # of a step's fixed time that each further sequence adds, until it has been observed
TIMED = ((48, 8), (288, 8))  # prompt and output tokens of the timed requests


class Progress(Protocol):
    """Who is told how far start-up is."""

    def phase(self, name: str, total: int) -> None: ...

    def advance(self) -> None: ...


class Silent:
    """Tells nobody."""

    def phase(self, name: str, total: int) -> None: ...

    def advance(self) -> None: ...


async def open_service(
    settings: FleetSettings,
    model: ServedModel,
    addresses: Mapping[str, str],
    cache: Cache,
    progress: Progress | None = None,
) -> Service:
    """A service that is ready. Raises DeadlineExceeded when a worker does not come up."""
    opening = _Opening(settings, model, addresses, cache, progress or Silent())
    try:
        return await opening.run()
    except BaseException:
        await opening.service.close()
        raise


class _Opening:
    def __init__(
        self,
        settings: FleetSettings,
        model: ServedModel,
        addresses: Mapping[str, str],
        cache: Cache,
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._chat = model.chat
        self._cache = cache
        self._progress = progress
        self._router = Router(settings.routing.mode)
        peers = [Peer(name, address, settings.deadlines, self._noticed) for name, address in addresses.items()]
        self.service = Service(settings, self._router, peers, (model,))
        self._met: dict[str, Welcome] = {}
        self._read: dict[str, list[tuple[int, float]]] = {}

    def _noticed(self) -> None:
        """A worker came or went. One that comes back as something else than it was is not used."""
        for name, peer in self.service.peers.items():
            known = self._met.get(name)
            if peer.welcome is None:
                self._router.lost(name)
            elif known is not None and peer.welcome.description == known.description:
                self._router.back(name)

    async def run(self) -> Service:
        self._progress.phase("starting the workers", len(self.service.peers))
        await asyncio.gather(*(self._meet(peer) for peer in self.service.peers.values()))
        for prefill in self._settings.prefill:
            for decode in self._settings.decode:
                await self._pair(self.service.peers[prefill.id], self.service.peers[decode.id])
        for prefill in self._settings.prefill:
            self._know_prefill(prefill.id, prefill.prefix_cache_mb)
        self._progress.phase("timing the decode workers", len(TIMED) * len(self._settings.decode))
        for decode in self._settings.decode:
            await self._know_decode(decode.id)
        return self.service

    async def _meet(self, peer: Peer) -> None:
        self._met[peer.worker] = await peer.ready(self._settings.deadlines.start_s)
        self._progress.advance()

    async def _pair(self, prefill: Peer, decode: Peer) -> None:
        """Links the pair if it is qualified and its canaries are still what they were."""
        try:
            transport = transport_between(self._met[prefill.worker], self._met[decode.worker])
            verdict = await self._qualified(prefill, decode)
            measured = await self._canaries(prefill, decode) if verdict.passed else []
        except (WorkerError, HandoffError, ConfigError) as exc:
            log.error("the pair %s -> %s is not used: %s", prefill.worker, decode.worker, exc)
            return
        log.info("the pair %s -> %s hands over by %s", prefill.worker, decode.worker, transport)
        again = judge([canary.outcome for canary in measured], least_agreement=0.0) if measured else verdict
        self._read[prefill.worker] = [(m.outcome.prompt_tokens - 1, m.prefill_s) for m in measured]
        if again.passed:
            self._router.links[prefill.worker, decode.worker] = Link(prefill.worker, decode.worker)
        else:
            failures = "; ".join(again.failures)
            log.error("the pair %s -> %s is not used: %s", prefill.worker, decode.worker, failures)

    async def _qualified(self, prefill: Peer, decode: Peer) -> Verdict:
        verdict = self._cache.get(self._met[prefill.worker], self._met[decode.worker])
        if verdict is None:
            prompts = canary_prompts.full_set(self._chat, self._context(prefill, decode))
            self._progress.phase(f"qualifying {prefill.worker} -> {decode.worker} (once)", len(prompts))
            verdict = await qualify(prefill, decode, prompts, self._settings.deadlines, self._progress.advance)
            if verdict.canaries:  # one that could not be run may have failed for a reason that passes
                self._cache.put(self._met[prefill.worker], self._met[decode.worker], verdict)
        return verdict

    def _context(self, prefill: Peer, decode: Peer) -> int:
        return min(self._met[peer.worker].description.context_tokens for peer in (prefill, decode))

    async def _canaries(self, prefill: Peer, decode: Peer) -> list[Measured]:
        prompts = canary_prompts.start_up_set(self._chat, self._context(prefill, decode))
        self._progress.phase(f"canaries {prefill.worker} -> {decode.worker}", len(prompts))
        return await run_canaries(prefill, decode, prompts, self._settings.deadlines, self._progress.advance)

    def _know_prefill(self, name: str, cache_mb: int) -> None:
        about = self._met[name].description
        cost = LearnedCost(fit_prefill(self._read.get(name) or [(1, 0.0)]), (0.0, 0.0, 0.0), 0)
        self._router.prefill[name] = PrefillView(
            cost, (cache_mb << 20) // about.form.bytes_per_token, self._cores(name)
        )

    async def _know_decode(self, name: str) -> None:
        """Two timed requests, alone: what reading a prompt and what a step at two contexts takes."""
        about = self._met[name].description
        capacity = about.slots * about.context_tokens
        free = LearnedCost((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0), capacity)
        self._router.decode[name] = DecodeView(free, about.slots, capacity, self._cores(name))
        records = [await self._timed(name, min(n, about.context_tokens - out), out) for n, out in TIMED]
        reading = [(record.prompt_tokens, record.parts_ms.prefill / 1e3) for record in records]
        steps = [(record.prompt_tokens, (record.itl_ms or 0.0) / 1e3) for record in records]
        cost = LearnedCost(fit_prefill(reading), _fit_step(steps), capacity)
        self._router.decode[name] = DecodeView(cost, about.slots, capacity, self._cores(name))

    def _cores(self, name: str) -> str:
        """What a worker computes on. Two that compute on one machine's CPU get in each other's way."""
        met = self._met[name]
        return met.host if met.description.device == "cpu" else ""

    async def _timed(self, decode: str, prompt_tokens: int, output_tokens: int) -> RequestRecord:
        prompt = canary_prompts.raw_canary(self._chat, prompt_tokens, 700 + prompt_tokens)
        sampling = Sampling(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
        request = Request(id=f"timed-{uuid.uuid4().hex}", model="", prompt=prompt, sampling=sampling)
        async for _ in self.service.generate(request, only=Way(decode, None)):
            pass
        self._progress.advance()
        record = self.service.record(request.id)
        assert record is not None
        return record


def _fit_step(steps: Sequence[tuple[int, float]]) -> tuple[float, float, float]:
    """(a, b, c) from (context tokens, seconds) of single streams; ``b`` is a guess until batches are observed."""
    (short, short_s), (long, long_s) = steps[0], steps[-1]
    per_token = max(0.0, (long_s - short_s) / (long - short)) if long > short else 0.0
    fixed = max(0.0, short_s - per_token * short)
    return fixed * (1 - BATCH_SHARE), fixed * BATCH_SHARE, per_token


async def qualify(
    prefill: Peer,
    decode: Peer,
    prompts: Sequence[Sequence[int]],
    deadlines: Deadlines,
    advance: Callable[[], None],
) -> Verdict:
    """The verdict on a pair over ``prompts``. Raises WorkerError when a worker fails meanwhile."""
    try:
        measured = await run_canaries(prefill, decode, prompts, deadlines, advance)
    except HandoffError as exc:
        return impossible(exc)
    return judge([canary.outcome for canary in measured])
