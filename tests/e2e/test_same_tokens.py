"""The pair says what decode alone says: one after another, and many at once in a landing area that is too small."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from diptych.fleet import canary_prompts
from diptych.models.weights import DEFAULT_MODEL
from diptych.service import Service
from support.inprocess import ALONE, PAIR, Output, generate, running_service, settings_for
from support.likeness import same

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

TOGETHER = 64


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real() -> AsyncGenerator[Service, None]:
    """The default model; room for two and a half of its longest requests in the landing area."""
    settings = settings_for(DEFAULT_MODEL, landing_mb=36, ctx_per_request=640)
    async with running_service(settings) as service:
        yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tiny(tiny_gguf: Path) -> AsyncGenerator[Service, None]:
    async with running_service(settings_for(str(tiny_gguf), landing_mb=2)) as service:
        yield service


def prompts(service: Service, lengths: Sequence[int], seed: int) -> list[tuple[int, ...]]:
    chat = service.models()[0].chat
    return [canary_prompts.raw_canary(chat, tokens, seed + i) for i, tokens in enumerate(lengths)]


def handed_over(output: Output, prompt: Sequence[int]) -> None:
    record = output.record
    assert (record.status, record.placement, record.recomputed) == ("finished", "disaggregated", None)
    assert record.prompt_tokens == len(prompt)
    assert record.kv_tokens == len(prompt) - 1
    assert record.kv_bytes > 0


async def greedy(service: Service, count: int, output_tokens: int) -> str:
    """The share of prompts whose outputs are equal to the end; fails where one differs without a near-tie."""
    lengths = [24 + 531 * i // count for i in range(count)]
    equal = 0
    for prompt in prompts(service, lengths, 40_000):
        alone = await generate(service, prompt, output_tokens, ALONE, gaps=True)
        assert alone.record.kv_tokens == 0
        pair = await generate(service, prompt, output_tokens, PAIR)
        handed_over(pair, prompt)
        equal += same(alone.reference, pair.tokens)
    return f"{equal} of {count} greedy outputs of {output_tokens} tokens are equal to the end"


async def together(service: Service, rounds: int, output_tokens: int, longest: int) -> str:
    """All prompts at once through the pair, each against itself alone; the same prompts in every round."""
    asked = prompts(service, [16 + (longest - 16) * (i * 37 % TOGETHER) // TOGETHER for i in range(TOGETHER)], 50_000)
    assert len(set(asked)) == TOGETHER
    form = service.peers["decode-0"].welcome.description.form
    landing_mb = service.settings.decode[0].landing_mb
    assert sum(form.region_bytes(len(prompt) - 1) for prompt in asked) > 2 * (landing_mb << 20)
    references = [(await generate(service, prompt, output_tokens, ALONE, gaps=True)).reference for prompt in asked]
    equal = 0
    for _ in range(rounds):
        outputs = await asyncio.gather(*(generate(service, prompt, output_tokens, PAIR) for prompt in asked))
        for prompt, reference, output in zip(asked, references, outputs, strict=True):
            handed_over(output, prompt)
            equal += same(reference, output.tokens)
    assert not service.recomputed
    return f"{equal} of {rounds * TOGETHER} outputs beside {TOGETHER - 1} others are equal to the end"


async def test_greedy(real: Service) -> None:
    print(await greedy(real, 6, 24))


async def test_64_at_once(tiny: Service) -> None:
    print(await together(tiny, rounds=2, output_tokens=32, longest=400))


async def test_router_mixes_both_ways(tiny: Service) -> None:
    """Placed by prediction, some here and some there, nothing changes either."""
    asked = prompts(tiny, [12, 600, 14, 900, 1200, 16, 700, 13] * 3, 60_000)
    references = [(await generate(tiny, prompt, 24, ALONE, gaps=True)).reference for prompt in asked]
    outputs = await asyncio.gather(*(generate(tiny, prompt, 24, None) for prompt in asked))
    for prompt, reference, output in zip(asked, references, outputs, strict=True):
        same(reference, output.tokens)
        if output.record.placement == "disaggregated":
            handed_over(output, prompt)
    assert any(output.record.placement == "disaggregated" for output in outputs)


@pytest.mark.parametrize("tokens", [2, 3, 64, 65, 257, 2558, 2559])
async def test_every_length(tiny: Service, tokens: int) -> None:
    """From one token handed over to all that the context holds but one."""
    (prompt,) = prompts(tiny, [tokens], 70_000 + tokens)
    room = min(8, 2560 - tokens)
    alone = await generate(tiny, prompt, room, ALONE, gaps=True)
    pair = await generate(tiny, prompt, room, PAIR)
    handed_over(pair, prompt)
    same(alone.reference, pair.tokens)


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_greedy_in_full(real: Service, report: list[str]) -> None:
    report.append(await greedy(real, 16, 64))


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_64_at_once_in_full(real: Service, report: list[str]) -> None:
    report.append(await together(real, rounds=10, output_tokens=16, longest=300))


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_64_at_once_tiny_in_full(tiny: Service, report: list[str]) -> None:
    report.append(await together(tiny, rounds=10, output_tokens=48, longest=400))
