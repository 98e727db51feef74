"""Every pair of {torch, llamacpp} x {torch, llamacpp}, by configuration: qualified, handed over, and right."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from diptych.config import Deadlines, DecodeSettings, FleetSettings, PrefillSettings
from diptych.fleet import canary_prompts
from diptych.models.weights import DEFAULT_MODEL
from diptych.routing.router import Way
from diptych.service import Service
from support.inprocess import generate, running_service, settings_for
from support.likeness import same

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PREFILL = {"p-torch": "torch", "p-llamacpp": "llamacpp"}
DECODE = {"d-torch": "torch", "d-llamacpp": "llamacpp"}
OUTPUT = 16


def all_engines(source: str, context_tokens: int) -> FleetSettings:
    """One fleet with each engine in each place, so that every pair is one of its links."""
    prefill = [PrefillSettings(id=name, engine=engine, active_prompts=2) for name, engine in PREFILL.items()]
    decode = [
        DecodeSettings(id=name, engine=engine, slots=2, ctx_per_request=context_tokens, landing_mb=32)
        for name, engine in DECODE.items()
    ]
    patient = Deadlines(lost_after_s=200.0, start_s=300.0)  # four engines on one machine take their time
    return msgspec.structs.replace(
        settings_for(source), prefill=tuple(prefill), decode=tuple(decode), deadlines=patient
    )


async def every_pair(service: Service, lengths: list[int]) -> None:
    assert set(service.router.links) == {(p, d) for p in PREFILL for d in DECODE}
    chat = service.models()[0].chat
    for decode in DECODE:
        asked = [canary_prompts.raw_canary(chat, tokens, 90_000 + tokens) for tokens in lengths]
        alone = [await generate(service, prompt, OUTPUT, Way(decode, None), gaps=True) for prompt in asked]
        for prefill in PREFILL:
            way = Way(decode, prefill)
            outputs = await asyncio.gather(*(generate(service, prompt, OUTPUT, way) for prompt in asked))
            for prompt, reference, output in zip(asked, alone, outputs, strict=True):
                record = output.record
                assert (record.prefill, record.decode, record.recomputed) == (prefill, decode, None)
                assert record.kv_tokens == len(prompt) - 1 > 0
                same(reference.reference, output.tokens)
    assert not service.recomputed


async def test_tiny(tiny_gguf: Path) -> None:
    async with running_service(all_engines(str(tiny_gguf), 1024)) as service:
        await every_pair(service, [2, 40, 300, 700])


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_the_default_model() -> None:
    async with running_service(all_engines(DEFAULT_MODEL, 1024)) as service:
        await every_pair(service, [200])
