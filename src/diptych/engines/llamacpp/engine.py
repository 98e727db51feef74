"""Decode on llama-server: its slots, continuous batching, KV taken over from a handoff."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from diptych.engines.llamacpp import wire
from diptych.engines.llamacpp.completion import Completions, Held, Pieces
from diptych.engines.llamacpp.images import ImagePool
from diptych.engines.llamacpp.probe import learn_form, saved
from diptych.engines.llamacpp.process import ServerProcess
from diptych.engines.llamacpp.server import Server
from diptych.engines.llamacpp.settings import Model, Settings
from diptych.engines.llamacpp.slotfile import SlotForm, parse
from diptych.engines.llamacpp.slots import Slots
from diptych.engines.llamacpp.takeover import Takeover, confirm
from diptych.engines.protocol import Description, LandedKV, Layers, Reading
from diptych.errors import (
    ConfigError,
    ContextExceeded,
    EngineError,
    HandoffError,
    InvalidRequest,
    WorkerError,
    WorkerLost,
)
from diptych.types import Prepared, Sampling, TokenChunk


class LlamaCppDecode:
    """A DecodeEngine. It alone owns its server's slots. Make one with :meth:`start`."""

    def __init__(self, settings: Settings, model: Model, server: Server, form: SlotForm, pieces: Pieces) -> None:
        self._settings, self._model, self._server = settings, model, server
        self._slots = Slots(settings.slots)
        self._images = ImagePool(Path(settings.slot_dir), form, settings.ctx_per_request, settings.images)
        self._takeover = Takeover(server.client, self._images)
        self._completions = Completions(server.client, pieces)
        self._lost: WorkerLost | None = None
        self._over = asyncio.Event()
        self._watch = asyncio.create_task(self._watch_process(server.process)) if server.process else None

    @classmethod
    async def start(cls, settings: Settings, model: Model, pieces: Pieces) -> LlamaCppDecode:
        """Starts (or meets) the server and learns its slot file. Raises ConfigError.

        ``pieces`` gives the bytes of every token id; it is called once, in a thread, when first needed.
        """
        server = await Server.start(settings, model)
        try:
            form = await learn_form(server.client, Path(settings.slot_dir), model.row_bytes, server.build)
            return cls(settings, model, server, form, pieces)
        except WorkerError as error:
            await server.stop()
            raise ConfigError(f"{server.build} came up but does not work: {error}") from error
        except BaseException:
            await server.stop()
            raise

    def describe(self) -> Description:
        return Description(
            engine="llama.cpp",
            build=self._server.build,
            device="cpu",
            model=self._model.name,
            fingerprint=self._model.form.fingerprint,
            form=self._model.form,
            slots=self._settings.slots,
            context_tokens=self._settings.ctx_per_request,
        )

    @property
    def batch(self) -> int:
        """Requests that run now."""
        return len(self._slots.busy)

    @property
    def context_tokens(self) -> int:
        """KV tokens of the requests that run now."""
        return sum(slot.busy_tokens for slot in self._slots.busy)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return self._slots.waiting

    def cached_tokens(self, prompt: Sequence[int]) -> int:
        """Tokens at the start of ``prompt`` that a free slot holds from an earlier request."""
        return self._slots.cached_tokens(prompt)

    async def decode(
        self,
        request_id: str,  # noqa: ARG002 - of the protocol; llama-server has no use for it
        prompt: Sequence[int],
        landed: LandedKV | None,
        sampling: Sampling,
    ) -> AsyncGenerator[TokenChunk, None]:
        """Tokens after ``prompt``; see :class:`diptych.engines.protocol.DecodeEngine`.

        Raises HandoffError before the first token when the handoff fails a check or the server does not
        confirm it; the slot is then erased, and a later call without ``landed`` computes everything anew.
        """
        sampling = self._fitting(prompt, sampling)
        async with (
            self._slot(prompt, landed) as held,
            aclosing(self._completions.run(held, prompt, sampling)) as chunks,
        ):
            async for chunk in chunks:
                yield chunk

    async def next_logprobs(self, prompt: Sequence[int], landed: LandedKV | None = None) -> npt.NDArray[np.float32]:
        """Natural log-probabilities of the token after ``prompt``, for the whole vocabulary.

        Nothing but ``landed`` is re-used.
        """
        async with self._slot(prompt, landed) as held:
            answer = await self._asked(prompt, held.slot.index, reuse=landed is not None)
            if landed is not None:
                confirm(answer.cached, prompt)
        return self._distribution(answer)

    async def own_reading(self, prompt: Sequence[int]) -> Reading:
        """What this engine makes of ``prompt`` by its own prefill, re-using nothing."""
        async with self._slot(prompt, None) as held:
            answer = await self._asked(prompt, held.slot.index, reuse=False)
            data = await saved(self._server.client, held.slot.index, Path(self._settings.slot_dir))
        prefill_ms = answer.timings.prompt_ms if answer.timings else 0.0
        return Reading(*_rows(data, prompt), self._distribution(answer), prefill_ms)

    async def _asked(self, prompt: Sequence[int], slot: int, *, reuse: bool) -> wire.Event:
        """The server's answer with the next token's whole distribution."""
        client = self._server.client
        plain = wire.tokenize_reply.decode(await client.call("POST", "/tokenize", {"content": "a"})).tokens[-1]
        body = wire.distribution(prompt, self._model.vocabulary, slot, reuse=reuse, emit=plain)
        return wire.event.decode(await client.call("POST", "/completion", body))

    def _distribution(self, answer: wire.Event) -> npt.NDArray[np.float32]:
        found = np.full(self._model.vocabulary, -np.inf, np.float32)
        for token, logprob in wire.logprobs(answer, self._model.vocabulary)[0].top:
            found[token] = logprob
        return found

    async def ended(self) -> WorkerLost:
        """Returns when the server's process has ended; never for a server that is somebody else's."""
        await self._over.wait()
        return self._lost or WorkerLost("the decode engine is shut down")

    async def close(self) -> None:
        """Ends the server and removes the images."""
        if self._watch is not None:
            self._watch.cancel()
        self._lost = self._lost or WorkerLost("the decode engine is shut down")
        self._slots.fail(self._lost)
        await self._server.stop()
        self._images.close()

    def _fitting(self, prompt: Sequence[int], sampling: Sampling) -> Sampling:
        """``sampling`` with as many tokens as there is room for. Raises RequestError."""
        room = self._settings.ctx_per_request - len(prompt)
        if not prompt or sampling.max_tokens < 1:
            raise InvalidRequest("a prompt of at least one token and max_tokens of at least 1 are needed")
        if room < 1:
            most = self._settings.ctx_per_request - 1
            raise ContextExceeded(f"the prompt has {len(prompt)} tokens; the context has room for {most}")
        return msgspec.structs.replace(sampling, max_tokens=min(sampling.max_tokens, room))

    @asynccontextmanager
    async def _slot(self, prompt: Sequence[int], landed: LandedKV | None) -> AsyncGenerator[Held]:
        """A slot for one request, with ``landed`` restored into it.

        While it is held the slot counts as empty, so that after any failure nothing of it is used again.
        """
        if self._lost is not None:
            raise self._lost
        began = time.monotonic()
        slot = await self._slots.acquire(prompt, overwrite=landed is not None)
        acquired = time.monotonic()
        reuse = landed is not None or slot.shares(np.asarray(prompt, np.int32)) > 0
        slot.hold(())
        slot.busy_tokens = len(prompt)
        try:
            if landed is not None:
                await self._takeover.into(slot.index, prompt, landed)
            yield Held(slot, reuse, self._prepared(landed, acquired - began, time.monotonic() - acquired))
        except HandoffError:
            with suppress(WorkerError, InvalidRequest):
                await self._server.client.slot(slot.index, "erase")
            raise
        finally:
            self._slots.release(slot)

    def _prepared(self, landed: LandedKV | None, wait_s: float, admit_s: float) -> Prepared:
        if landed is None:
            return Prepared(slot_wait_ms=wait_s * 1e3)
        kv_bytes = self._model.form.region_bytes(landed.tokens)
        return Prepared(landed.tokens, kv_bytes, slot_wait_ms=wait_s * 1e3, admit_ms=admit_s * 1e3)

    async def _watch_process(self, process: ServerProcess) -> None:
        self._lost = await process.ended()
        self._slots.fail(self._lost)
        self._over.set()


def _rows(data: bytes, prompt: Sequence[int]) -> tuple[Layers, Layers]:
    file = parse(data)
    if file.tokens != tuple(prompt):
        raise EngineError(f"the saved slot holds {len(file.tokens)} tokens, the prompt has {len(prompt)}")
    arrays = [
        np.frombuffer(data, np.float16, len(prompt) * row_bytes // 2, offset).reshape(len(prompt), -1)
        for offset, row_bytes in file.rows
    ]
    layers = len(arrays) // 2
    return tuple(arrays[:layers]), tuple(arrays[layers:])
