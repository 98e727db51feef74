"""Decode on llama-server: its slots, continuous batching, KV taken over from a handoff."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from diptych.engines.llamacpp import wire
from diptych.engines.llamacpp.completion import Completion, Held, LazySpeller, Pieces
from diptych.engines.llamacpp.images import ImagePool
from diptych.engines.llamacpp.probe import learn_form, saved
from diptych.engines.llamacpp.process import ServerProcess
from diptych.engines.llamacpp.server import Server
from diptych.engines.llamacpp.settings import Model, Settings
from diptych.engines.llamacpp.slotfile import SlotForm, parse
from diptych.engines.llamacpp.slots import Slot, Slots
from diptych.engines.llamacpp.takeover import Takeover, confirm
from diptych.engines.protocol import Arrays, Description, LandedKV, Reading
from diptych.engines.room import output_limit
from diptych.errors import (
    ConfigError,
    EngineError,
    InvalidRequest,
    WorkerError,
    WorkerLost,
)
from diptych.models.chat import ChatFormat
from diptych.models.resolve import ModelBundle
from diptych.types import Prepared, Sampling, TokenChunk

log = logging.getLogger(__name__)


class Rows(msgspec.Struct, frozen=True):
    """KV of one prompt as this engine computed it: per layer [tokens, heads x head_dim] of f16."""

    keys: tuple[npt.NDArray[np.float16], ...]
    values: tuple[npt.NDArray[np.float16], ...]


class Step(msgspec.Struct, frozen=True):
    """How far the reading of a prompt is; ``rows`` come with the last step. ``cached`` tokens were there before."""

    done: int
    cached: int
    rows: Rows | None = None


class LlamaCppDecode:
    """A DecodeEngine. It alone owns its server's slots. Make one with :meth:`start`."""

    def __init__(self, settings: Settings, model: Model, server: Server, form: SlotForm, pieces: Pieces) -> None:
        self._settings, self._model, self._server = settings, model, server
        self._slots = Slots(settings.slots)
        self._images = ImagePool(Path(settings.slot_dir), form, settings.ctx_per_request, settings.images)
        self._takeover = Takeover(server.client, self._images)
        self._speller = LazySpeller(pieces)
        self._erasing: set[asyncio.Task[None]] = set()
        self._lost: WorkerLost | None = None
        self._over = asyncio.Event()
        self._watch = asyncio.create_task(self._watch_process(server.process)) if server.process else None

    @classmethod
    async def start(cls, settings: Settings, bundle: ModelBundle) -> LlamaCppDecode:
        """Starts (or meets) the server and learns its slot file. Raises ConfigError."""
        model = Model.of(bundle)
        server = await Server.start(settings, model)
        try:
            form = await learn_form(server.client, Path(settings.slot_dir), model.row_bytes, server.build)
            return cls(settings, model, server, form, partial(_pieces, bundle))
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
        limit = output_limit(prompt, sampling, self._settings.ctx_per_request)
        sampling = msgspec.structs.replace(sampling, max_tokens=limit)
        async with self._slot(prompt, landed) as held:
            completion = Completion(self._server.client, self._speller, held, prompt, sampling)
            async with aclosing(completion.chunks()) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def next_logprobs(self, prompt: Sequence[int], landed: LandedKV | None = None) -> npt.NDArray[np.float32]:
        """Natural log-probabilities of the token after ``prompt``, for the whole vocabulary.

        Nothing but ``landed`` is re-used.
        """
        async with self._slot(prompt, landed) as held:
            answer = await self._ask_distribution(prompt, held)
            if landed is not None:
                confirm(answer.cached, landed.tokens)
        return self._distribution(answer)

    async def own_reading(self, prompt: Sequence[int]) -> Reading:
        """What this engine makes of ``prompt`` by its own prefill, re-using nothing."""
        async with self._slot(prompt, None) as held:
            answer = await self._ask_distribution(prompt, held._replace(reuse=False))
            data = await saved(self._server.client, held.slot.index, Path(self._settings.slot_dir))
        rows = _rows(data, prompt)
        prefill_ms = answer.timings.prompt_ms if answer.timings else 0.0
        return Reading(rows.keys, rows.values, self._distribution(answer), prefill_ms)

    async def _ask_distribution(self, prompt: Sequence[int], held: Held) -> wire.Event:
        body = wire.distribution(prompt, self._model.vocabulary, held.slot.index, reuse=held.reuse)
        return wire.event.decode(await self._server.client.call("POST", "/completion", body))

    def _distribution(self, answer: wire.Event) -> npt.NDArray[np.float32]:
        vocabulary = self._model.vocabulary
        found = np.full(vocabulary, -np.inf, np.float32)
        for token, logprob in wire.logprobs(answer, vocabulary)[0].top:
            found[token] = logprob
        return found

    async def export_rows(self, prompt: Sequence[int]) -> Rows:
        """The KV of every token of ``prompt`` after this engine's own prefill, re-using nothing."""
        ask = Sampling(max_tokens=1, temperature=0, ignore_eos=True)
        async with self._slot(prompt, None) as held:
            body = wire.completion(prompt, ask, held.slot.index, reuse=False, stream=False)
            await self._server.client.call("POST", "/completion", body)
            data = await saved(self._server.client, held.slot.index, Path(self._settings.slot_dir))
        return _rows(data, prompt)

    async def read(self, prompt: Sequence[int], chunk_tokens: int, *, reuse: bool) -> AsyncGenerator[Step, None]:
        """Computes the KV of every token of ``prompt`` in steps, and gives it with the last one.

        Closing the generator between steps gives the rest up. Raises WorkerError.
        """
        ask = Sampling(max_tokens=1, temperature=0, ignore_eos=True)
        ends = [*range(chunk_tokens, len(prompt), chunk_tokens), len(prompt)]
        cached: int | None = None
        async with self._slot(prompt, None) as held:
            for end in ends:
                again = cached is not None or (reuse and held.reuse)
                body = wire.completion(prompt[:end], ask, held.slot.index, reuse=again, stream=False)
                answer = wire.event.decode(await self._server.client.call("POST", "/completion", body))
                cached = (answer.cached or 0) if cached is None else cached
                yield Step(end, cached)
            data = await saved(self._server.client, held.slot.index, Path(self._settings.slot_dir))
            rows = _rows(data, prompt)
            held.slot.hold(prompt)
        yield Step(len(prompt), cached or 0, rows)

    async def give(self, tokens: Sequence[int], start: int) -> tuple[Arrays, Arrays]:
        """See GivesKV. Saving a slot holds up the server, so it waits until nothing runs."""
        await self._slots.idle()
        slot = self._slots.take(tokens)
        if slot is None:
            raise EngineError("the KV of this answer is no longer held")
        try:
            data = await saved(self._server.client, slot.index, Path(self._settings.slot_dir))
        finally:
            self._slots.release(slot)
        rows = _rows(data, tokens, start)
        heads = self._model.form.geometry.kv_heads
        keys, values = ([layer.reshape(len(layer), heads, -1) for layer in p] for p in (rows.keys, rows.values))
        return keys, values

    @property
    def lost(self) -> WorkerLost | None:
        """How the server's process ended, if it did."""
        return self._lost

    async def ended(self) -> WorkerLost:
        """Returns when the server's process has ended; never for a server that is somebody else's."""
        await self._over.wait()
        return self._lost or WorkerLost("the decode engine is shut down")

    async def close(self) -> None:
        """Ends the server and removes the images."""
        for task in (*self._erasing, *([self._watch] if self._watch else [])):
            task.cancel()
        self._lost = self._lost or WorkerLost("the decode engine is shut down")
        self._slots.fail(self._lost)
        await self._server.stop()
        self._images.close()

    @asynccontextmanager
    async def _slot(self, prompt: Sequence[int], landed: LandedKV | None) -> AsyncGenerator[Held]:
        """A slot for one request, with ``landed`` restored into it.

        While it is held the slot counts as empty. Whoever leaves it like that (a failed handoff, a cancelled
        prefill) leaves content in doubt: the slot is erased before anybody else gets it.
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
        finally:
            if len(slot.tokens):
                self._slots.release(slot)
            else:
                erasing = asyncio.create_task(self._erase(slot))
                self._erasing.add(erasing)
                erasing.add_done_callback(self._erasing.discard)

    def _prepared(self, landed: LandedKV | None, wait_s: float, admit_s: float) -> Prepared:
        if landed is None:
            return Prepared(slot_wait_ms=wait_s * 1e3)
        kv_bytes = self._model.form.region_bytes(landed.tokens)
        return Prepared(landed.tokens, kv_bytes, slot_wait_ms=wait_s * 1e3, admit_ms=admit_s * 1e3)

    async def _erase(self, slot: Slot) -> None:
        """Erases and releases a slot. The server waits with it for the end of what still runs there."""
        try:
            await self._server.client.slot(slot.index, "erase")
        except WorkerLost:
            pass  # nobody will use the slots of this server again
        except (EngineError, InvalidRequest) as error:
            log.warning("slot %d was not erased: %s", slot.index, error)
        finally:
            self._slots.release(slot)

    async def _watch_process(self, process: ServerProcess) -> None:
        self._lost = await process.ended()
        self._slots.fail(self._lost)
        self._over.set()


def _pieces(bundle: ModelBundle) -> list[bytes]:
    """The bytes of every token id. Takes a moment: called in a thread, when first needed."""
    chat = ChatFormat.load(bundle)
    return [chat.token_text(token) for token in range(bundle.geometry.vocab)]


def _rows(data: bytes, prompt: Sequence[int], start: int = 0) -> Rows:
    """The rows of ``prompt`` from ``start`` on. A slot may hold more: what was generated after it."""
    file = parse(data)
    if file.tokens[: len(prompt)] != tuple(prompt):
        raise EngineError(f"the saved slot holds {len(file.tokens)} other tokens than the {len(prompt)} asked for")
    count = len(prompt) - start
    arrays = [
        np.frombuffer(data, np.float16, count * row_bytes // 2, offset + start * row_bytes).reshape(count, -1)
        for offset, row_bytes in file.rows
    ]
    layers = len(arrays) // 2
    return Rows(tuple(arrays[:layers]), tuple(arrays[layers:]))
