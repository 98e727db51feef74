"""A decode worker whose engine is a clock: ``python -m diptych.bench.paced_engine PARENT_PID``, settings on stdin.

It speaks the real worker connection and makes one token a chunk, at as many tokens a second as a request's seed
says; every stream begins at its own phase, so tokens of different streams are not made together.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import random
import socket
import sys
import time
import uuid

import msgspec

from diptych.config import Deadlines
from diptych.engines.protocol import Description
from diptych.fleet import messages as m
from diptych.fleet.endpoint import Endpoint
from diptych.fleet.lifeline import stop_on_signals, tie_to_parent
from diptych.handoff.contract import KVForm
from diptych.types import Prepared, TokenChunk

INSTANT = 0
"""The seed of a request whose first token leaves at once."""

LONGEST_SLEEP_S = 0.0005
"""The worker connection's own timers must not wait for the next token."""


class PacedSpec(msgspec.Struct, frozen=True, kw_only=True):
    """``tokens`` are emitted one after another, over and over; each must be text by itself."""

    address: str
    worker: str
    context_tokens: int
    form: KVForm
    tokens: tuple[int, ...]


class Stream:
    """One request's tokens and when the next is due."""

    def __init__(self, client: bytes, request: m.Decode) -> None:
        rate = request.sampling.seed or 1000
        self.client, self.id = client, request.id
        self.period_s = 1 / rate
        self.left = request.sampling.max_tokens
        phase_s = 0.0 if request.sampling.seed == INSTANT else random.random() * self.period_s  # noqa: S311
        self.due_s = time.monotonic() + phase_s
        self.first = True

    def __lt__(self, other: Stream) -> bool:
        return self.due_s < other.due_s


class PacedEngine:
    """Handler of the endpoint, and the clock."""

    def __init__(self, spec: PacedSpec) -> None:
        self._spec = spec
        self._streams: list[Stream] = []
        self._gone: set[str] = set()
        self._work = asyncio.Event()
        about = Description(
            engine="paced", build="bench", device="clock", model="", fingerprint="bench", form=spec.form, slots=4096,
            context_tokens=spec.context_tokens,
        )  # fmt: skip
        self._welcome = m.Welcome(spec.worker, "decode", uuid.uuid4().hex, about, os.getpid(), socket.gethostname())

    def welcome(self) -> m.Welcome:
        return self._welcome

    def on_message(self, client: bytes, message: m.ToWorker) -> None:
        if isinstance(message, m.Decode):
            heapq.heappush(self._streams, Stream(client, message))
            self._work.set()
        elif isinstance(message, m.Cancel):
            self._gone.add(message.id)

    def on_client_lost(self, client: bytes) -> None:
        self._streams = [stream for stream in self._streams if stream.client != client]
        heapq.heapify(self._streams)

    async def run(self, stop: asyncio.Event) -> None:
        """Sends what is due. Sleeps inside the event loop on purpose: its own timers are too coarse by a token."""
        endpoint = Endpoint(self._spec.address, self, Deadlines())
        while not stop.is_set():
            if not self._streams:
                self._work.clear()
                await asyncio.wait((asyncio.ensure_future(self._work.wait()), asyncio.ensure_future(stop.wait())),
                                   return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
                continue
            wait_s = self._streams[0].due_s - time.monotonic()
            if wait_s > 0:
                time.sleep(min(wait_s, LONGEST_SLEEP_S))  # noqa: ASYNC251
            self._send_due(endpoint, time.monotonic())
            await asyncio.sleep(0)
        endpoint.close()

    def _send_due(self, endpoint: Endpoint, now_s: float) -> None:
        while self._streams and self._streams[0].due_s <= now_s:
            stream = self._streams[0]
            if stream.id in self._gone:
                self._gone.discard(stream.id)
                heapq.heappop(self._streams)
                continue
            endpoint.send(stream.client, m.Tokens(stream.id, self._chunk(stream)))
            if stream.left == 0:
                heapq.heappop(self._streams)
            else:
                stream.due_s += stream.period_s
                heapq.heapreplace(self._streams, stream)

    def _chunk(self, stream: Stream) -> TokenChunk:
        stream.left -= 1
        token = self._spec.tokens[stream.left % len(self._spec.tokens)]
        prepared, stream.first = (Prepared() if stream.first else None), False
        return TokenChunk((token,), (), "length" if stream.left == 0 else None, prepared)


def main() -> None:
    tie_to_parent(int(sys.argv[1]))
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=PacedSpec)

    async def run() -> None:
        await PacedEngine(spec).run(stop_on_signals())

    asyncio.run(run())


if __name__ == "__main__":
    main()
