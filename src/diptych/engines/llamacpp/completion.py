"""One request's events into chunks, with every token named and the takeover confirmed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple

import msgspec

from diptych.engines.llamacpp import wire
from diptych.engines.llamacpp.client import Client
from diptych.engines.llamacpp.slots import Slot
from diptych.engines.llamacpp.spelling import Speller
from diptych.engines.llamacpp.takeover import confirm
from diptych.errors import EngineError
from diptych.types import Prepared, Sampling, TokenChunk

Pieces = Callable[[], Sequence[bytes]]


class Held(NamedTuple):
    """A slot in one request's hands. ``reuse``: what it holds of the prompt's start need not be computed."""

    slot: Slot
    reuse: bool
    prepared: Prepared

    def measured(self, cached: int, first_ms: float) -> Prepared:
        """What was done before the first token, which came ``first_ms`` after the request was sent."""
        if self.prepared.kv_tokens:
            return self.prepared
        return msgspec.structs.replace(self.prepared, cached_tokens=cached, prefill_ms=first_ms)


class Completions:
    """Runs completions in slots of one server."""

    def __init__(self, client: Client, pieces: Pieces) -> None:
        self._client, self._pieces = client, pieces
        self._speller: Speller | None = None

    async def run(self, held: Held, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[TokenChunk, None]:
        """The chunks of one completion; afterwards the slot remembers what it holds.

        After a takeover, raises CorruptKV before the first chunk unless the server confirms it.
        """
        slot = held.slot
        body = wire.completion(prompt, sampling, slot.index, reuse=held.reuse)
        began = time.monotonic()
        cached, first = 0, True
        so_far: list[int] = []
        unconfirmed = held.prepared.kv_tokens > 0
        try:
            async with aclosing(self._client.stream(body)) as events:
                async for event in events:
                    if unconfirmed:
                        confirm(event.cached, prompt)
                        unconfirmed = False
                    if event.prompt_progress is not None:
                        cached = event.prompt_progress.cache
                        continue
                    tokens = await self._named(event, len(so_far))
                    so_far += tokens
                    slot.busy_tokens = len(prompt) + len(so_far)
                    finish = wire.finish(event) if event.stop else None
                    if tokens or finish:
                        if first:
                            prepared: Prepared | None = held.measured(cached, (time.monotonic() - began) * 1e3)
                        engine_ms = event.timings.engine_ms if finish and event.timings else None
                        found = wire.logprobs(event, sampling.logprobs or 0)
                        yield TokenChunk(tokens, found, finish, prepared if first else None, engine_ms)
                        first = False
                    if finish:
                        return
            raise EngineError("llama-server ended a stream without saying why")
        finally:
            # the last token was sampled but its KV is not there
            slot.hold([*prompt, *so_far[:-1]] if so_far else ())

    async def _named(self, event: wire.Event, count: int) -> tuple[int, ...]:
        """The event's tokens, together with those that the server held back since the last event."""
        missing = event.tokens_predicted - count - len(event.tokens)
        if missing <= 0:
            return event.tokens
        if self._speller is None:
            self._speller = Speller(await asyncio.to_thread(self._pieces))
        if not event.tokens:
            return self._speller.unknown(missing)
        return self._speller.before(event.tokens[0], event.content, missing) + event.tokens
