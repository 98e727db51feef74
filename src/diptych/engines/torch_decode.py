"""Decode on PyTorch through transformers' own model: the slow reference, which shares no code with llama.cpp.

One thread computes; streams take turns there, a step or a chunk of prompt each, in the order in which they ask:

    event loop   decode(a) --step--.            .--step-- decode(b)
    thread                          a . b . a . b . prompt of c . a . b
No batching and no prefix re-use: what it is for is to check the others, and to decode where llama.cpp does not run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from diptych.engines.protocol import Description, LandedKV, Reading
from diptych.engines.room import output_limit
from diptych.engines.sampler import Sampler, check
from diptych.engines.torch import TorchConfig, TorchPrefill, chunk_bounds
from diptych.engines.torch_generate import StockModel
from diptych.errors import CorruptKV, EngineError, WorkerLost
from diptych.models.resolve import ModelBundle
from diptych.types import FinishReason, Prepared, Sampling, TokenChunk

CHUNK_TOKENS: Final = 256
Result = TypeVar("Result")
Floats = NDArray[np.float32]


class TorchDecodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine runs; the names are those of ``[[decode]]``."""

    device: str = "cpu"
    threads: int = 2
    slots: int = 8
    ctx_per_request: int = 2560


class TorchDecode:
    """A VerifiableDecode. ``slots`` bounds how many sequences hold KV at once."""

    def __init__(self, bundle: ModelBundle, config: TorchDecodeConfig) -> None:
        """Loads the weights, which takes a while. Raises ConfigError."""
        self._bundle, self._config = bundle, config
        options = TorchConfig(device=config.device, threads=config.threads, prefix_cache_mib=0)
        prefill = TorchPrefill(bundle, options)
        about = prefill.describe()
        self._form = about.form
        self._dtype = prefill.decoder.dtype
        self._stock = StockModel(prefill)
        self._description = msgspec.structs.replace(
            about,
            engine="torch-decode",
            build=f"{about.build}, transformers {transformers.__version__}",
            slots=config.slots,
            context_tokens=config.ctx_per_request,
        )
        self._slots = asyncio.Semaphore(config.slots)
        self._thread = ThreadPoolExecutor(1, "torch-decode", torch.set_num_threads, (config.threads,))
        self._closed = asyncio.Event()

    def describe(self) -> Description:
        """The engine and the form that it wants: transformers' own, per layer [head, token, dim]."""
        return self._description

    async def decode(
        self,
        request_id: str,  # noqa: ARG002 - of the protocol
        prompt: Sequence[int],
        landed: LandedKV | None,
        sampling: Sampling,
    ) -> AsyncGenerator[TokenChunk, None]:
        """Tokens after ``prompt``; see :class:`diptych.engines.protocol.DecodeEngine`.

        Honours all of ``sampling`` but grammars and schemas, which raise InvalidRequest.
        """
        check(sampling)
        limit = output_limit(prompt, sampling, self._config.ctx_per_request)
        asked = time.monotonic()
        async with self._slots:
            began = time.monotonic()
            sequence, prepared = await self._begun(prompt, landed)
            sampler = Sampler(sampling, self._bundle.end_tokens)
            tokens, first = list(prompt[sequence.length :]), began
            for count in range(1, limit + 1):
                logits = await self._computed(sequence.forward, tokens)
                token = sampler.choose(logits)
                if count == 1:
                    first = time.monotonic()
                    prepared = _measured(prepared, began - asked, first - began)
                finish = self._finish(token, count == limit, sampling)
                engine_ms = (time.monotonic() - began) * 1e3 if finish else None
                last_words = prepared if count == 1 else None
                yield TokenChunk((token,), sampler.logprobs(logits, token), finish, last_words, engine_ms)
                if finish:
                    return
                tokens = [token]

    async def own_reading(self, prompt: Sequence[int]) -> Reading:
        """What transformers makes of ``prompt``, all of it computed here."""
        async with self._slots:
            began = time.monotonic()
            sequence, _ = await self._begun(prompt, None)
            logits = await self._computed(sequence.forward, prompt[sequence.length :])
            prefill_ms = (time.monotonic() - began) * 1e3
            keys, values = await self._computed(sequence.rows)
        return Reading(keys, values, _log_softmax(logits), prefill_ms)

    async def next_logprobs(self, prompt: Sequence[int], landed: LandedKV) -> Floats:
        """Log-probabilities of the token after ``prompt``, from ``landed``."""
        async with self._slots:
            sequence, _ = await self._begun(prompt, landed)
            return _log_softmax(await self._computed(sequence.forward, prompt[-1:]))

    async def ended(self) -> WorkerLost:
        """There is no process of its own that could end."""
        await self._closed.wait()
        return WorkerLost("the decode engine is shut down")

    async def close(self) -> None:
        """Waits for the step under way."""
        self._closed.set()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    def _finish(self, token: int, last: bool, sampling: Sampling) -> FinishReason | None:
        if token in self._bundle.end_tokens and not sampling.ignore_eos:
            return "stop"
        return "length" if last else None

    async def _begun(self, prompt: Sequence[int], landed: LandedKV | None) -> tuple[_Sequence, Prepared]:
        """A sequence that holds all but the prompt's last chunk: landed, or computed here."""
        sequence = _Sequence(self._stock.model, self._config.device)
        if landed is None:
            *before, _ = chunk_bounds(0, len(prompt), CHUNK_TOKENS)
            for start, stop in before:
                await self._computed(sequence.forward, prompt[start:stop])
            return sequence, Prepared()
        if landed.tokens != len(prompt) - 1:
            raise CorruptKV(f"{landed.tokens} tokens were handed over, {len(prompt) - 1} are needed")
        began = time.monotonic()
        keys, values = await asyncio.to_thread(self._admitted, landed)
        await self._computed(sequence.take, keys, values)
        if sequence.length != landed.tokens:
            raise CorruptKV(f"transformers took over {sequence.length} tokens of {landed.tokens}")
        admit_ms = (time.monotonic() - began) * 1e3
        return sequence, Prepared(landed.tokens, self._form.region_bytes(landed.tokens), admit_ms=admit_ms)

    def _admitted(self, landed: LandedKV) -> tuple[torch.Tensor, torch.Tensor]:
        """The KV in memory of our own, [layer, head, token, dim], after its proof."""
        g = self._bundle.geometry
        keys, values = (
            torch.empty(g.layers, g.kv_heads, landed.tokens, dim, dtype=self._dtype)
            for dim in (g.head_dim_k, g.head_dim_v)
        )
        landed.admit([layer.view(torch.uint8).numpy() for plane in (keys, values) for layer in plane])
        return keys, values

    async def _computed(self, call: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)


class _Sequence:
    """One sequence's KV in a cache of transformers'."""

    def __init__(self, model: Any, device: str) -> None:
        self._model, self._device = model, device
        self._cache = transformers.DynamicCache()

    @property
    def length(self) -> int:
        """Tokens whose KV it holds."""
        return int(self._cache.get_seq_length())

    def take(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Begins with KV that was computed elsewhere."""
        for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
            self._cache.update(key[None].to(self._device), value[None].to(self._device), layer)

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int]) -> Floats:
        """Computes ``tokens`` behind what it holds: logits [vocab] after the last. Raises EngineError."""
        ids = torch.tensor([list(tokens)], device=self._device)
        found = self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        logits: Floats = found.logits[0, -1].float().cpu().numpy()
        if not np.isfinite(logits).all():
            raise EngineError("the model's logits are not finite")
        return logits

    def rows(self) -> tuple[tuple[Floats, ...], tuple[Floats, ...]]:
        """K and V a layer as [token, head * dim]."""
        layers = [(layer.keys, layer.values) for layer in self._cache.layers]
        keys, values = zip(*layers, strict=True)
        return tuple(map(_rows, keys)), tuple(map(_rows, values))


def _rows(layer: torch.Tensor) -> Floats:
    rows: Floats = layer[0].transpose(0, 1).flatten(1).float().cpu().numpy()
    return rows


def _measured(prepared: Prepared, wait_s: float, first_s: float) -> Prepared:
    """With what it took: a landed prompt's first token is a step of its own."""
    read_ms = 0.0 if prepared.kv_tokens else first_s * 1e3
    return msgspec.structs.replace(prepared, slot_wait_ms=wait_s * 1e3, prefill_ms=read_ms)


def _log_softmax(logits: Floats) -> Floats:
    wide = logits.astype(np.float64)
    wide -= wide.max()
    found: Floats = (wide - np.log(np.exp(wide).sum())).astype(np.float32)
    return found
