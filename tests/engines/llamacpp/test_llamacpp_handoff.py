"""The whole handoff into llama.cpp: a Hugging Face cache converted into the landing area and decoded."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio
from llamacpp_support import answer, private_directory, running

from diptych.engines.llamacpp.engine import LlamaCppDecode, Rows
from diptych.engines.llamacpp.slotfile import Bytes
from diptych.errors import CorruptKV, StaleWrite
from diptych.handoff import forms, transports
from diptych.handoff.landing import Landing
from diptych.handoff.seal import Seal
from diptych.handoff.ticket import Ticket
from diptych.models.resolve import ModelBundle

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = tuple(range(30, 200))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(any_tiny: ModelBundle) -> AsyncGenerator[LlamaCppDecode]:
    async with running(any_tiny) as started:
        yield started


@pytest.fixture
def landing() -> Iterator[Landing]:
    with private_directory() as directory:
        landing = Landing(directory, 8 << 20, receiver="decode-0")
        yield landing
        landing.close()


class Sealed:
    """A sealed handoff, as the decode worker gives it to the engine."""

    def __init__(self, landing: Landing, ticket: Ticket, seal: Seal) -> None:
        self._landing, self._ticket, self._seal = landing, ticket, seal
        self.tokens = ticket.tokens

    def admit(self, blocks: Sequence[Bytes]) -> None:
        self._landing.admit(self._ticket.handoff_id, self._seal, blocks)


def hugging_face(rows: npt.NDArray[np.float16], heads: int, pairing: str) -> npt.NDArray[np.uint16]:
    """llama.cpp's rows [token, head x dim] as transformers has them: [head, token, dim], half-rotated."""
    cache = rows.reshape(len(rows), heads, -1).transpose(1, 0, 2)
    if pairing == "interleaved":
        cache = np.concatenate([cache[..., 0::2], cache[..., 1::2]], axis=-1)
    return np.ascontiguousarray(cache).view(np.uint16)


def hand_over(engine: LlamaCppDecode, landing: Landing, rows: Rows) -> tuple[Ticket, Seal]:
    wanted = engine.describe().form
    produced = forms.hugging_face(wanted.geometry, wanted.fingerprint, dtype="f16")
    ticket = landing.offer("r", wanted, tokens=len(PROMPT) - 1, ttl_s=30)
    shm = transports.load("shm")
    writer = shm.open_writer(ticket, produced)
    heads, pairing = wanted.geometry.kv_heads, wanted.rope.pairing
    keys = [hugging_face(array[:-1], heads, pairing) for array in rows.keys]
    values = [hugging_face(array[:-1], heads, "none") for array in rows.values]
    try:
        for start in range(0, ticket.tokens, 64):
            part = slice(start, start + 64)
            writer.write(start, [array[:, part] for array in keys], [array[:, part] for array in values])
        return ticket, writer.seal()
    finally:
        writer.abort()
        shm.close()


async def test_tokens_are_those_of_the_engines_own_prefill(engine: LlamaCppDecode, landing: Landing) -> None:
    alone = await answer(engine, PROMPT)
    for _ in range(3):
        handed = hand_over(engine, landing, await engine.export_rows(PROMPT))
        assert (await answer(engine, PROMPT, Sealed(landing, *handed))).tokens == alone.tokens
    assert (landing.counts["admitted"], landing.used_bytes) == (3, 0)


async def test_a_byte_flipped_in_the_landing_area_is_never_decoded(engine: LlamaCppDecode, landing: Landing) -> None:
    alone = await answer(engine, PROMPT)
    ticket, seal = hand_over(engine, landing, await engine.export_rows(PROMPT))
    landing._arena.data[ticket.offset + ticket.kv_bytes // 3] ^= 1
    with pytest.raises(CorruptKV):
        await answer(engine, PROMPT, Sealed(landing, ticket, seal))
    assert (await answer(engine, PROMPT)).tokens == alone.tokens


async def test_a_handoff_is_decoded_once(engine: LlamaCppDecode, landing: Landing) -> None:
    handed = hand_over(engine, landing, await engine.export_rows(PROMPT))
    await answer(engine, PROMPT, Sealed(landing, *handed))
    with pytest.raises(StaleWrite):
        await answer(engine, PROMPT, Sealed(landing, *handed))
