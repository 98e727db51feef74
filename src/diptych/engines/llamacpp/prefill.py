"""Prefill on llama-server: the prompt goes into a slot step by step, and its KV comes out as the slot's file.

The engine's worker calls from a thread of its own; the server is talked to on the event loop:

    engine thread   next(steps) ------------> waits            next(steps)          rows -> sink
    event loop                  /completion: 256 more tokens               ... save the slot
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator, Sequence
from typing import Any, TypeVar

from diptych.engines.llamacpp.engine import LlamaCppDecode, Rows, Step
from diptych.engines.protocol import Description, KVSink

Result = TypeVar("Result")


class LlamaCppPrefill:
    """A PrefillEngine over ``engine``, a server of its own. Make it on the event loop that runs the engine."""

    def __init__(self, engine: LlamaCppDecode, chunk_tokens: int, *, reuse: bool) -> None:
        """``reuse``: what a slot holds of a prompt from an earlier one is not computed again."""
        self._engine, self._chunk, self._reuse = engine, chunk_tokens, reuse
        self._loop = asyncio.get_running_loop()

    def describe(self) -> Description:
        return self._engine.describe()

    def prefill(self, prompt: Sequence[int], sink: KVSink) -> Generator[int, None, int]:
        """See PrefillEngine. The KV is there after the last step, so nothing overlaps with computing it."""
        steps = self._engine.read(prompt, self._chunk, reuse=self._reuse)

        async def following() -> Step:
            return await anext(steps)

        try:
            while (step := self._wait(following())).rows is None:
                yield step.done
            self._write(step.rows, sink)
            return step.cached
        finally:
            self._wait(steps.aclose())

    def cached_tokens(self, prompt: Sequence[int]) -> int:
        """Tokens at the start of ``prompt`` that a free slot holds."""
        return self._engine.cached_tokens(prompt) if self._reuse else 0

    def close(self) -> None:
        self._wait(self._engine.close())

    def _write(self, rows: Rows, sink: KVSink) -> None:
        heads = self._engine.describe().form.geometry.kv_heads
        tokens = len(rows.keys[0])
        for start in range(0, tokens, self._chunk):
            part = slice(start, start + self._chunk)
            keys, values = ([a[part].reshape(len(a[part]), heads, -1) for a in p] for p in (rows.keys, rows.values))
            sink.write(start, keys, values)

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
