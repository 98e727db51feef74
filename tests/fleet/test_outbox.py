"""What a worker says to one client: in order, dense tokens together, nothing that somebody waits for held back."""

import asyncio

import pytest

from diptych.errors import EngineError
from diptych.fleet import messages as m
from diptych.fleet.outbox import GATHER_S, Outbox
from diptych.types import Prepared, TokenChunk


class Sent:
    """An outbox and what left it; ``said`` has all messages, ``sizes`` how many each one on the wire was."""

    def __init__(self) -> None:
        self.said: list[m.FromWorker] = []
        self.sizes: list[int] = []
        self.box = Outbox(self._send)

    def _send(self, message: m.FromWorker) -> None:
        message = m.decode_from_worker(m.encode(message))
        several = message.messages if isinstance(message, m.Together) else (message,)
        self.said.extend(several)
        self.sizes.append(len(several))


def token(number: int, request: str = "r") -> m.Tokens:
    return m.Tokens(request, TokenChunk((number,)))


async def test_tokens_of_one_turn_leave_together_at_its_end() -> None:
    sent = Sent()
    for request in "abc":
        sent.box.put(token(1, request))
    assert sent.said == []
    await asyncio.sleep(0)
    assert sent.said == [token(1, "a"), token(1, "b"), token(1, "c")]
    assert sent.sizes == [3]


async def test_dense_tokens_wait_for_one_another_and_keep_their_order() -> None:
    sent = Sent()
    for number in range(60):
        sent.box.put(token(number))
        await asyncio.sleep(GATHER_S / 10)
    await asyncio.sleep(GATHER_S * 5)
    assert sent.said == [token(number) for number in range(60)]
    assert 1 < len(sent.sizes) < 60


async def test_a_token_after_a_quiet_moment_waits_for_nothing() -> None:
    sent = Sent()
    for number in range(5):
        await asyncio.sleep(GATHER_S * 2)
        sent.box.put(token(number))
        await asyncio.sleep(0)
        assert sent.said[-1] == token(number)


@pytest.mark.parametrize(
    "awaited",
    [
        m.Tokens("new", TokenChunk((1,), prepared=Prepared())),
        m.Offered("new", b"ticket", 0.0),
        m.Failed.of("new", EngineError("broken")),
        m.Pong(),
    ],
)
async def test_what_somebody_waits_for_leaves_at_once_behind_what_waited(awaited: m.FromWorker) -> None:
    sent = Sent()
    sent.box.put(token(1))
    await asyncio.sleep(0)
    sent.box.put(token(2))
    sent.box.put(awaited)
    assert sent.said == [token(1), token(2), awaited]
    await asyncio.sleep(GATHER_S * 5)
    assert len(sent.said) == 3


async def test_a_closed_outbox_sends_nothing() -> None:
    sent = Sent()
    sent.box.put(token(1))
    sent.box.close()
    await asyncio.sleep(GATHER_S * 5)
    assert sent.said == []
