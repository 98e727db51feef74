"""The prefill worker: one engine thread that computes chunks in turn, and the loop that talks.

loop:    on_message -> Job -------------------------------> seal (executor) -> Sealed -> kept for a while
engine:            next_turn -> one chunk -> ... -> last chunk ^
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator, Sequence

from diptych.config import Deadlines, PrefillSettings
from diptych.engines.protocol import KVSink, PrefillEngine
from diptych.errors import HandoffError
from diptych.fleet import messages as m
from diptych.fleet.endpoint import Endpoint
from diptych.fleet.kept import Keeper, KeptKV, Key, Remembering
from diptych.fleet.lifeline import give_back_memory
from diptych.fleet.turns import next_turn
from diptych.handoff import transports
from diptych.handoff.ticket import verify
from diptych.handoff.writer import Writer

log = logging.getLogger("diptych.prefill")

Steps = Callable[[Sequence[int], KVSink], Generator[int, None, int]]

IDLE_S = 2.0
"""Seconds without work after which freed memory goes back to the system."""


class Job:
    """One prompt on its way: its writer, its steps (from the first turn on), and its times.

    ``begin`` makes the steps: the engine's, or those of ``kept`` KV. ``sink`` remembers what is to be kept.
    """

    def __init__(self, key: Key, prompt: tuple[int, ...], writer: Writer, begin: Steps) -> None:
        self.key = key
        self.prompt = prompt
        self.writer = writer
        self.begin = begin
        self.sink: Remembering | None = None
        self.kept: KeptKV | None = None
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


class PrefillWorker:
    """Serves one engine at ``address``. Everything but :meth:`_compute` runs on the event loop."""

    def __init__(self, engine: PrefillEngine, settings: PrefillSettings, deadlines: Deadlines, secret: bytes) -> None:
        self._engine = engine
        self._settings = settings
        self._deadlines = deadlines
        self._secret = secret
        self._welcome = m.Welcome(
            settings.id, "prefill", uuid.uuid4().hex, engine.describe(), os.getpid(), socket.gethostname()
        )
        self._jobs: dict[Key, Job] = {}
        self._sealing: dict[Key, Job] = {}
        self._keeper = Keeper(settings.keep_mb << 20, deadlines.kept_s)
        self._transports: dict[str, transports.Sender] = {}
        self._work = threading.Condition()
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()

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
            for transport in self._transports.values():
                transport.close()

    def welcome(self) -> m.Welcome:
        return self._welcome

    def on_message(self, client: bytes, message: m.ToWorker) -> None:
        if isinstance(message, m.Prefill | m.Again):
            self._accept(client, message)
        elif isinstance(message, m.Cancel):
            self._cancel((client, message.id))
            self._keeper.release((client, message.id))

    def on_client_lost(self, client: bytes) -> None:
        for key in [key for key in (*self._jobs, *self._sealing) if key[0] == client]:
            self._cancel(key)
        self._keeper.lost(client)

    def _accept(self, client: bytes, message: m.Prefill | m.Again) -> None:
        try:
            job = self._job((client, message.id), message)
        except HandoffError as exc:
            log.warning("refused: %s", exc)
            self._endpoint.send(client, m.Failed.of(message.id, exc))
            return
        with self._work:
            self._jobs[job.key] = job
            self._work.notify()

    def _job(self, key: Key, message: m.Prefill | m.Again) -> Job:
        """Raises HandoffError: the ticket is not in force, or what was kept is gone."""
        kept = self._keeper.get((key[0], message.kept)) if isinstance(message, m.Again) else None
        ticket = verify(message.ticket, self._secret, time.time())
        writer = self._transport(ticket.transport).open_writer(ticket, self._welcome.description.form)
        job = Job(key, message.prompt, writer, kept.steps if kept else self._engine.prefill)
        job.kept = kept
        if isinstance(message, m.Prefill) and message.keep and self._settings.keep_mb:
            job.sink = Remembering(writer)
        return job

    def _transport(self, name: str) -> transports.Sender:
        """One of a kind for all handoffs: it keeps what is mapped and connected."""
        if name not in self._transports:
            self._transports[name] = transports.load(name, self._secret)
        return self._transports[name]

    def _cancel(self, key: Key) -> None:
        with self._work:
            job = self._jobs.get(key) or self._sealing.get(key)
            if job is not None:
                job.cancelled = True
                self._work.notify()

    def _compute(self) -> None:
        """The engine thread: one chunk of one job at a time, until closing."""
        while (job := self._take()) is not None:
            try:
                self._step(job)
            except Exception as exc:  # noqa: BLE001  # whatever the engine raises ends this job and no other
                self._end(job, exc)
        for job in list(self._jobs.values()):
            self._end(job, None)
        self._engine.close()

    def _take(self) -> Job | None:
        trimmed = False
        with self._work:
            while not self._closing:
                jobs = self._jobs.values()
                over = next((job for job in jobs if job.cancelled), None)
                job = over or next_turn(jobs, time.monotonic(), self._settings.active_prompts)
                if job is not None:
                    return job
                if not self._work.wait(IDLE_S) and not trimmed:
                    trimmed = give_back_memory()
            return None

    def _step(self, job: Job) -> None:
        if job.cancelled:
            self._end(job, None)
            return
        began = time.monotonic()
        if job.steps is None:
            job.first_s = began
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
            self._jobs.pop(job.key, None)
        job.writer.abort()
        if error is not None:
            self._post(job.key, m.Failed.of(job.key[1], error))

    def _finish(self, job: Job, cached_tokens: int) -> None:
        with self._work:
            self._jobs.pop(job.key, None)
            self._sealing[job.key] = job
        self._loop.call_soon_threadsafe(self._start_seal, job, cached_tokens)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._keeper.expire(time.monotonic())

    def _start_seal(self, job: Job, cached_tokens: int) -> None:
        task = asyncio.create_task(self._seal(job, cached_tokens))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _seal(self, job: Job, cached_tokens: int) -> None:
        began = time.monotonic()
        try:
            seal = await asyncio.to_thread(job.writer.seal)
            if job.kept is not None:
                job.kept.check(job.writer.ticket, seal)
        except HandoffError as exc:
            self._endpoint.send(job.key[0], m.Failed.of(job.key[1], exc))
            return
        finally:
            job.writer.abort()
            self._sealing.pop(job.key, None)
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

    def _post(self, key: Key, message: m.FromWorker) -> None:
        self._loop.call_soon_threadsafe(self._endpoint.send, key[0], message)
