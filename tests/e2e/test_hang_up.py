"""A client that leaves frees what it held: its slot while decoding, the engine while its prompt is read."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from diptych.engines.torch import TorchConfig, TorchPrefill
from diptych.fleet import canary_prompts
from diptych.service import Service
from diptych.serving import find_model
from diptych.types import Request, Sampling
from support.fleet import Fleet, open_files, proven, until
from support.inprocess import ALONE, PAIR, Workers, generate, service_over, settings_for
from support.load import ask, chat_body, question
from support.sabotage import Sabotaged

pytestmark = pytest.mark.e2e

SLOTS = 8
LONG = 2300
WITHIN_S = 1.0


def opened(stack: ExitStack, url: str, number: int, words: int, *, pair: bool) -> tuple[httpx.Response, str]:
    """A long stream whose first event is here; it is left when the stack is."""
    client = stack.enter_context(httpx.Client(timeout=30))
    body = chat_body(question(number, words), LONG, pair=pair)
    answer = stack.enter_context(client.stream("POST", f"{url}/v1/chat/completions", json=body))
    assert answer.status_code == 200
    events = answer.iter_raw()
    next(events)
    stack.callback(events.close)  # and until then it is held: its end closes the connection
    return answer, answer.headers["x-request-id"]


def status(fleet: Fleet, request_id: str) -> str:
    return str(fleet.record(request_id)["status"])


@pytest.mark.parametrize("words", [4, 200])
def test_while_decoding(fleet: Fleet, words: int) -> None:
    """Every slot is taken by a long stream; one client leaves, and the next in line gets its slot."""
    with ExitStack() as stack:
        streams = [opened(stack, fleet.url, 200 + words + i, words, pair=False) for i in range(SLOTS)]
        gone, request_id = streams[0]
        left_at = time.monotonic()
        gone.close()
        until(lambda: status(fleet, request_id) == "cancelled", WITHIN_S, "the stream is cancelled")
        ninth = ask(fleet.url, 210 + words, words, 4, pair=False)
        assert ninth.finish == "length", ninth
        assert fleet.record(ninth.request_id)["parts_ms"]["decode_queue"] < WITHIN_S * 1e3
        others = [status(fleet, other) for _, other in streams[1:]]
        assert others == ["running"] * (SLOTS - 1), "nobody else had ended"
        placements = {fleet.record(other)["placement"] for _, other in streams}
        assert words < 100 or "disaggregated" in placements
        print(f"answered {time.monotonic() - left_at:.2f} s after the hang-up")


def test_while_waiting_for_an_answer(fleet: Fleet) -> None:
    """A call that is not streamed, too."""
    body = chat_body(question(220, 20), LONG, pair=True, stream=False)
    known = {record["id"] for record in fleet.records()}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{fleet.url}/v1/chat/completions", json=body, timeout=1.0)
    (record,) = [record for record in fleet.records() if record["id"] not in known]
    until(lambda: status(fleet, record["id"]) == "cancelled", WITHIN_S, "the request is cancelled")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reading(tiny_gguf: Path) -> AsyncGenerator[tuple[Service, Sabotaged, Workers], None]:
    """A pair whose prefill engine counts its chunks, of 16 tokens."""
    settings = settings_for(str(tiny_gguf), slots=2, landing_mb=2)
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="diptych-test-") as folder:
        workers = Workers(find_model(settings), settings, Path(folder))
        engine = Sabotaged(TorchPrefill(workers.bundle, TorchConfig(threads=1, chunk_tokens=16)))
        try:
            await workers.start_decode()
            workers.start_prefill(engine)
            async with service_over(workers) as service:
                yield service, engine, workers
        finally:
            await workers.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_while_the_pair_reads(reading: tuple[Service, Sabotaged, Workers]) -> None:
    """Prefill ends with the chunk under way, and the landing region is free."""
    service, engine, workers = reading
    prompt = canary_prompts.raw_canary(service.models()[0].chat, 2400, 300)
    engine._chunk_s = 0.2  # much longer than a message takes
    for _ in range(3):
        before = engine.chunks
        started = asyncio.create_task(_first(service, prompt))
        while engine.chunks < before + 3:
            await asyncio.sleep(0)
        started.cancel()
        await asyncio.gather(started, return_exceptions=True)
        at_cancel = engine.chunks
        await _idle(service, workers)
        assert engine.chunks <= at_cancel + 1, "the one under way"
    engine._chunk_s = 0.0
    assert service.router.prefill["prefill-0"].reading_s == {}
    output = await generate(service, prompt, 4, PAIR)
    assert output.record.kv_tokens == len(prompt) - 1


@pytest.mark.asyncio(loop_scope="module")
async def test_cancelled_anywhere(reading: tuple[Service, Sabotaged, Workers]) -> None:
    """Requests cancelled after any number of milliseconds leave no region, slot, mailbox or load behind."""
    service, _, workers = reading
    chat = service.models()[0].chat
    for round_ in range(40):
        prompts = [canary_prompts.raw_canary(chat, 200 + 90 * i, 1000 * round_ + i) for i in range(4)]
        ways = [PAIR, PAIR, ALONE, PAIR]
        tasks = [asyncio.create_task(generate(service, p, 60, way)) for p, way in zip(prompts, ways, strict=True)]
        await asyncio.sleep(0.004 * round_)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await _idle(service, workers)
    prompt = canary_prompts.raw_canary(chat, 500, 301)
    alone = await generate(service, prompt, 16, ALONE)
    assert len(alone.tokens) == 16
    assert (await generate(service, prompt, 16, PAIR)).record.kv_tokens == 499


async def _first(service: Service, prompt: tuple[int, ...]) -> Any:
    request = Request(id=f"left-{time.monotonic()}", model="", prompt=prompt, sampling=Sampling(max_tokens=4))
    async with aclosing(service.generate(request, only=PAIR)) as chunks:
        return await anext(chunks)


async def _idle(service: Service, workers: Workers) -> None:
    """Waits until nothing of any request is left, on either side."""
    async with asyncio.timeout(10):
        while workers.landing.used_bytes or workers.engine.batch or workers.engine.waiting:
            await asyncio.sleep(0.01)
    assert service.router.decode["decode-0"].flying == {}
    assert service.router.prefill["prefill-0"].reading_s == {}
    assert all(not peer._boxes for peer in service.peers.values())


def test_files_stay_few(tiny_fleet: Fleet) -> None:
    """Hundreds of requests, some abandoned, open no files that stay open."""

    names = ("prefill-0", "decode-0", "gateway", "llama-server")
    for i in range(20):
        ask(tiny_fleet.url, 400 + i, 30, 2, pair=True)
    before = {name: open_files(tiny_fleet.pid(name)) for name in names}
    for i in range(100):
        ask(tiny_fleet.url, 500 + i, 30, 2, pair=i % 3 > 0)
    for i in range(20):
        with ExitStack() as stack:
            opened(stack, tiny_fleet.url, 600 + i, 30, pair=True)
    asked = ask(tiny_fleet.url, 700, 30, 2, pair=True)
    assert proven(tiny_fleet.record(asked.request_id))
    after = {name: open_files(tiny_fleet.pid(name)) for name in names}
    print(before, after)
    assert all(after[name] <= before[name] + 8 for name in names), (before, after)
    assert len(list(tiny_fleet.rundir.iterdir())) == 4
