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


class LazySpeller:
    """The speller, made in a thread when it is first needed: most streams hold no character of several
    tokens.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._speller: Speller | None = None

    async def get(self) -> Speller:
        if self._speller is None:
            self._speller = Speller(await asyncio.to_thread(self._pieces))
        return self._speller


class Held(NamedTuple):
    """A slot in one request's hands. ``reuse``: what it holds of the prompt need not be computed."""

    slot: Slot
    reuse: bool
    prepared: Prepared

    def measured(self, cached: int, first_ms: float) -> Prepared:
        """What was done before the first token, which came ``first_ms`` after the server was asked."""
        if self.prepared.kv_tokens:
            return self.prepared
        return msgspec.structs.replace(self.prepared, cached_tokens=cached, prefill_ms=first_ms)


class Completion:
    """One request in the slot that it holds."""

    def __init__(
        self, client: Client, speller: LazySpeller, held: Held, prompt: Sequence[int], sampling: Sampling
    ) -> None:
        self._client, self._speller, self._held = client, speller, held
        self._slot, self._prompt, self._sampling = held.slot, prompt, sampling
        self._tokens: list[int] = []
        self._asked_s = 0.0
        self._cached = 0

    async def chunks(self) -> AsyncGenerator[TokenChunk, None]:
        """The request's chunks; afterwards the slot remembers what it holds.

        After a takeover, raises CorruptKV before the first chunk unless the server confirms that it computed
        only the prompt's last token.
        """
        body = wire.completion(self._prompt, self._sampling, self._slot.index, reuse=self._held.reuse)
        self._asked_s = time.monotonic()
        unconfirmed = self._held.prepared.kv_tokens > 0
        try:
            async with aclosing(self._client.stream(body)) as events:
                async for event in events:
                    if unconfirmed:
                        confirm(event.cached, self._held.prepared.kv_tokens)
                        unconfirmed = False
                    if event.prompt_progress is not None:
                        self._cached = event.prompt_progress.cache
                        continue
                    chunk = await self._chunk(event)
                    if chunk.tokens or chunk.finish:
                        yield chunk
                    if chunk.finish:
                        return
            raise EngineError("llama-server ended a stream without saying why")
        finally:
            # the last token was sampled but its KV is not there
            self._slot.hold([*self._prompt, *self._tokens[:-1]] if self._tokens else ())

    async def _chunk(self, event: wire.Event) -> TokenChunk:
        missing = event.tokens_predicted - len(self._tokens) - len(event.tokens)
        tokens = event.tokens
        if missing > 0 and tokens:
            tokens = (await self._speller.get()).before(tokens[0], event.content, missing) + tokens
        elif missing > 0:
            tokens = await self._once_more(missing)
        prepared = None if self._tokens else self._prepared()
        self._tokens += tokens
        self._slot.busy_tokens = len(self._prompt) + len(self._tokens)
        finish = wire.finish(event) if event.stop else None
        engine_ms = event.timings.engine_ms if finish and event.timings else None
        return TokenChunk(tokens, wire.logprobs(event, self._sampling.logprobs or 0), finish, prepared, engine_ms)

    def _prepared(self) -> Prepared:
        return self._held.measured(self._cached, (time.monotonic() - self._asked_s) * 1e3)

    async def _once_more(self, missing: int) -> tuple[int, ...]:
        """The last tokens of a stream that ended inside a character: nobody will ever see the ids of these.

        They are drawn again from the same KV, not streamed: greedily they are the same. A grammar cannot be
        entered in its middle; there they stay unknown.
        """
        tokens: tuple[int, ...] = ()
        if self._sampling.grammar is None and self._sampling.json_schema is None:
            ask = msgspec.structs.replace(self._sampling, max_tokens=missing, logprobs=None)
            prompt = [*self._prompt, *self._tokens]
            body = wire.completion(prompt, ask, self._slot.index, reuse=True, stream=False)
            tokens = wire.event.decode(await self._client.call("POST", "/completion", body, patient=False)).tokens
        return tokens + (await self._speller.get()).unknown(missing - len(tokens))
