"""Decode on PyTorch: what it says alone, from KV that landed, and beside others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.engines.protocol import Reading
from diptych.engines.torch_decode import TorchDecode, TorchDecodeConfig
from diptych.errors import ContextExceeded, CorruptKV, InvalidRequest
from diptych.models.resolve import ModelBundle
from diptych.types import Sampling, TokenChunk

TOKENS = 12


@asynccontextmanager
async def running(bundle: ModelBundle, **changes: Any) -> AsyncGenerator[TorchDecode, None]:
    engine = TorchDecode(bundle, TorchDecodeConfig(**({"threads": 1, "ctx_per_request": 400, "slots": 2} | changes)))
    try:
        yield engine
    finally:
        await engine.close()


class Landed:
    """What the engine read itself, handed back in its own form."""

    def __init__(self, engine: TorchDecode, reading: Reading, tokens: int) -> None:
        self.tokens = tokens
        geometry = engine.describe().form.geometry
        self._heads, self._rows = geometry.kv_heads, [*reading.keys, *reading.values]

    def admit(self, blocks: Sequence[NDArray[np.uint8]]) -> None:
        for block, rows in zip(blocks, self._rows, strict=True):
            by_head = rows[: self.tokens].reshape(self.tokens, self._heads, -1).transpose(1, 0, 2)
            bits = np.ascontiguousarray(by_head, np.float32).view(np.uint32) >> 16
            block[...] = bits.astype(np.uint16).view(np.uint8).reshape(block.shape)


async def chunks(engine: TorchDecode, prompt: Sequence[int], landed: Any = None, **more: Any) -> list[TokenChunk]:
    sampling = Sampling(**({"max_tokens": TOKENS, "temperature": 0.0, "ignore_eos": True} | more))
    return [chunk async for chunk in engine.decode("r", prompt, landed, sampling)]


def tokens(found: Sequence[TokenChunk]) -> list[int]:
    return [token for chunk in found for token in chunk.tokens]


def some_prompt(bundle: ModelBundle, length: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(3, bundle.geometry.vocab, length).tolist()


async def test_landed_kv_says_what_its_own_reading_says(tiny_bundles: dict[str, ModelBundle]) -> None:
    for bundle in tiny_bundles.values():
        async with running(bundle) as engine:
            prompt = some_prompt(bundle, 300)  # longer than a chunk
            alone = await chunks(engine, prompt, logprobs=2)
            reading = await engine.own_reading(prompt)
            assert reading.keys[0].shape == (300, bundle.geometry.kv_heads * bundle.geometry.head_dim_k)
            landed = Landed(engine, reading, 299)
            assert np.abs(await engine.next_logprobs(prompt, landed) - reading.logprobs).max() < 0.1
            handed = await chunks(engine, prompt, landed, logprobs=2)
            leads = [chunk.logprobs[0].top[0][1] - chunk.logprobs[0].top[1][1] for chunk in alone]
            parted = next(
                (i for i, (a, b) in enumerate(zip(tokens(alone), tokens(handed), strict=True)) if a != b), None
            )
            assert parted is None or leads[parted] < 0.5
            assert handed[0].prepared is not None
            assert handed[0].prepared.kv_tokens == 299
            assert handed[0].prepared.kv_bytes == engine.describe().form.region_bytes(299)
            assert alone[0].prepared is not None
            assert (alone[0].prepared.kv_tokens, alone[0].prepared.prefill_ms > 0) == (0, True)
            assert [chunk.finish for chunk in handed] == [None] * (TOKENS - 1) + ["length"]
            assert handed[-1].engine_ms


async def test_too_few_tokens_landed(tiny_bundles: dict[str, ModelBundle]) -> None:
    bundle = tiny_bundles["llama"]
    async with running(bundle) as engine:
        prompt = some_prompt(bundle, 40)
        landed = Landed(engine, await engine.own_reading(prompt), 38)
        with pytest.raises(CorruptKV, match="38 tokens were handed over, 39 are needed"):
            await chunks(engine, prompt, landed)


async def test_many_at_once_say_what_each_says_alone(tiny_bundles: dict[str, ModelBundle]) -> None:
    """More than there are slots; some are given up on the way."""
    bundle = tiny_bundles["qwen2"]
    async with running(bundle) as engine:
        prompts = [some_prompt(bundle, 5 + 7 * i, i) for i in range(6)]
        alone = [tokens(await chunks(engine, prompt)) for prompt in prompts]

        async def given_up(prompt: Sequence[int]) -> None:
            stream = engine.decode("r", prompt, None, Sampling(max_tokens=50, ignore_eos=True))
            async with aclosing(stream) as some:
                await anext(some)

        *together, _ = await asyncio.gather(*(chunks(engine, p) for p in prompts), given_up(prompts[0]))
        assert [tokens(found) for found in together] == alone


async def test_a_seed_repeats_and_an_end_token_ends(tiny_bundles: dict[str, ModelBundle]) -> None:
    bundle = tiny_bundles["llama"]
    async with running(bundle) as engine:
        prompt = some_prompt(bundle, 20)
        runs = [tokens(await chunks(engine, prompt, temperature=1.0, seed=seed)) for seed in (3, 3, 4)]
        assert runs[0] == runs[1] != runs[2]
        first = tokens(await chunks(engine, prompt))[0]
        engine._bundle = msgspec.structs.replace(bundle, end_tokens=(first,))
        (only,) = await chunks(engine, prompt, ignore_eos=False)
        assert (only.tokens, only.finish) == ((first,), "stop")
        assert first not in tokens(await chunks(engine, prompt))


async def test_what_it_refuses(tiny_bundles: dict[str, ModelBundle]) -> None:
    bundle = tiny_bundles["llama"]
    async with running(bundle, ctx_per_request=50) as engine:
        with pytest.raises(InvalidRequest, match="grammar or schema"):
            await chunks(engine, [5, 6], json_schema="{}")
        with pytest.raises(InvalidRequest):
            await chunks(engine, [])
        with pytest.raises(ContextExceeded, match="has room for 49"):
            await chunks(engine, some_prompt(bundle, 50))
        assert len(tokens(await chunks(engine, some_prompt(bundle, 45)))) == 5
