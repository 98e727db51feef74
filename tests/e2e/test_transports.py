"""The fleet over every transport: what is handed over by network, what goes wrong on the way, and who may not meet."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from diptych.config import Deadlines, FaultSettings, FleetSettings, HandoffSettings, PrefillSettings
from diptych.engines.torch import TorchConfig, TorchPrefill
from diptych.fleet import canary_prompts
from diptych.handoff.transports import door
from diptych.service import Service
from diptych.serving import find_model
from support.inprocess import ALONE, PAIR, Output, Workers, generate, running_service, service_over, settings_for
from support.likeness import Reference, same

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

OUTPUT = 16
LENGTHS = (2, 33, 64, 65, 130, 257, 300, 600, 900, 48, 520, 77)
INSTALLED = {
    "nixl": "nixl_cu12",
    "mooncake": "mooncake",
}


def over(gguf: Path, *transports: str, **more: Any) -> FleetSettings:
    settings = settings_for(str(gguf), landing_mb=4)
    return msgspec.structs.replace(settings, handoff=HandoffSettings(transports=transports), **more)


def prompts(service: Service, lengths: Sequence[int], seed: int) -> list[tuple[int, ...]]:
    chat = service.models()[0].chat
    return [canary_prompts.raw_canary(chat, tokens, seed + i) for i, tokens in enumerate(lengths)]


async def references(service: Service, asked: Sequence[tuple[int, ...]]) -> list[Reference]:
    return [(await generate(service, prompt, OUTPUT, ALONE, gaps=True)).reference for prompt in asked]


async def pairs(service: Service, asked: Sequence[tuple[int, ...]]) -> list[Output]:
    return await asyncio.gather(*(generate(service, prompt, OUTPUT, PAIR) for prompt in asked))


@pytest.mark.parametrize("transport", ["tcp", "nixl", "mooncake"])
async def test_different_prompts_at_once(tiny_gguf: Path, transport: str) -> None:
    """Workers in processes of their own, one transport and no other: nothing can have come another way."""
    package = INSTALLED.get(transport)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    async with running_service(over(tiny_gguf, transport)) as service:
        asked = prompts(service, LENGTHS * 2, 80_000)
        expected = await references(service, asked)
        for reference, prompt, output in zip(expected, asked, await pairs(service, asked), strict=True):
            same(reference, output.tokens)
            record = output.record
            assert (record.placement, record.recomputed, record.transport) == ("disaggregated", None, transport)
            assert record.kv_tokens == len(prompt) - 1
        assert not service.recomputed


FAULTS = {
    "drop": (FaultSettings(seed=1, drop=0.05), {"corrupt_kv"}),
    "flip": (FaultSettings(seed=2, flip=0.05), {"corrupt_kv"}),
    "truncate": (FaultSettings(seed=3, truncate=0.05), {"corrupt_kv"}),
    "cut": (FaultSettings(seed=4, cut=0.05), {"transport_lost"}),
    "stall": (FaultSettings(seed=5, stall=0.04, stall_s=8.0), {"deadline", "stale_write"}),
    "all": (
        FaultSettings(seed=6, drop=0.01, flip=0.01, cut=0.01, duplicate=0.1, reorder=0.1, delay=0.05),
        {"corrupt_kv", "transport_lost"},
    ),
}
PATIENT = Deadlines(lost_after_s=200.0)  # workers and service share a loop here, and may be stopped together
BRISK = Deadlines(lost_after_s=200.0, prefill_s=4.0)


class Faulty:
    """One decode worker with every door open, for prefill workers that differ in how their KV travels alone."""

    def __init__(self, gguf: Path, folder: Path) -> None:
        self.settings = msgspec.structs.replace(over(gguf, "shm", "tcp"), deadlines=PATIENT)
        self.decode = Workers(find_model(self.settings), self.settings, folder)
        self.engine = TorchPrefill(self.decode.bundle, TorchConfig(threads=2))
        self.expected: list[Reference] = []

    @asynccontextmanager
    async def service(
        self, transport: str, faults: FaultSettings | None = None, deadlines: Deadlines = PATIENT
    ) -> AsyncGenerator[Service, None]:
        handoff = HandoffSettings(transports=(transport,), fault=faults)
        settings = msgspec.structs.replace(self.settings, handoff=handoff, deadlines=deadlines)
        prefill = Workers(self.decode.bundle, settings, self.decode.folder)
        prefill.start_prefill(self.engine)
        try:
            async with service_over(prefill) as service:
                yield service
        finally:
            await prefill.close()

    async def asked(self, service: Service) -> list[tuple[int, ...]]:
        asked = prompts(service, LENGTHS, 81_000)
        self.expected = self.expected or await references(service, asked)
        return asked

    async def all_over(self) -> None:
        """Every handoff has ended in one way, and nothing is held."""
        landing = self.decode.landing
        async with asyncio.timeout(200):
            while landing.used_bytes:
                await asyncio.sleep(0.05)
        over_ = sum(count for name, count in landing.counts.items() if name != "offered")
        assert landing.counts["offered"] == over_, landing.counts


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def faulty(tiny_gguf: Path) -> AsyncGenerator[Faulty, None]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="diptych-test-") as folder:
        faulty = Faulty(tiny_gguf, Path(folder))
        try:
            await faulty.decode.start_decode()
            yield faulty
        finally:
            await faulty.decode.close()


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("kind", FAULTS)
async def test_what_goes_wrong_on_the_way_is_recomputed(faulty: Faulty, transport: str, kind: str) -> None:
    """By configuration: each handoff is exact or a counted recompute, the answer is right, and nothing hangs."""
    faults, reasons = FAULTS[kind]
    async with faulty.service(transport, faults, BRISK if faults.stall else PATIENT) as service:
        asked = await faulty.asked(service)
        admitted = faulty.decode.landing.counts["admitted"]
        async with asyncio.timeout(240):
            outputs = await pairs(service, asked)
        recomputed = []
        for reference, prompt, output in zip(faulty.expected, asked, outputs, strict=True):
            same(reference, output.tokens)
            record = output.record
            assert record.placement == "disaggregated"
            assert record.kv_tokens == (0 if record.recomputed else len(prompt) - 1)
            recomputed += [record.recomputed] if record.recomputed else []
        assert recomputed, "the seed does some harm"
        assert set(recomputed) <= reasons
        assert len(recomputed) < len(asked), "and leaves some alone"
        assert service.recomputed.total() == len(recomputed)
        await faulty.all_over()
        assert faulty.decode.landing.counts["admitted"] - admitted == len(asked) - len(recomputed)


async def test_a_receiver_that_answers_nobody(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control plane lives, the door does not: the prefill worker's loop goes on meanwhile."""
    async with faulty.service("tcp", deadlines=BRISK) as service:
        prompt = (await faulty.asked(service))[4]
        monkeypatch.setattr(door.SocketDoor, "_take", lambda door, parts: None)
        waiting = asyncio.create_task(generate(service, prompt, OUTPUT, PAIR))
        ticks = 0
        while not waiting.done():
            await asyncio.sleep(0.01)
            ticks += 1
        output = await waiting
        assert output.record.recomputed == "deadline"
        same(faulty.expected[4], output.tokens)
        assert ticks > 40, "the loop, which the prefill worker shares here, went on"
        monkeypatch.undo()
        again = await generate(service, prompt, OUTPUT, PAIR)
        assert (again.record.recomputed, again.record.kv_tokens) == (None, len(prompt) - 1)


async def test_a_pair_that_shares_none(tiny_gguf: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told so at start-up, by name, and serves as decode alone; the other pair is used."""
    prefill = (PrefillSettings(id="near", transports=("shm",)), PrefillSettings(id="far", transports=("tcp",)))
    settings = over(tiny_gguf, "shm", prefill=prefill)
    with caplog.at_level(logging.ERROR, "diptych.startup"):
        async with running_service(settings) as service:
            assert list(service.router.links) == [("near", "decode-0")]
    (told,) = [record.getMessage() for record in caplog.records if record.name == "diptych.startup"]
    assert told == "the pair far -> decode-0 is not used: no transport in common: one end has tcp, the other shm"


async def test_the_best_in_common(tiny_gguf: Path) -> None:
    """The prefill worker's order decides among those that the decode worker has."""
    settings = over(tiny_gguf, "shm", "tcp", prefill=(PrefillSettings(transports=("tcp", "shm")),))
    async with running_service(settings) as service:
        (prompt,) = prompts(service, [70], 83_000)
        assert (await generate(service, prompt, OUTPUT, PAIR)).record.transport == "tcp"
