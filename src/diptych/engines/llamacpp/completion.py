"""One request's events into chunks, with every token named and the takeover confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from diptych.engines.llamacpp import wire
from diptych.engines.llamacpp.client import Client
from diptych.engines.llamacpp.slots import Slot
from diptych.engines.llamacpp.spelling import Speller
from diptych.engines.llamacpp.takeover import confirm
from diptych.errors import EngineError
from diptych.types import Sampling, TokenChunk

Pieces = Callable[[], Sequence[bytes]]


class Completions:
    """Runs completions in slots of one server."""

    def __init__(self, client: Client, pieces: Pieces) -> None:
        self._client, self._pieces = client, pieces
        self._speller: Speller | None = None

    async def run(
        self, slot: Slot, prompt: Sequence[int], sampling: Sampling, *, reuse: bool, landed: bool
    ) -> AsyncGenerator[TokenChunk, None]:
        """The chunks of one completion; afterwards ``slot`` remembers what it holds.

        With ``landed``, raises CorruptKV before the first chunk unless the server confirms the takeover.
        """
        body = wire.completion(prompt, sampling, slot.index, reuse=reuse)
        so_far: list[int] = []
        unconfirmed = landed
        try:
            async with aclosing(self._client.stream(body)) as events:
                async for event in events:
                    if unconfirmed:
                        confirm(event.cached, prompt)
                        unconfirmed = False
                    if event.prompt_progress is not None:
                        continue
                    tokens = await self._named(event, len(so_far))
                    so_far += tokens
                    slot.busy_tokens = len(prompt) + len(so_far)
                    finish = wire.finish(event) if event.stop else None
                    if tokens or finish:
                        yield TokenChunk(tokens, wire.logprobs(event, sampling.logprobs or 0), finish)
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
