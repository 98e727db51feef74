"""The connection between service and worker: streams, loss at either end, restarts, heartbeats."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from diptych.config import Deadlines
from diptych.engines.protocol import Description
from diptych.errors import CorruptKV, DeadlineExceeded, InvalidRequest, WorkerLost
from diptych.fleet import messages as m
from diptych.fleet.endpoint import Endpoint
from diptych.fleet.peer import Peer
from diptych.handoff import forms
from diptych.handoff.contract import Geometry
from diptych.types import Sampling, TokenChunk

FORM = forms.llama_cpp(Geometry(layers=1, kv_heads=1, head_dim_k=2, head_dim_v=2), "f", "half")
ABOUT = Description(
    engine="toy", build="1", device="cpu", model="m", fingerprint="f", form=FORM, slots=1, context_tokens=8
)
QUICK = Deadlines(heartbeat_s=0.05, lost_after_s=0.4)


class Toy:
    """A worker that streams what it is asked for, and can be made to fall silent."""

    def __init__(self, address: str, instance: str) -> None:
        self.instance = instance
        self.cancelled: list[str] = []
        self.lost: list[bytes] = []
        self.asked: list[str] = []
        self.endpoint = Endpoint(address, self, QUICK)

    def welcome(self) -> m.Welcome:
        return m.Welcome("toy", "decode", self.instance, ABOUT, 1, "here")

    def on_message(self, client: bytes, message: m.ToWorker) -> None:
        if isinstance(message, m.Cancel):
            self.cancelled.append(message.id)
        if isinstance(message, m.Decode):
            self.asked.append(message.id)
            for token in message.prompt:
                self.endpoint.send(client, m.Tokens(message.id, TokenChunk((token,))))

    def on_client_lost(self, client: bytes) -> None:
        self.lost.append(client)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Toy, Peer, str]]:
    address = f"ipc://{tmp_path}/toy.sock"
    toy = Toy(address, "first")
    peer = Peer("toy", address, QUICK, lambda: None)
    await peer.ready(5)
    yield toy, peer, address
    await peer.close()
    toy.endpoint.close()


def decode(request_id: str, *prompt: int) -> m.Decode:
    return m.Decode(request_id, prompt, Sampling(max_tokens=4))


async def test_streams_of_many_requests_do_not_mix(pair: tuple[Toy, Peer, str]) -> None:
    _, peer, _ = pair
    boxes = {str(n): peer.open(str(n)) for n in range(50)}
    for n in range(50):
        peer.send(decode(str(n), n, n + 1000, n + 2000))
    for n in range(50):
        got = [(await boxes[str(n)].expect(m.Tokens, 5)).chunk.tokens[0] for _ in range(3)]
        assert got == [n, n + 1000, n + 2000]


async def test_a_worker_that_goes_away_ends_every_wait(pair: tuple[Toy, Peer, str]) -> None:
    toy, peer, _ = pair
    waits = [asyncio.create_task(peer.open(str(n)).get()) for n in range(5)]
    await asyncio.sleep(0.05)
    toy.endpoint.close()
    async with asyncio.timeout(5):
        ends = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(end) for end in ends] == [WorkerLost] * 5
    assert not peer.alive
    with pytest.raises(WorkerLost):
        peer.open("late")


async def test_a_loss_is_not_forgotten(pair: tuple[Toy, Peer, str]) -> None:
    """Whoever was told of it once and asks again must not wait for a mailbox that nobody fills."""
    _, peer, _ = pair
    box = peer.open("r")
    peer._lost()
    box.clear()
    for _ in range(2):
        with pytest.raises(WorkerLost):
            await asyncio.wait_for(box.get(), 5)
        with pytest.raises(WorkerLost):
            box.check()


async def test_a_worker_that_falls_silent_is_lost(pair: tuple[Toy, Peer, str]) -> None:
    toy, peer, _ = pair
    toy.endpoint.send = lambda client, message: None  # type: ignore[method-assign]  # hangs, its connection stays
    async with asyncio.timeout(5):
        with pytest.raises(WorkerLost):
            await peer.open("r").get()


async def test_a_restarted_worker_is_met_again_and_owes_nothing(pair: tuple[Toy, Peer, str]) -> None:
    toy, peer, address = pair
    box = peer.open("r")
    toy.endpoint.close()
    again = Toy(address, "second")
    try:
        async with asyncio.timeout(5):
            with pytest.raises(WorkerLost):
                await box.get()
            while peer.welcome is None or peer.welcome.instance != "second":
                await asyncio.sleep(0.01)
        fresh = peer.open("s")
        peer.send(decode("s", 7))
        assert (await fresh.expect(m.Tokens, 5)).chunk.tokens == (7,)
        assert again.asked == ["s"]
    finally:
        again.endpoint.close()


async def test_a_client_that_is_gone_is_dropped(pair: tuple[Toy, Peer, str]) -> None:
    toy, peer, _ = pair
    await peer.close()
    async with asyncio.timeout(5):
        while not toy.lost:
            await asyncio.sleep(0.01)


async def test_a_client_that_was_dropped_is_told_so(pair: tuple[Toy, Peer, str]) -> None:
    """A gateway that was stopped for a while waits for nothing that its worker has given up meanwhile."""
    toy, peer, _ = pair
    box = peer.open("r")
    peer.send(decode("r", 1))
    assert (await box.expect(m.Tokens, 5)).chunk.tokens == (1,)
    (client,) = toy.endpoint._heard
    toy.endpoint._drop(client)  # as after a silence; the connection stays
    assert toy.lost == [client]
    async with asyncio.timeout(5):
        with pytest.raises(WorkerLost):
            await box.get()
        while not peer.alive:
            await asyncio.sleep(0.01)
    assert toy.asked == ["r"], "what it asks for while it is not known is not begun"
    box = peer.open("s")
    peer.send(decode("s", 2))
    assert (await box.expect(m.Tokens, 5)).chunk.tokens == (2,)


async def test_a_greeting_ends_what_the_session_before_it_left(pair: tuple[Toy, Peer, str]) -> None:
    """A worker that was taken for lost, and was not, must not go on with what its client has given up."""
    toy, peer, _ = pair
    peer.open("r")
    peer._lost()
    async with asyncio.timeout(5):
        while not (toy.lost and peer.alive):
            await asyncio.sleep(0.01)


async def test_a_message_that_is_not_ours_changes_nothing(
    pair: tuple[Toy, Peer, str], caplog: pytest.LogCaptureFixture
) -> None:
    """It is refused and logged once; those behind it are served."""
    toy, peer, _ = pair
    box = peer.open("r")
    for garbage in (b"", b"\x00", b"\x93\xa6Decode", msgspec.msgpack.encode(["NoSuch", 1]), b"\xff" * 1000):
        peer._wire.send(garbage)
    peer.send(decode("r", 7))
    assert (await box.expect(m.Tokens, 5)).chunk.tokens == (7,)
    assert peer.alive
    assert toy.lost == []
    assert [record.levelname for record in caplog.records if "not ours" in record.getMessage()] == ["WARNING"]


async def test_forgetting_cancels_once(pair: tuple[Toy, Peer, str]) -> None:
    toy, peer, _ = pair
    peer.open("r")
    peer.forget("r", cancel=True)
    peer.forget("r", cancel=True)
    async with asyncio.timeout(5):
        while not toy.cancelled:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert toy.cancelled == ["r"]


async def test_waiting_has_a_deadline(pair: tuple[Toy, Peer, str]) -> None:
    _, peer, _ = pair
    with pytest.raises(DeadlineExceeded, match="Tokens"):
        await peer.open("r").expect(m.Tokens, 0.05)


@pytest.mark.parametrize("error", [CorruptKV("bad digest"), InvalidRequest("mend this"), WorkerLost("gone")])
def test_errors_cross_the_wire_as_they_are(error: Exception) -> None:
    message = m.decode_from_worker(m.encode(m.Failed.of("r", error)))
    assert isinstance(message, m.Failed)
    back = message.error()
    assert (type(back), str(back)) == (type(error), str(error))
    assert getattr(back, "reason", None) == getattr(error, "reason", None)


def test_an_unexpected_error_is_an_engine_error() -> None:
    message = m.Failed.of("r", ZeroDivisionError("x"))
    assert message.kind == "EngineError"
    assert m.Failed("r", "SystemExit", "boom").error().args == ("boom",)
