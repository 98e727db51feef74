"""The workers' own doors: tickets and seals that are not in force are refused, and change nothing."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from diptych.engines.torch import TorchConfig, TorchPrefill
from diptych.errors import HandoffError
from diptych.fleet import messages as m
from diptych.fleet.peer import Peer
from diptych.handoff.seal import Seal
from diptych.handoff.ticket import Ticket, sign, verify
from diptych.models.resolve import ModelBundle
from diptych.types import Sampling
from support.inprocess import SECRET, Workers, settings_for

PROMPT = tuple(range(40, 80))


@pytest.fixture
async def workers(tiny_bundles: dict[str, ModelBundle]) -> AsyncIterator[tuple[Workers, Peer, Peer]]:
    bundle = tiny_bundles["llama"]
    settings = settings_for(bundle.gguf, slots=2, landing_mb=2)
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="diptych-test-") as folder:
        made = Workers(bundle, settings, Path(folder))
        await made.start_decode()
        made.start_prefill(TorchPrefill(bundle, TorchConfig(threads=1)))
        peers = [Peer(name, made.addresses[name], settings.deadlines, lambda: None) for name in made.addresses]
        for peer in peers:
            await peer.ready(20)
        yield made, peers[0], peers[1]
        for peer in peers:
            await peer.close()
        await made.close()


async def offer(decode: Peer, request_id: str) -> Ticket:
    box = decode.open(request_id)
    decode.send(m.Offer(request_id, len(PROMPT) - 1))
    return verify((await box.expect(m.Offered, 5)).ticket, SECRET, time.time())


async def write(prefill: Peer, request_id: str, ticket: bytes) -> Seal:
    box = prefill.open(request_id)
    prefill.send(m.Prefill(request_id, PROMPT[:-1], ticket))
    try:
        return (await box.expect(m.Sealed, 10)).seal
    finally:
        prefill.forget(request_id)


async def tokens(decode: Peer, request_id: str, seal: Seal) -> tuple[list[int], str | None]:
    """What is answered, and for which reason the prompt was read by the engine itself."""
    decode.forget(request_id)
    box = decode.open(request_id)
    decode.send(m.Decode(request_id, PROMPT, Sampling(max_tokens=4, temperature=0.0, ignore_eos=True), seal))
    made: list[int] = []
    reason = None
    while True:
        message = await box.expect(m.Tokens, 10)
        made += message.chunk.tokens
        reason = reason or message.recomputed
        if message.chunk.finish:
            return made, reason


async def test_tickets_that_are_not_in_force(
    workers: tuple[Workers, Peer, Peer], caplog: pytest.LogCaptureFixture
) -> None:
    """Forged, expired, oversized, of a place that is another's: the prefill worker writes nothing, and goes on."""
    made, prefill, decode = workers
    ticket = await offer(decode, "r")
    before = made.landing.memory.copy()
    bad = {
        "forged": sign(ticket, b"another key, also of 32 bytes ..."),
        "flipped": bytes([sign(ticket, SECRET)[0] ^ 1]) + sign(ticket, SECRET)[1:],
        "expired": sign(msgspec.structs.replace(ticket, expires_at=time.time() - 1), SECRET),
        "oversized": sign(msgspec.structs.replace(ticket, kv_bytes=made.landing.capacity_bytes * 2), SECRET),
        "beyond": sign(msgspec.structs.replace(ticket, offset=made.landing.capacity_bytes), SECRET),
        "an older epoch": sign(msgspec.structs.replace(ticket, epoch=ticket.epoch - 1), SECRET),
        "empty": b"",
    }
    for name, wire in bad.items():
        with pytest.raises(HandoffError):
            await write(prefill, name, wire)
    assert len([one for one in caplog.records if one.getMessage().startswith("refused")]) == len(bad), "each once"
    assert (made.landing.memory == before).all()
    assert made.landing.phase(ticket.handoff_id) == "offered"
    seal = await write(prefill, "r", sign(ticket, SECRET))
    with pytest.raises(HandoffError):
        await write(prefill, "replayed", sign(ticket, SECRET))
    made_by_kv, reason = await tokens(decode, "r", seal)
    assert (len(made_by_kv), reason) == (4, None), "the right one was not harmed"
    with pytest.raises(HandoffError):
        await write(prefill, "after its end", sign(ticket, SECRET))
    assert made.landing.used_bytes == 0


async def test_seals_of_handoffs_that_are_unknown_or_over(workers: tuple[Workers, Peer, Peer]) -> None:
    """The decode worker reads the prompt itself, says why, once, and holds nothing afterwards."""
    made, prefill, decode = workers
    ticket = await offer(decode, "r")
    seal = await write(prefill, "r", sign(ticket, SECRET))
    right, reason = await tokens(decode, "r", seal)
    assert reason is None
    counts = dict(made.landing.counts)
    for number, wrong in enumerate([seal, msgspec.structs.replace(seal, handoff_id=secrets.token_hex(12))]):
        again, reason = await tokens(decode, f"again-{number}", wrong)
        assert (again, reason) == (right, "stale_write")
    assert dict(made.landing.counts) == counts
    assert made.landing.used_bytes == 0
