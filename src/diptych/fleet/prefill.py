"""The prefill worker: one engine thread that computes chunks in turn, and the loop that talks.

loop:    on_message -> Job -> open (executor) ---------------------> seal (executor) -> Sealed -> kept for a while
engine:                         next_turn -> one chunk -> ... -> last chunk ^
Whatever may wait for another machine (greeting it, the end of a delivery) happens in the executor: neither the loop
nor the engine waits for a connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from diptych.config import Deadlines, HandoffSettings, PrefillSettings
from diptych.engines.protocol import KeepsKV, KVSink, PrefillEngine
from diptych.errors import HandoffError, TransportLost, WorkerLost
from diptych.fleet import messages as m
from diptych.fleet.endpoint import Endpoint
from diptych.fleet.kept import Keeper, KeptKV, Key, Remembering
from diptych.fleet.lifeline import give_back_memory
from diptych.fleet.taken_back import TakenBack
from diptych.fleet.transports import Doors, Senders
from diptych.fleet.turns import next_turn
from diptych.handoff.landing import Landing
from diptych.handoff.ticket import Ticket, verify
from diptych.handoff.writer import Writer

log = logging.getLogger("diptych.prefill")

Steps = Callable[[Sequence[int], KVSink], Generator[int, None, int]]

IDLE_S = 2.0
"""Seconds without work after which freed memory goes back to the system."""

FULL_S = 0.002
"""How soon to look again at a job whose receiver takes no more for now."""

WAITING = 64
"""Handoffs that may wait for the other side at once; a thread each, only while they do."""


class Job:
    """One prompt on its way: its writer, its steps (from the first turn on), and its times.

    ``begin`` makes the steps: the engine's, or those of ``kept`` KV. Where the KV is to be kept (``keep``), ``sink``
    remembers it.
    """

    writer: Writer

    def __init__(self, key: Key, prompt: tuple[int, ...], begin: Steps, kept: KeptKV | None, *, keep: bool) -> None:
        self.key = key
        self.prompt = prompt
        self.begin = begin
        self.kept = kept
        self.keep = keep
        self.sink: Remembering | None = None
        self.steps: Generator[int, None, int] | None = None
        self.added_s = time.monotonic()
        self.first_s = 0.0
        self.compute_s = 0.0
        self.done = 0
        self.cancelled = False

    @property
    def remaining(self) -> int:
        return len(self.prompt) - self.done

    @property
    def started(self) -> bool:
        return self.steps is not None

    @property
    def ready(self) -> bool:
        return self.writer.ready

    def told(self, error: Exception) -> Exception:
        """``error`` as the service is told: a receiver that is lost is not this worker."""
        lost = isinstance(error, WorkerLost) and error is self.writer.error
        return TransportLost(str(error)) if lost else error


class PrefillWorker:
    """Serves one engine at ``address``. Everything but :meth:`_compute` runs on the event loop."""

    def __init__(
        self,
        engine: PrefillEngine,
        settings: PrefillSettings,
        deadlines: Deadlines,
        secret: bytes,
        handoff: HandoffSettings | None = None,
        returns: Landing | None = None,
    ) -> None:
        """``returns`` is where answers' KV may land, if any may. Raises ConfigError where a transport cannot be had."""
        handoff = handoff or HandoffSettings()
        names = settings.transports or handoff.transports
        self._engine = engine
        self._settings = settings
        self._deadlines = deadlines
        self._secret = secret
        self._welcome = m.Welcome(
            settings.id, "prefill", uuid.uuid4().hex, engine.describe(), os.getpid(), socket.gethostname(), names
        )
        self._opening: set[Job] = set()
        self._jobs: set[Job] = set()
        self._sealing: set[Job] = set()
        self._keeper = Keeper(settings.keep_mb << 20, deadlines.kept_s)
        self._senders = Senders(names, secret, handoff.fault)
        self._waiting = ThreadPoolExecutor(WAITING, thread_name_prefix="handoff-wait")
        self._taken = self._takes_back(returns, names) if returns is not None else None
        self._errands: deque[Callable[[], None]] = deque()
        self._work = threading.Condition()
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    def _takes_back(self, landing: Landing, names: Sequence[str]) -> TakenBack | None:
        if not isinstance(self._engine, KeepsKV):
            landing.close()
            return None
        doors, form = Doors(landing, names, self._secret), self._welcome.description.form
        return TakenBack(self._engine, form, landing, doors, self._secret, self._run_errand, self._post)

    def _run_errand(self, errand: Callable[[], None]) -> None:
        with self._work:
            self._errands.append(errand)
            self._work.notify()

    async def serve(self, address: str, stop: asyncio.Event) -> None:
        """Runs until ``stop``."""
        self._loop = asyncio.get_running_loop()
        self._endpoint = Endpoint(address, self, self._deadlines)
        thread = threading.Thread(target=self._compute, name="engine")
        thread.start()
        expiry = asyncio.create_task(self._expire())
        try:
            await stop.wait()
        finally:
            expiry.cancel()
            with self._work:
                self._closing = True
                self._work.notify()
            await asyncio.to_thread(thread.join)
            self._endpoint.close()
            await asyncio.to_thread(self._waiting.shutdown)
            self._senders.close()
            if self._taken is not None:
                self._taken.close()

    def welcome(self) -> m.Welcome:
        return self._welcome

    def on_message(self, client: bytes, message: m.ToWorker) -> None:
        if isinstance(message, m.Prefill | m.Again):
            self._accept(client, message)
        elif isinstance(message, m.TakeBack | m.Keep):
            self._take_back((client, message.id), message)
        elif isinstance(message, m.Cancel):
            self._cancel((client, message.id))
            self._keeper.release((client, message.id))

    def _take_back(self, key: Key, message: m.TakeBack | m.Keep) -> None:
        try:
            if self._taken is None:
                self._endpoint.send(key[0], m.Wanted(message.id, b"", 0, 0))
            elif isinstance(message, m.Keep):
                self._taken.keep(key, message)
            else:
                self._endpoint.send(key[0], self._taken.want(key, message))
        except HandoffError as exc:
            self._endpoint.send(key[0], m.Failed.of(message.id, exc))

    def on_client_lost(self, client: bytes) -> None:
        if self._taken is not None:
            self._taken.lost(client)
        for key in {job.key for job in self._all() if job.key[0] == client}:
            self._cancel(key)
        self._keeper.lost(client)

    def _all(self) -> tuple[Job, ...]:
        return (*self._jobs, *self._opening, *self._sealing)

    def _accept(self, client: bytes, message: m.Prefill | m.Again) -> None:
        try:
            job = self._job((client, message.id), message)
            ticket = verify(message.ticket, self._secret, time.time())
            if self._senders.waits(ticket):
                self._spawn(self._open(job, ticket))
                return
            job.writer = self._writer(ticket)
        except HandoffError as exc:
            log.warning("refused: %s", exc)
            self._endpoint.send(client, m.Failed.of(message.id, exc))
            return
        self._add(job)

    async def _open(self, job: Job, ticket: Ticket) -> None:
        self._opening.add(job)
        try:
            job.writer = await self._loop.run_in_executor(self._waiting, self._writer, ticket)
        except Exception as exc:  # noqa: BLE001  # whatever a transfer library raises ends this job and no other
            self._endpoint.send(job.key[0], m.Failed.of(job.key[1], exc))
        else:
            self._add(job)  # where it was cancelled meanwhile, the engine thread ends it
        finally:
            self._opening.discard(job)

    def _writer(self, ticket: Ticket) -> Writer:
        return self._senders.open_writer(ticket, self._welcome.description.form)

    def _add(self, job: Job) -> None:
        with self._work:
            self._jobs.add(job)
            self._work.notify()

    def _job(self, key: Key, message: m.Prefill | m.Again) -> Job:
        """Raises StaleWrite: what was kept is gone."""
        if isinstance(message, m.Again):
            kept = self._keeper.get((key[0], message.kept))
            return Job(key, message.prompt, kept.steps, kept, keep=False)
        keep = message.keep and self._settings.keep_mb > 0
        return Job(key, message.prompt, self._engine.prefill, None, keep=keep)

    def _cancel(self, key: Key) -> None:
        if self._taken is not None:
            self._taken.drop(key)
        with self._work:
            for job in self._all():
                job.cancelled |= job.key == key
            self._work.notify()

    def _compute(self) -> None:
        """The engine thread: one chunk of one job at a time, until closing."""
        while (job := self._take()) is not None:
            if not isinstance(job, Job):
                job()
                continue
            try:
                self._step(job)
            except Exception as exc:  # noqa: BLE001  # whatever the engine raises ends this job and no other
                self._end(job, exc)
        for job in list(self._jobs):
            self._end(job, None)
        self._engine.close()

    def _take(self) -> Job | Callable[[], None] | None:
        """What is next: an errand (they are short), a job that has a turn; None when closing."""
        trimmed = False
        with self._work:
            while not self._closing:
                if self._errands:
                    return self._errands.popleft()
                over = next((job for job in self._jobs if job.cancelled), None)
                job = over or next_turn(self._jobs, time.monotonic(), self._settings.active_prompts)
                if job is not None:
                    return job
                idle = not self._work.wait(FULL_S if self._jobs else IDLE_S)
                if idle and not self._jobs and not trimmed:
                    trimmed = give_back_memory()
            return None

    def _step(self, job: Job) -> None:
        if job.cancelled:
            self._end(job, None)
            return
        began = time.monotonic()
        if job.steps is None:
            job.first_s = began
            job.sink = Remembering(job.writer) if job.keep else None
            job.steps = job.begin(job.prompt, job.sink or job.writer)
        try:
            job.done = next(job.steps)
        except StopIteration as end:
            job.compute_s += time.monotonic() - began
            self._finish(job, end.value)
            return
        job.compute_s += time.monotonic() - began

    def _end(self, job: Job, error: Exception | None) -> None:
        """Drops a job that will not be sealed."""
        if job.steps is not None:
            job.steps.close()
        with self._work:
            self._jobs.discard(job)
        told = None if error is None else job.told(error)  # before giving up becomes the writer's error
        self._waiting.submit(job.writer.abort)
        if told is not None:
            self._post(job.key, m.Failed.of(job.key[1], told))

    def _finish(self, job: Job, cached_tokens: int) -> None:
        with self._work:
            self._jobs.discard(job)
            self._sealing.add(job)
        self._loop.call_soon_threadsafe(lambda: self._spawn(self._seal(job, cached_tokens)))

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._keeper.expire(time.monotonic())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _seal(self, job: Job, cached_tokens: int) -> None:
        began = time.monotonic()
        try:
            seal = await self._loop.run_in_executor(self._waiting, job.writer.seal)
            if job.kept is not None:
                job.kept.check(job.writer.ticket, seal)
        except Exception as exc:  # noqa: BLE001  # whatever a transfer library raises ends this job and no other
            self._endpoint.send(job.key[0], m.Failed.of(job.key[1], job.told(exc)))
            return
        finally:
            self._sealing.discard(job)
        if job.sink is not None and not job.cancelled:
            kept = KeptKV(job.prompt, job.sink.chunks, job.writer.ticket, seal)
            self._keeper.keep(job.key, kept, time.monotonic())
        sealed = m.Sealed(
            id=job.key[1],
            seal=seal,
            cached_tokens=cached_tokens,
            queue_ms=(job.first_s - job.added_s) * 1e3,
            prefill_ms=(began - job.first_s) * 1e3,
            compute_ms=job.compute_s * 1e3,
            convert_ms=job.writer.timing.convert_ms,
            tail_ms=(time.monotonic() - began) * 1e3,
        )
        self._endpoint.send(job.key[0], sealed)

    def _post(self, key: Key, message: m.Answer) -> None:
        self._loop.call_soon_threadsafe(self._endpoint.send, key[0], message)
