"""KV in doubt is never used: the prompt is read again by the decode engine, and the reason is on record."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import pytest_asyncio

from diptych.engines.torch import TorchConfig, TorchPrefill
from diptych.fleet import canary_prompts
from diptych.handoff.arena import Arena
from diptych.handoff.seal import Piece, Seal, make_seal
from diptych.handoff.writer import Writer
from diptych.service import Service
from diptych.serving import find_model
from support.fleet import Fleet, proven
from support.inprocess import ALONE, PAIR, Workers, generate, service_over, settings_for
from support.likeness import same
from support.load import ask, reference
from support.sabotage import Sabotaged

pytestmark = pytest.mark.e2e

WORDS, OUTPUT = 40, 24


def flip_bytes(data: np.ndarray) -> None:
    """One bit in every page of the first half megabyte."""
    data[: 1 << 19 : 4096] ^= np.uint8(1)


@contextlib.contextmanager
def meddling(fleet: Fleet, meddle: Callable[[Arena], object]) -> Iterator[None]:
    """Another process of the same user at the landing area, all the time."""
    arena = Arena.attach(next(fleet.rundir.glob("decode-0/landing-*")))
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            meddle(arena)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        arena.close()


@pytest.mark.parametrize(
    ("meddle", "reasons"),
    [
        (lambda arena: flip_bytes(arena.data), {"corrupt_kv"}),
        (lambda arena: arena._rows[:, 0].fill(7), {"stale_write"}),
    ],
    ids=["bytes", "epochs"],
)
def test_a_landing_area_that_others_write_to(
    tiny_fleet: Fleet, meddle: Callable[[Arena], object], reasons: set[str]
) -> None:
    numbers = range(100, 112)
    references = {number: reference(tiny_fleet.url, number, WORDS, OUTPUT) for number in numbers}
    before = sum(tiny_fleet.health()["recomputed"].values())
    with meddling(tiny_fleet, meddle):
        done = [ask(tiny_fleet.url, number, WORDS, OUTPUT, pair=True) for number in numbers]
    records = [tiny_fleet.record(asked.request_id) for asked in done]
    for asked, record in zip(done, records, strict=True):
        assert asked.finish == "length", asked
        same(references[asked.number], asked.tokens)
        assert proven(record) == (record["recomputed"] is None)
    recomputed = [record["recomputed"] for record in records if record["recomputed"]]
    assert set(recomputed) == reasons
    assert sum(tiny_fleet.health()["recomputed"].values()) - before == len(recomputed)
    again = ask(tiny_fleet.url, 100, WORDS, OUTPUT, pair=True)
    same(references[100], again.tokens)
    assert proven(tiny_fleet.record(again.request_id)), "the landing area is used again"


def resealed(seal: Seal, pieces: list[Piece]) -> Seal:
    return make_seal(seal.handoff_id, seal.epoch, seal.kv_bytes, pieces)


def change(seal: Seal, **fields: object) -> Seal:
    return msgspec.structs.replace(seal, **fields)


def wrong_piece(seal: Seal) -> Seal:
    return resealed(seal, [*seal.pieces[:-1], msgspec.structs.replace(seal.pieces[-1], digest=secrets.token_bytes(16))])


def one_token_less(seal: Seal) -> Seal:
    last = seal.pieces[-1]
    return resealed(seal, [*seal.pieces[:-1], msgspec.structs.replace(last, tokens=last.tokens - 1)])


def overlapping(seal: Seal) -> Seal:
    first = seal.pieces[0]
    return change(resealed(seal, [first, first]), tokens=seal.tokens)


WRONG_SEALS: dict[str, tuple[Callable[[Seal], Seal], str]] = {
    "a piece's digest": (wrong_piece, "corrupt_kv"),
    "the digest of all": (lambda seal: change(seal, digest=secrets.token_bytes(16)), "corrupt_kv"),
    "one token less": (one_token_less, "corrupt_kv"),
    "one token less, count kept": (lambda seal: change(one_token_less(seal), tokens=seal.tokens), "corrupt_kv"),
    "the bytes": (lambda seal: change(seal, kv_bytes=seal.kv_bytes - 1), "corrupt_kv"),
    "no pieces": (lambda seal: resealed(seal, []), "corrupt_kv"),
    "a piece twice": (overlapping, "corrupt_kv"),
    "an older epoch": (lambda seal: change(seal, epoch=seal.epoch - 1), "stale_write"),
    "another handoff": (lambda seal: change(seal, handoff_id="somebody-else"), "stale_write"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tiny_gguf: Path) -> AsyncGenerator[Service, None]:
    settings = settings_for(str(tiny_gguf), landing_mb=2)
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="diptych-test-") as folder:
        workers = Workers(find_model(settings), settings, Path(folder))
        try:
            await workers.start_decode()
            workers.start_prefill(Sabotaged(TorchPrefill(workers.bundle, TorchConfig(threads=2))))
            async with service_over(workers) as service:
                yield service
                assert workers.landing.used_bytes == 0, "every region was freed"
        finally:
            await workers.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("what", WRONG_SEALS)
async def test_a_wrong_seal(service: Service, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    falsify, reason = WRONG_SEALS[what]
    prompt = canary_prompts.raw_canary(service.models()[0].chat, 300, len(what))
    alone = await generate(service, prompt, OUTPUT, ALONE, gaps=True)
    honest = Writer.seal
    monkeypatch.setattr(Writer, "seal", lambda writer: falsify(honest(writer)))
    counted = service.recomputed[reason]
    output = await generate(service, prompt, OUTPUT, PAIR)
    same(alone.reference, output.tokens)
    assert output.record.recomputed == reason
    assert (output.record.kv_tokens, output.record.kv_bytes) == (0, 0)
    assert service.recomputed[reason] == service.health()["recomputed"][reason] == counted + 1
    monkeypatch.undo()
    pair = await generate(service, prompt, OUTPUT, PAIR)
    same(alone.reference, pair.tokens)
    assert (pair.record.recomputed, pair.record.kv_tokens) == (None, len(prompt) - 1)


@pytest.mark.asyncio(loop_scope="module")
async def test_seals_of_two_requests_exchanged(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two handoffs of the same size: each seal is offered for the other's KV."""
    chat = service.models()[0].chat
    prompts = [canary_prompts.raw_canary(chat, 200, seed) for seed in (71, 72)]
    references = [(await generate(service, prompt, OUTPUT, ALONE, gaps=True)).reference for prompt in prompts]
    honest, seals, both = Writer.seal, [], threading.Barrier(2)

    def exchanged(writer: Writer) -> Seal:
        mine = honest(writer)
        seals.append(mine)
        both.wait(10)
        return next(seal for seal in seals if seal is not mine)

    monkeypatch.setattr(Writer, "seal", exchanged)
    outputs = await asyncio.gather(*(generate(service, prompt, OUTPUT, PAIR) for prompt in prompts))
    for output, reference_ in zip(outputs, references, strict=True):
        same(reference_, output.tokens)
        assert output.record.recomputed == "stale_write"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("after", [1, 2])
async def test_prefill_that_fails_midway(service: Service, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The engine raises at a later chunk: that request is recomputed, and no other is touched."""
    prompt = canary_prompts.raw_canary(service.models()[0].chat, 900, 80 + after)
    alone = await generate(service, prompt, OUTPUT, ALONE, gaps=True)
    honest, calls = Writer.write, []

    def failing(writer: Writer, *chunk: object) -> None:
        calls.append(None)
        if len(calls) > after:
            raise MemoryError("the device is out of memory")
        honest(writer, *chunk)

    monkeypatch.setattr(Writer, "write", failing)
    output = await generate(service, prompt, OUTPUT, PAIR)
    same(alone.reference, output.tokens)
    assert output.record.recomputed == "prefill_failed"
