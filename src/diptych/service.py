"""One request's life: placed, handed over or not, decoded, recorded; and what happens when a part of it dies.

generate --place--> aggregated:     D reads and decodes
                    disaggregated:  P reads -> KV lands at D -> D decodes
                                      P lost, KV in doubt, deadline -> D reads it itself (counted)
D lost at any time -> placed again, on another one or on D when it is back; P's KV is handed over once more where it
                      is still kept, and the client's stream goes on where it was (continuity.py says how)
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec

from diptych.admission import Door
from diptych.config import FleetSettings
from diptych.continuity import seeded
from diptych.errors import ContextExceeded, DeadlineExceeded, DiptychError, HandoffError, WorkerError, WorkerLost
from diptych.fleet import messages as m
from diptych.fleet.giveback import GiveBack
from diptych.fleet.handover import HandedOver, hand_over
from diptych.fleet.peer import Mailbox, Peer
from diptych.life import Kept, Life
from diptych.models.chat import ChatFormat
from diptych.recording import Records, Timeline
from diptych.routing.admission import Admission
from diptych.routing.placement import Placement
from diptych.routing.router import Router, Way
from diptych.tally import Tally
from diptych.types import Request, RequestRecord, TokenChunk

log = logging.getLogger("diptych.service")

STEPS_PER_OBSERVATION = 8
OBSERVATION_S = 0.25
MOST_LOSSES = 3
"""Decode workers that one request may lose. It may be what kills them."""
AVOID_S = 1.0
"""How long a request stays away from a worker that says of itself that its engine is gone."""
LOOK_S = 0.05


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
        self.returned = GiveBack(router.keeps)
        self.tally = Tally()
        self._models = models
        self._draining = False

    def drain(self) -> None:
        """The gateway is about to end, and its workers may be too: nobody waits for one to come back any more."""
        self._draining = True

    @property
    def recomputed(self) -> Counter[str]:
        """Handoffs that ended in a read by the decode engine itself, by reason."""
        return self.tally.recomputed

    async def generate(self, request: Request, only: Way | None = None) -> AsyncGenerator[TokenChunk, None]:
        """The tokens of one request, placed by the router or where ``only`` says. Closing it frees all it holds.

        Raises RequestError before the first chunk when it cannot be served, WorkerError when it fails.
        """
        self._check(request)
        request = seeded(request, secrets.randbits(32))
        life = Life(request, self.settings.continuity.replay_tokens)
        timeline = self.history.open(request)
        try:
            await self.door.enter(request)
            while not life.course.finished:
                placement = await self._placed(life, only)
                timeline.placed(placement, request)
                attempt = self._attempt(life, placement, timeline)
                try:
                    async for chunk in attempt:
                        yield chunk
                except WorkerLost as exc:
                    self._lost(life, placement.chosen.decode, exc)
                    if last := self._ending(life):
                        timeline.tokens(len(life.course.sent), last)
                        yield last
                finally:
                    await attempt.aclose()
        except DiptychError as exc:
            timeline.failed(exc)
            raise
        finally:
            self._let_go(life)
            self.door.leave(request)
            timeline.close()

    async def _placed(self, life: Life, only: Way | None) -> Placement:
        """A placement. A request that lost its decode worker waits for another one, or for that one, to be there."""
        patient_until = time.monotonic() + (self.settings.deadlines.resume_s if life.losses else 0.0)
        while True:
            now = time.monotonic()
            try:
                without = [worker for worker, until in life.avoid.items() if now < until]
                return self.router.place(life.request, without=without, only=only)
            except WorkerLost:
                if now >= patient_until or self._draining:
                    raise
            await asyncio.sleep(LOOK_S)

    def _lost(self, life: Life, worker: str, error: WorkerLost) -> None:
        """Its decode worker is gone. Raises WorkerLost when the request has lost enough of them."""
        life.losses += 1
        if self.peers[worker].alive:
            life.avoid[worker] = time.monotonic() + AVOID_S
        if life.losses >= MOST_LOSSES:
            raise WorkerLost(f"{worker} was lost, after others, while it answered; send the request again") from error
        log.warning("request %s goes on elsewhere: %s", life.request.id, error)

    def _ending(self, life: Life) -> TokenChunk | None:
        """The last chunk of a stream whose worker died between its last token and saying so."""
        if life.decode is None or not life.course.sent:
            return None
        room = life.decode.description.context_tokens - len(life.request.prompt)
        ends = self._models[0].chat.end_tokens if self._models else frozenset()
        finish = life.course.all_but_said(room, frozenset(ends))
        return None if finish is None else TokenChunk((), (), finish)

    def _check(self, request: Request) -> None:
        room = self.context_tokens
        if len(request.prompt) + 1 > room:
            raise ContextExceeded(
                f"This model's maximum context length is {room} tokens, and the prompt has {len(request.prompt)}. "
                "Please reduce the length of the messages."
            )

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and output that the models read and every decode worker has room for."""
        slots = min(worker.ctx_per_request for worker in self.settings.decode)
        return min([slots, *(model.context_tokens for model in self._models)])

    async def _attempt(self, life: Life, placement: Placement, timeline: Timeline) -> AsyncGenerator[TokenChunk, None]:
        """What the client has not got yet, by one placement. The router hears of its beginning and its end.

        Ends without a finish where a replay has diverged.
        """
        request, course = life.request, life.course
        decode = self.peers[placement.chosen.decode]
        attempt = life.next_id()
        box = decode.open(attempt)
        life.began(decode.welcome)
        self.router.began(request, placement)
        handed = None
        try:
            handed = await self._read_elsewhere(life, attempt, placement, box, timeline)
            kept_or_own = handed is None or life.again
            leg = course.leg(same_kv=kept_or_own and life.first_kv == life.kv(landed=handed is not None))
            timeline.continues(course.continuity)
            box.check()
            seal = handed.seal if handed else None
            decode.send(m.Decode(attempt, request.prompt, leg.sampling, seal, leg.given))
            async for chunk in self._stream(life, decode.worker, box, timeline):
                said = course.take(chunk)
                if said is not None:
                    timeline.tokens(len(course.sent), said)
                    self._out(life)
                    yield said
                elif course.diverged:
                    timeline.continues(course.continuity)
                    return
        finally:
            life.ended("cancelled" if decode.alive else "decode_lost")
            decode.forget(attempt, cancel=not course.finished)
            self.router.ended(request, placement, course.sent if course.finished or decode.alive else [])
            if course.finished and handed and self.settings.handoff.returns:
                conversation = (*request.prompt, *course.sent[:-1])
                self.returned.start(self.peers[handed.prefill], decode, request.id, conversation)

    async def _read_elsewhere(
        self, life: Life, attempt: str, placement: Placement, box: Mailbox, timeline: Timeline
    ) -> HandedOver | None:
        """The KV of the prompt, landed: what is kept of it, else what a prefill worker computes where the placement
        says so. None when there is none, or when the handoff failed and D must read."""
        chosen, request = placement.chosen, life.request
        kept = self._usable(life, chosen.decode)
        source = kept.prefill if kept else chosen.prefill
        if source is None:
            return None
        prefill, decode = self.peers[source], self.peers[chosen.decode]
        keep = self.settings.continuity.keep_tokens > 0 and not life.course.sent  # later KV is not what was begun with
        kept_id = kept.id if kept else None
        life.handoff, life.again = self.tally.begin(), kept is not None
        try:
            handed = await hand_over(
                prefill, decode, box, attempt, request.prompt, self.settings.deadlines, keep=keep, kept=kept_id
            )
        except (HandoffError, WorkerError) as exc:
            self._let_go(life)
            box.check()
            self._give_up(life, attempt, decode, box, timeline, exc)
            return None
        timeline.handed_over(handed)
        if kept is None:
            self.router.read(source, request, handed.cached_tokens, handed.compute_ms / 1e3)
            if keep and prefill.welcome is not None:
                self._let_go(life)
                life.kept = Kept(source, prefill.welcome.instance, attempt)
        return handed

    def _usable(self, life: Life, decode: str) -> Kept | None:
        """What is kept, where its holder still lives and may hand over to ``decode``, and it was what was used."""
        kept = life.kept
        if kept is None or (life.first_kv or "landed").startswith("own"):
            return None
        welcome = self.peers[kept.prefill].welcome
        lives = welcome is not None and welcome.instance == kept.instance
        return kept if lives and (kept.prefill, decode) in self.router.links else None

    def _out(self, life: Life) -> None:
        """Tokens went out: from a certain number on the prompt's KV need not be kept."""
        if life.kept is not None and len(life.course.sent) >= self.settings.continuity.keep_tokens:
            self._let_go(life)

    def _let_go(self, life: Life) -> None:
        kept, life.kept = life.kept, None
        if kept is not None:
            self.peers[kept.prefill].cancel(kept.id)

    def _give_up(
        self, life: Life, attempt: str, decode: Peer, box: Mailbox, timeline: Timeline, error: DiptychError
    ) -> None:
        """The handoff is off: its region is freed, and the reason counted."""
        decode.send(m.Cancel(attempt))
        box.clear()
        self._count(life, timeline, _reason(error))

    def _count(self, life: Life, timeline: Timeline, reason: str) -> None:
        if life.handoff is not None:
            life.handoff.ended("recomputed", reason)
        timeline.recomputed(reason)

    async def _stream(
        self, life: Life, worker: str, box: Mailbox, timeline: Timeline
    ) -> AsyncGenerator[TokenChunk, None]:
        since, mark = 0, time.monotonic()
        while True:
            message = await box.get()
            if not isinstance(message, m.Tokens):
                continue  # an Offered that crossed with our Cancel
            chunk = message.chunk
            if chunk.prepared is not None:
                self._prepared(life, worker, message, timeline)
                mark = time.monotonic()
            elif not chunk.logprobs:
                chunk = box.more_tokens(chunk)
            since += len(chunk.tokens) if chunk.prepared is None else 0
            yield chunk
            if chunk.finish is not None:
                return
            if since >= STEPS_PER_OBSERVATION and (now := time.monotonic()) - mark >= OBSERVATION_S:
                self.router.stepped(worker, life.request.id, since, now - mark)
                since, mark = 0, now

    def _prepared(self, life: Life, worker: str, message: m.Tokens, timeline: Timeline) -> None:
        """The first chunk: what the engine confirms is what the record says."""
        prepared = message.chunk.prepared
        assert prepared is not None
        if message.recomputed is not None:
            self._count(life, timeline, message.recomputed)
            life.course.on_other_kv()
            timeline.continues(life.course.continuity)
        elif life.handoff is not None and prepared.kv_tokens:
            life.handoff.ended("admitted")
        mixed = prepared.kv_tokens == 0 and prepared.cached_tokens > 0  # who computed what a slot held is not known
        if mixed:
            life.course.on_other_kv()
            timeline.continues(life.course.continuity)
        life.first_kv = life.first_kv or ("own, cached" if mixed else life.kv(landed=prepared.kv_tokens > 0))
        timeline.prepared(prepared)
        self.router.first_token(worker, life.request.id)
        if prepared.kv_tokens == 0 and not life.course.sent:
            new = len(life.request.prompt) - prepared.cached_tokens
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
            "handoffs": self.tally.as_dict(),
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
