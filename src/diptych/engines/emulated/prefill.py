"""A prefill engine that takes a chip's time over KV of its own making."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence

from diptych.config import PrefillSettings
from diptych.engines.emulated import costs, fault, kv
from diptych.engines.emulated.held import Held
from diptych.engines.protocol import Description, KVSink
from diptych.errors import ContextExceeded, EngineError, InvalidRequest
from diptych.models.resolve import ModelBundle

OVERSLEPT_S = 0.002
"""A chunk that begins so soon after the last one's end follows it without a gap: the rest is the clock's coarseness."""
STALLED_S = 0.02
"""How often a stalled prompt lets its worker look whether it is cancelled."""


class EmulatedPrefill:
    """A PrefillEngine. ``sleep`` and ``clock`` are the thread's own, or a test's."""

    def __init__(
        self,
        bundle: ModelBundle,
        settings: PrefillSettings,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bundle, self._settings = bundle, settings
        self._fault = fault.parse(settings.fault, decode=False)
        self._pace = costs.pace_of(settings, self._fault.slowdown)
        self._form = kv.prefill_form(bundle.fingerprint)
        self._held = Held((settings.prefix_cache_mb << 20) // self._form.bytes_per_token)
        self._clock, self._sleep = clock, sleep
        self._free_s = 0.0
        self._prompts = 0

    def describe(self) -> Description:
        return Description(
            engine="emulated",
            build=costs.build_of(self._settings),
            device=self._settings.chip or "",
            model=self._bundle.id,
            fingerprint=self._form.fingerprint,
            form=self._form,
            slots=1,
            context_tokens=self._bundle.context_tokens,
        )

    def prefill(self, prompt: Sequence[int], sink: KVSink) -> Generator[int, None, int]:
        """See PrefillEngine. Raises ContextExceeded or InvalidRequest before the first chunk."""
        self._check(prompt)
        self._prompts += 1
        wrong = self._fault.strikes("wrong_kv", self._prompts)
        states = kv.states(prompt, self._bundle.fingerprint)
        cached = self._held.match(states)
        bounds = [*range(cached + self._settings.chunk_tokens, len(prompt), self._settings.chunk_tokens), len(prompt)]
        start = 0  # what is cached is written too, together with the first chunk
        for stop in bounds:
            yield from self._trouble(start)
            keys, values = kv.as_written(kv.values(states[start:stop]))
            if wrong:
                keys[0].flat[0] ^= 0x80  # a bit of a value that stays a number
            self._take(
                self._pace.prefill_s(stop - cached, cached) - self._pace.prefill_s(max(0, start - cached), cached)
            )
            sink.write(start, keys, values)
            yield stop
            start = stop
        self._held.add(states)
        return cached

    def cached_tokens(self, prompt: Sequence[int]) -> int:
        """Tokens at the start of ``prompt`` whose KV need not be computed again."""
        return self._held.match(kv.states(prompt, self._bundle.fingerprint))

    def close(self) -> None:
        """Forgets what it has read."""
        self._held.clear()

    def _check(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise InvalidRequest("the prompt is empty")
        if len(prompt) > self._bundle.context_tokens:
            raise ContextExceeded(f"{len(prompt)} prompt tokens; the context is {self._bundle.context_tokens}")

    def _take(self, seconds: float) -> None:
        """The chip is busy for so long, from now, or from when it should have been free if we woke a little late."""
        now = self._clock()
        begins_s = self._free_s if self._free_s > now - OVERSLEPT_S else now
        self._free_s = begins_s + seconds
        if self._free_s > now:
            self._sleep(self._free_s - now)

    def _trouble(self, done: int) -> Generator[int, None, None]:
        if self._fault.strikes("fail_after_tokens", done):
            raise EngineError(f"failed on purpose after {done} prompt tokens")
        while self._fault.strikes("stall_after_tokens", done):
            self._sleep(STALLED_S)
            yield done
