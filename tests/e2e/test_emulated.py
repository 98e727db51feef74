"""The whole service as Trainium2 -> CS-3: real processes and handoffs, text that every byte of the KV decides."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from diptych import config
from diptych.config import DecodeSettings, FaultSettings, FleetSettings, HandoffSettings, ModelSettings, PrefillSettings
from diptych.engines.emulated.decode import EmulatedDecode
from diptych.engines.emulated.prefill import EmulatedPrefill
from diptych.errors import EngineError
from diptych.fleet import canary_prompts
from diptych.fleet.decode import DecodeWorker
from diptych.fleet.prefill import PrefillWorker
from diptych.handoff.landing import Landing
from diptych.service import Service
from diptych.serving import find_model
from support.inprocess import ALONE, PAIR, SECRET, Output, Workers, generate, running_service, service_over

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

SPEED = 20.0
PREFILL = PrefillSettings(engine="emulated", chip="trainium2", speed=SPEED, prefix_cache_mb=0)
DECODE = DecodeSettings(engine="emulated", chip="cs3", speed=SPEED, landing_mb=16)
OUTPUT = 40


def settings_of(gguf: Path, prefill: str | None = None, decode: str | None = None) -> FleetSettings:
    """Both chips, with what goes wrong on each."""
    return FleetSettings(
        model=ModelSettings(source=str(gguf)),
        prefill=(msgspec.structs.replace(PREFILL, fault=prefill),),
        decode=(msgspec.structs.replace(DECODE, fault=decode),),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chips(tiny_gguf: Path) -> AsyncGenerator[Service, None]:
    async with running_service(settings_of(tiny_gguf)) as service:
        yield service


@asynccontextmanager
async def here(settings: FleetSettings, folder: Path, faults: FaultSettings | None = None) -> AsyncGenerator[Service]:
    """Both workers on this loop, with a transport that does ``faults``; canaries are left alone."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="diptych-test-") as shared:
        workers = Workers(find_model(settings), settings, Path(shared))
        engine = EmulatedDecode(workers.bundle, settings.decode[0])
        workers.landing = Landing(Path(shared), settings.decode[0].landing_mb << 20, receiver="decode-0")
        decode = DecodeWorker(engine, workers.landing, settings.decode[0], settings.deadlines, SECRET)
        reads, on_the_way = settings.prefill[0], HandoffSettings(fault=faults)
        prefill = PrefillWorker(EmulatedPrefill(workers.bundle, reads), reads, settings.deadlines, SECRET, on_the_way)
        for name, worker in (("decode-0", decode), ("prefill-0", prefill)):
            workers._tasks.append(asyncio.create_task(worker.serve(workers.addresses[name], workers._stop)))
        try:
            async with service_over(workers, folder) as service:
                yield service
                assert workers.landing.used_bytes == 0, "every region was freed"
        finally:
            await workers.close()


def prompt_of(service: Service, tokens: int, seed: int) -> tuple[int, ...]:
    return canary_prompts.raw_canary(service.models()[0].chat, tokens, seed)


def handed_over(output: Output, tokens: int) -> None:
    assert (output.record.placement, output.record.recomputed) == ("disaggregated", None)
    assert output.record.kv_tokens == tokens - 1
    assert output.record.kv_bytes == (tokens - 1) * 512


@pytest.mark.parametrize("tokens", [2, 3, 64, 257, 900, 2559])
async def test_the_pair_says_exactly_what_decode_alone_says(chips: Service, tokens: int) -> None:
    prompt = prompt_of(chips, tokens, tokens)
    room = min(OUTPUT, 2560 - tokens)
    alone = await generate(chips, prompt, room, ALONE, gaps=True)
    assert alone.record.kv_tokens == 0
    pair = await generate(chips, prompt, room, PAIR, gaps=True)
    handed_over(pair, tokens)
    assert pair.tokens == alone.tokens
    assert (await generate(chips, prompt, room, ALONE)).tokens == alone.tokens, "a cached prefix changes nothing"


async def test_one_token_of_difference_in_the_prompt_changes_all(chips: Service) -> None:
    prompt = prompt_of(chips, 200, 1)
    right = await generate(chips, prompt, OUTPUT, PAIR)
    for at in (0, 100, 198, 199):
        other = (*prompt[:at], prompt[at] + 1, *prompt[at + 1 :])
        said = (await generate(chips, other, OUTPUT, PAIR)).tokens
        assert sum(a == b for a, b in zip(said, right.tokens, strict=True)) < OUTPUT // 3


async def test_64_at_once(chips: Service) -> None:
    asked = [prompt_of(chips, 20 + 11 * i, 300 + i) for i in range(64)]
    alone = [(await generate(chips, prompt, OUTPUT, ALONE)).tokens for prompt in asked]
    outputs = await asyncio.gather(*(generate(chips, prompt, OUTPUT, PAIR) for prompt in asked))
    for prompt, right, output in zip(asked, alone, outputs, strict=True):
        handed_over(output, len(prompt))
        assert output.tokens == right
    assert not chips.recomputed


async def test_a_byte_flipped_on_the_way_is_recomputed(tiny_gguf: Path, tmp_path: Path) -> None:
    async with here(settings_of(tiny_gguf), tmp_path, FaultSettings(seed=4, flip=0.02)) as service:
        recomputed = 0
        for seed in range(30):
            prompt = prompt_of(service, 300, seed)
            alone = await generate(service, prompt, OUTPUT, ALONE)
            output = await generate(service, prompt, OUTPUT, PAIR)
            assert output.tokens == alone.tokens
            assert output.record.recomputed in (None, "corrupt_kv")
            recomputed += output.record.recomputed is not None
        assert 0 < recomputed == service.recomputed["corrupt_kv"]


async def test_a_refused_admission_is_recomputed(tiny_gguf: Path, tmp_path: Path) -> None:
    async with here(settings_of(tiny_gguf, decode="refuse_admission=2"), tmp_path) as service:
        prompt = prompt_of(service, 300, 1)
        alone = await generate(service, prompt, OUTPUT, ALONE)
        first, second = [await generate(service, prompt, OUTPUT, PAIR) for _ in range(2)]
        assert first.tokens == second.tokens == alone.tokens
        assert (first.record.recomputed, second.record.recomputed) == (None, "refused_on_purpose")
        assert service.recomputed == {"refused_on_purpose": 1}


async def test_a_byte_that_no_check_sees_gives_another_text(tiny_gguf: Path, tmp_path: Path) -> None:
    async with here(settings_of(tiny_gguf, decode="wrong_kv=2"), tmp_path) as service:
        prompt = prompt_of(service, 300, 1)
        alone = await generate(service, prompt, OUTPUT, ALONE)
        right, wrong = [await generate(service, prompt, OUTPUT, PAIR) for _ in range(2)]
        assert right.tokens == alone.tokens
        assert (wrong.record.recomputed, wrong.record.kv_tokens) == (None, 299)
        assert sum(a == b for a, b in zip(wrong.tokens, alone.tokens, strict=True)) < OUTPUT // 3


async def test_a_prefill_chip_with_wrong_kv_does_not_qualify(tiny_gguf: Path, tmp_path: Path) -> None:
    async with here(settings_of(tiny_gguf, prefill="wrong_kv"), tmp_path) as service:
        assert service.router.links == {}
        output = await generate(service, prompt_of(service, 300, 1), OUTPUT, None)
        assert output.record.placement == "aggregated"


async def test_a_stream_that_fails_ends_with_its_reason(tiny_gguf: Path, tmp_path: Path) -> None:
    settings = settings_of(tiny_gguf, decode="fail_after_tokens=20")
    async with here(settings, tmp_path) as service:
        with pytest.raises(EngineError, match="failed on purpose after 20 tokens"):
            await generate(service, prompt_of(service, 30, 1), OUTPUT, PAIR)


async def test_a_prefill_that_fails_or_stalls_is_read_by_decode(tiny_gguf: Path, tmp_path: Path) -> None:
    for prefill, reason in (("fail_after_tokens=1600", "prefill_failed"), ("stall_after_tokens=1600", "deadline")):
        settings = msgspec.structs.replace(
            settings_of(tiny_gguf, prefill=prefill), deadlines=config.Deadlines(prefill_s=5.0)
        )
        async with here(settings, tmp_path / reason) as service:
            prompt = prompt_of(service, 2000, 1)
            alone = await generate(service, prompt, OUTPUT, ALONE)
            output = await generate(service, prompt, OUTPUT, PAIR)
            assert output.tokens == alone.tokens
            assert output.record.recomputed == reason
