"""A decode engine that takes a chip's time over tokens which every byte of its KV decides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from diptych.config import DecodeSettings
from diptych.engines.emulated import batch, costs, fault, kv
from diptych.engines.emulated.held import Held
from diptych.engines.emulated.pacing import Pacer
from diptych.engines.emulated.words import Words, seed_of
from diptych.engines.protocol import Description, LandedKV, Layers, Reading
from diptych.engines.room import output_limit
from diptych.errors import (
    CorruptKV,
    EngineError,
    HandoffError,
    InvalidRequest,
    WorkerLost,
)
from diptych.models.resolve import ModelBundle
from diptych.types import Prepared, Sampling, TokenChunk, TokenLogprob

Blocks = list[NDArray[np.uint8]]


class Run:
    """One request: its place in the batch, what it will say, and what was done before."""

    def __init__(
        self, sequence: batch.Sequence, seed: int, words: Words, logprobs: int | None, prepared: Prepared
    ) -> None:
        self.sequence, self._seed, self._words, self._logprobs = sequence, seed, words, logprobs
        self._prepared = prepared
        self.tokens = words.say(seed, sequence.left)
        self.sent = 0
        self._began_s = self._joined_s = time.monotonic()

    def joined(self) -> None:
        self._joined_s = time.monotonic()

    def chunk(self) -> TokenChunk:
        """The next token, by itself."""
        first, self.sent = not self.sent, self.sent + 1
        logprobs: tuple[TokenLogprob, ...] = ()
        if self._logprobs is not None:
            logprobs = (self._words.logprob(self._seed, self.sent - 1, self._logprobs),)
        last = self.sent == len(self.tokens)
        engine_ms = (time.monotonic() - self._joined_s) * 1e3 if last else None
        said = (self.tokens[self.sent - 1],)
        return TokenChunk(said, logprobs, "length" if last else None, self._measured() if first else None, engine_ms)

    def _measured(self) -> Prepared:
        wait_ms = (self._joined_s - self._began_s) * 1e3
        read_ms = 0.0 if self._prepared.kv_tokens else (time.monotonic() - self._joined_s) * 1e3
        return msgspec.structs.replace(self._prepared, slot_wait_ms=wait_ms, prefill_ms=read_ms)


class EmulatedDecode:
    """A VerifiableDecode. Greedy whatever the sampling says; an answer ends with ``max_tokens``, never by itself.

    To be made on the event loop that it will run on. Raises ConfigError.
    """

    def __init__(self, bundle: ModelBundle, settings: DecodeSettings) -> None:
        self._bundle, self._settings = bundle, settings
        self._fault = fault.parse(settings.fault, decode=True)
        self._pace = costs.pace_of(settings, self._fault.slowdown)
        capacity = costs.room_for(settings, self._pace.cost)
        self._form = kv.decode_form(bundle.fingerprint)
        self._words = Words.of(bundle)
        self._held = Held(settings.slots * settings.ctx_per_request)
        chunk_tokens, interference = settings.n_batch, self._pace.cost.interference
        self._pacer = Pacer(batch.Batch(self._pace, settings.slots, capacity, chunk_tokens, interference))
        self._pacing = asyncio.create_task(self._pacer.run())
        self._handoffs = 0

    def describe(self) -> Description:
        return Description(
            engine="emulated",
            build=costs.build_of(self._settings),
            device=self._settings.chip or "",
            model=self._bundle.id,
            fingerprint=self._form.fingerprint,
            form=self._form,
            slots=self._settings.slots,
            context_tokens=self._settings.ctx_per_request,
        )

    async def decode(
        self,
        request_id: str,  # noqa: ARG002  of the protocol
        prompt: Sequence[int],
        landed: LandedKV | None,
        sampling: Sampling,
    ) -> AsyncGenerator[TokenChunk, None]:
        """See DecodeEngine. Raises HandoffError before the first token when the KV is not what was announced."""
        most = self._limit(prompt, sampling)
        run = await self._over(prompt, landed, most, sampling) if landed else self._alone(prompt, most, sampling)
        self._pacer.add(run.sequence)
        try:
            await self._pacer.more(run.sequence)
            run.joined()
            while run.sent < len(run.tokens):
                await self._next(run)
                yield run.chunk()
        finally:
            self._pacer.remove(run.sequence)
            if run.sent:  # the KV of the last token was never computed
                self._held.add(kv.states([*prompt, *run.tokens[: run.sent - 1]], self._bundle.fingerprint))

    async def own_reading(self, prompt: Sequence[int]) -> Reading:
        """What this engine makes of ``prompt`` itself; takes the chip's time for it."""
        rows = kv.as_rows(kv.values(kv.states(prompt, self._bundle.fingerprint)))
        seconds = self._pace.prefill_s(len(prompt))
        await asyncio.sleep(seconds)
        halves: Layers = tuple(block.view(np.float16) for block in rows)
        layers = kv.GEOMETRY.layers
        logprobs = self._words.distribution(seed_of([block[:-1] for block in rows], prompt[-1]))
        return Reading(halves[:layers], halves[layers:], logprobs, seconds * 1e3)

    async def next_logprobs(self, prompt: Sequence[int], landed: LandedKV) -> NDArray[np.float32]:
        """Log-probabilities of the token after ``prompt``, from landed KV of all but its last token."""
        blocks = await self._admitted(prompt, landed)
        return self._words.distribution(seed_of(blocks, prompt[-1]))

    async def ended(self) -> WorkerLost:
        """Returns when the clock has stopped, which only an error of ours does."""
        await asyncio.wait((self._pacing,))
        return WorkerLost("the emulated engine has stopped")

    async def close(self) -> None:
        self._pacing.cancel()

    # -- one request -----------------------------------------------------------------------------------------------

    def _alone(self, prompt: Sequence[int], most: int, sampling: Sampling) -> Run:
        """The prompt is read here: the same KV, and the chip's own time for it."""
        states = kv.states(prompt, self._bundle.fingerprint)
        cached = min(self._held.match(states), len(prompt) - 1)
        seed = seed_of(kv.as_rows(kv.values(states[:-1])), prompt[-1])
        sequence = batch.Sequence(cached, len(prompt) - cached, most)
        return Run(sequence, seed, self._words, sampling.logprobs, Prepared(cached_tokens=cached))

    async def _over(self, prompt: Sequence[int], landed: LandedKV, most: int, sampling: Sampling) -> Run:
        """The KV is what has landed, whatever that is."""
        began_s = time.monotonic()
        self._handoffs += 1
        if self._fault.strikes("refuse_admission", self._handoffs):
            raise _Refused("admission was refused on purpose")
        blocks = await self._admitted(prompt, landed)
        if self._fault.strikes("wrong_kv", self._handoffs):
            blocks[0][0, 0] ^= 1
        admit_ms = (time.monotonic() - began_s) * 1e3
        prepared = Prepared(landed.tokens, self._form.region_bytes(landed.tokens), admit_ms=admit_ms)
        sequence = batch.Sequence(len(prompt) - 1, 0, most)
        return Run(sequence, seed_of(blocks, prompt[-1]), self._words, sampling.logprobs, prepared)

    async def _admitted(self, prompt: Sequence[int], landed: LandedKV) -> Blocks:
        if landed.tokens != len(prompt) - 1:
            raise CorruptKV(f"{landed.tokens} tokens have landed for a prompt of {len(prompt)}")
        blocks = [np.empty((landed.tokens, image.unit_bytes), np.uint8) for image in self._form.images]
        await asyncio.to_thread(landed.admit, blocks)
        return blocks

    async def _next(self, run: Run) -> None:
        """Returns when another token may be sent."""
        if self._fault.strikes("fail_after_tokens", run.sent):
            raise EngineError(f"failed on purpose after {run.sent} tokens")
        if self._fault.strikes("stall_after_tokens", run.sent):
            await asyncio.Event().wait()
        while run.sent == run.sequence.emitted:
            await self._pacer.more(run.sequence)

    def _limit(self, prompt: Sequence[int], sampling: Sampling) -> int:
        if sampling.grammar is not None or sampling.json_schema is not None:
            raise InvalidRequest("an emulated engine says words; it cannot follow a grammar or a JSON schema")
        return output_limit(prompt, sampling, self._settings.ctx_per_request)


class _Refused(HandoffError):
    """A handoff that an engine refuses on purpose."""

    reason = "refused_on_purpose"
