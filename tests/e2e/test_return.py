"""An answer's KV goes back to the prefill worker: the next turn starts from it, and says the same as without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from diptych.config import Deadlines, FaultSettings, FleetSettings, HandoffSettings
from diptych.engines.prefix_cache import BLOCK_TOKENS
from diptych.fleet import canary_prompts
from diptych.models.weights import DEFAULT_MODEL
from diptych.service import Service
from support.inprocess import ALONE, PAIR, generate, running_service, settings_for
from support.likeness import same

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

PROMPT, ANSWER, NEXT = 100, 200, 40


def returning(source: str, *transports: str, faults: FaultSettings | None = None) -> FleetSettings:
    handoff = HandoffSettings(transports=transports or ("shm",), returns=True, fault=faults)
    patient = Deadlines(lost_after_s=200.0)
    return msgspec.structs.replace(settings_for(source, landing_mb=64), handoff=handoff, deadlines=patient)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tiny(tiny_gguf: Path) -> AsyncGenerator[Service, None]:
    async with running_service(returning(str(tiny_gguf))) as service:
        yield service


async def two_turns(service: Service, seed: int) -> tuple[int, int]:
    """(tokens of turn 1 but for the last, tokens that turn 2 found in the prefill worker's cache)."""
    chat = service.models()[0].chat
    first = canary_prompts.raw_canary(chat, PROMPT, seed)
    answer = await generate(service, first, ANSWER, PAIR)
    assert answer.record.cached_tokens == 0
    await asyncio.wait_for(service.returned.settled(), 240)
    second = (*first, *answer.tokens, *canary_prompts.raw_canary(chat, NEXT, seed + 1))
    alone = await generate(service, second, 16, ALONE, gaps=True)
    pair = await generate(service, second, 16, PAIR)
    assert (pair.record.recomputed, pair.record.kv_tokens) == (None, len(second) - 1)
    same(alone.reference, pair.tokens)
    return len(first) + len(answer.tokens) - 1, pair.record.cached_tokens


async def test_the_next_turn_starts_from_the_answer(tiny: Service) -> None:
    for seed in (94_000, 94_010, 94_020):
        kept = tiny.returned.counts["kept"]
        held, cached = await two_turns(tiny, seed)
        assert cached == held // BLOCK_TOKENS * BLOCK_TOKENS
        assert cached > PROMPT + BLOCK_TOKENS, "blocks of the answer, not of the prompt alone"
        assert tiny.returned.counts["kept"] == kept + 1
        assert tiny.health()["returned"]["kept"] == kept + 1


async def test_the_default_model() -> None:
    async with running_service(returning(DEFAULT_MODEL)) as service:
        held, cached = await two_turns(service, 94_100)
        assert cached == held // BLOCK_TOKENS * BLOCK_TOKENS


async def test_over_tcp_and_a_short_answer(tiny_gguf: Path) -> None:
    async with running_service(returning(str(tiny_gguf), "tcp")) as service:
        held, cached = await two_turns(service, 94_200)
        assert cached == held // BLOCK_TOKENS * BLOCK_TOKENS
        await service.returned.settled()
        needless = service.returned.counts["needless"]
        prompt = canary_prompts.raw_canary(service.models()[0].chat, 70, 94_250)
        await generate(service, prompt, 3, PAIR)
        await service.returned.settled()
        assert service.returned.counts["needless"] == needless + 1, "the prompt's block is held, the answer fills none"


async def test_what_goes_wrong_on_the_way_back_is_not_kept(tiny_gguf: Path) -> None:
    """Whatever alters the KV spares canaries and nothing else: recomputed on the way there, dropped on the way back."""
    faults = FaultSettings(seed=3, flip=0.6)
    async with running_service(returning(str(tiny_gguf), faults=faults)) as service:
        chat = service.models()[0].chat
        prompt = canary_prompts.raw_canary(chat, PROMPT, 94_300)
        alone = await generate(service, prompt, ANSWER, ALONE, gaps=True)
        for _ in range(3):
            output = await generate(service, prompt, ANSWER, PAIR)
            assert output.record.recomputed == "corrupt_kv"
            same(alone.reference, output.tokens)
            await asyncio.wait_for(service.returned.settled(), 240)
        assert set(service.returned.counts) == {"corrupt_kv"}
        assert output.record.cached_tokens < PROMPT


async def test_a_running_stream_is_left_alone(tiny: Service) -> None:
    """Saving a slot holds up the server, so the way back waits until nothing runs."""
    chat = tiny.models()[0].chat
    long, short = (canary_prompts.raw_canary(chat, 80, 94_400 + i) for i in range(2))
    kept = tiny.returned.counts["kept"]
    running = asyncio.create_task(generate(tiny, long, 1500, PAIR))
    while not any(flight.decoding for flight in tiny.router.decode["decode-0"].flying.values()):
        await asyncio.sleep(0.005)
    await generate(tiny, short, ANSWER, PAIR)
    assert not running.done()
    assert tiny.returned.counts["kept"] == kept
    await running
    ended = time.monotonic()
    await tiny.returned.settled()
    assert tiny.returned.counts.keys() <= {"kept", "needless"}, "neither was given up"
    print(f"both were done with {time.monotonic() - ended:.2f} s after the last stream's end")
