"""One request's life: placed, handed over or not, decoded, recorded; and what happens when a part of it dies.

generate --place--> aggregated:     D reads and decodes
                    disaggregated:  P reads -> KV lands at D -> D decodes
                                      P lost, KV in doubt, deadline -> D reads it itself (counted)
D lost before the first token -> placed again, without D;  after it -> WorkerLost in the stream
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec

from diptych.admission import Door
from diptych.config import FleetSettings
from diptych.errors import ContextExceeded, DeadlineExceeded, DiptychError, HandoffError, WorkerError, WorkerLost
from diptych.fleet import messages as m
from diptych.fleet.giveback import GiveBack
from diptych.fleet.handover import HandedOver, hand_over
from diptych.fleet.peer import Mailbox, Peer
from diptych.models.chat import ChatFormat
from diptych.recording import Records, Timeline
from diptych.routing.admission import Admission
from diptych.routing.placement import Placement
from diptych.routing.router import Router, Way
from diptych.types import Request, RequestRecord, TokenChunk

log = logging.getLogger("diptych.service")

STEPS_PER_OBSERVATION = 8
OBSERVATION_S = 0.25


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model behind the gateway: what clients may call it, and its text format. ``created`` is in Unix seconds."""

    id: str
    aliases: tuple[str, ...]
    context_tokens: int
    created: int
    chat: ChatFormat


class Service:
    """Serves requests over ``peers`` as ``router`` places them. One per gateway process."""

    def __init__(
        self, settings: FleetSettings, router: Router, peers: Sequence[Peer], models: Sequence[ServedModel] = ()
    ) -> None:
        self.settings = settings
        self.router = router
        self.peers = {peer.worker: peer for peer in peers}
        self.history = Records()
        self.door = Door(
            Admission(lambda: router.room(settings.routing.ahead), settings.routing.reserved_slots),
            settings.deadlines.queue_s,
        )
        self._models = models
        self.recomputed: Counter[str] = Counter()
        self.returned = GiveBack(router.keeps)

    async def generate(self, request: Request, only: Way | None = None) -> AsyncGenerator[TokenChunk, None]:
        """The tokens of one request, placed by the router or where ``only`` says. Closing it frees all it holds.

        Raises RequestError before the first chunk when it cannot be served, WorkerError when it fails.
        """
        self._check(request)
        timeline = self.history.open(request)
        failed: set[str] = set()
        try:
            await self.door.enter(request)
            while True:
                placement = self.router.place(request, without=failed, only=only)
                timeline.placed(placement, request)
                attempt = self._attempt(request, placement, timeline)
                try:
                    async for chunk in attempt:
                        yield chunk
                    return
                except WorkerLost as exc:
                    if timeline.first_at is not None:
                        lost = f"{placement.chosen.decode} was lost while it answered; send the request again"
                        raise WorkerLost(lost) from exc
                    log.warning("request %s goes elsewhere: %s", request.id, exc)
                    failed.add(placement.chosen.decode)
                finally:
                    await attempt.aclose()
        except DiptychError as exc:
            timeline.failed(exc)
            raise
        finally:
            self.door.leave(request)
            timeline.close()

    def _check(self, request: Request) -> None:
        room = self.context_tokens
        if len(request.prompt) + 1 > room:
            raise ContextExceeded(
                f"This model's maximum context length is {room} tokens, and the prompt has {len(request.prompt)}. "
                "Please reduce the length of the messages."
            )

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and output that every decode worker has room for."""
        return min(worker.ctx_per_request for worker in self.settings.decode)

    async def _attempt(
        self, request: Request, placement: Placement, timeline: Timeline
    ) -> AsyncGenerator[TokenChunk, None]:
        """The tokens by one placement. The router hears of its beginning and its end."""
        decode = self.peers[placement.chosen.decode]
        self.router.began(request, placement)
        box = decode.open(request.id)
        output: list[int] = []
        finished, handed = False, None
        try:
            handed = await self._read_elsewhere(request, placement, box, timeline)
            decode.send(m.Decode(request.id, request.prompt, request.sampling, handed.seal if handed else None))
            async for chunk in self._stream(request, decode.worker, box, timeline):
                output.extend(chunk.tokens)
                finished = chunk.finish is not None
                yield chunk
        finally:
            decode.forget(request.id, cancel=not finished)
            self.router.ended(request, placement, output)
            if finished and handed and self.settings.handoff.returns:
                self.returned.start(self.peers[handed.prefill], decode, request.id, (*request.prompt, *output[:-1]))

    async def _read_elsewhere(
        self, request: Request, placement: Placement, box: Mailbox, timeline: Timeline
    ) -> HandedOver | None:
        """The handoff of a disaggregated request; None when there is none, or when it failed and D must read."""
        chosen = placement.chosen
        if chosen.prefill is None:
            return None
        prefill, decode = self.peers[chosen.prefill], self.peers[chosen.decode]
        try:
            handed = await hand_over(prefill, decode, box, request.id, request.prompt, self.settings.deadlines)
        except (HandoffError, WorkerError) as exc:
            if not decode.alive:
                raise WorkerLost(f"{decode.worker} was lost") from exc
            self._give_up(request, decode, box, timeline, exc)
            return None
        timeline.handed_over(handed)
        self.router.read(chosen.prefill, request, handed.cached_tokens, handed.compute_ms / 1e3)
        return handed

    def _give_up(self, request: Request, decode: Peer, box: Mailbox, timeline: Timeline, error: DiptychError) -> None:
        """The handoff is off: its region is freed, and the reason counted."""
        decode.send(m.Cancel(request.id))
        box.clear()
        self._count(timeline, _reason(error))

    def _count(self, timeline: Timeline, reason: str) -> None:
        self.recomputed[reason] += 1
        timeline.recomputed(reason)

    async def _stream(
        self, request: Request, worker: str, box: Mailbox, timeline: Timeline
    ) -> AsyncGenerator[TokenChunk, None]:
        count, since, mark = 0, 0, time.monotonic()
        while True:
            message = await box.get()
            if not isinstance(message, m.Tokens):
                continue  # an Offered that crossed with our Cancel
            chunk = message.chunk
            if chunk.prepared is not None:
                self._prepared(request, worker, message, timeline)
                mark = time.monotonic()
            elif not chunk.logprobs:
                chunk = box.more_tokens(chunk)
            count += len(chunk.tokens)
            since += len(chunk.tokens) if chunk.prepared is None else 0
            timeline.tokens(count, chunk)
            yield chunk
            if chunk.finish is not None:
                return
            if since >= STEPS_PER_OBSERVATION and (now := time.monotonic()) - mark >= OBSERVATION_S:
                self.router.stepped(worker, request.id, since, now - mark)
                since, mark = 0, now

    def _prepared(self, request: Request, worker: str, message: m.Tokens, timeline: Timeline) -> None:
        """The first chunk: what the engine confirms is what the record says."""
        prepared = message.chunk.prepared
        assert prepared is not None
        if message.recomputed is not None:
            self._count(timeline, message.recomputed)
        timeline.prepared(prepared)
        self.router.first_token(worker, request.id)
        if prepared.kv_tokens == 0:
            new = len(request.prompt) - prepared.cached_tokens
            self.router.read_alone(worker, new, prepared.cached_tokens, prepared.prefill_ms / 1e3)

    def satisfied(self, request_id: str) -> None:
        """The client needs no more tokens of this request; closing its generator is then no cancellation."""
        record = self.history.get(request_id)
        if record is not None:
            record.status, record.finish = "finished", "stop"

    def record(self, request_id: str) -> RequestRecord | None:
        """What happened to a request, or None when it is not known (any more)."""
        return self.history.get(request_id)

    def records(self, limit: int) -> list[RequestRecord]:
        """The latest records, newest first."""
        return self.history.latest(limit)

    def models(self) -> Sequence[ServedModel]:
        """The models that clients may name."""
        return self._models

    def health(self) -> dict[str, Any]:
        """``status`` "ok" when requests can be served, and what each worker is doing."""
        serving = any(view.alive for view in self.router.decode.values())
        return {
            "status": "ok" if serving else "unavailable",
            "workers": {name: self._worker_health(peer) for name, peer in self.peers.items()},
            "pairs": [f"{prefill} -> {decode}" for prefill, decode in self.router.links],
            "recomputed": dict(self.recomputed),
            "returned": dict(self.returned.counts),
            "waiting": self.door.admission.waiting,
        }

    def _worker_health(self, peer: Peer) -> dict[str, Any]:
        welcome = peer.welcome
        if welcome is None:
            return {"alive": False}
        about = welcome.description
        return {"alive": True, "pid": welcome.pid, "role": welcome.role, "engine": about.engine, "build": about.build}

    async def close(self) -> None:
        """Leaves the workers; they free what was ours."""
        await self.returned.close()
        await asyncio.gather(*(peer.close() for peer in self.peers.values()))


def _reason(error: DiptychError) -> str:
    """The label under which a handoff that came to nothing is counted."""
    if isinstance(error, HandoffError):
        return error.reason
    if isinstance(error, DeadlineExceeded):
        return "deadline"
    return "prefill_lost" if isinstance(error, WorkerLost) else "prefill_failed"
