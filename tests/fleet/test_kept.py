"""What a prefill worker keeps of a handoff: the same bytes once more, within bounds, for whoever had them kept."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.errors import CorruptKV, StaleWrite
from diptych.fleet.kept import Keeper, KeptKV, Remembering
from diptych.handoff import forms
from diptych.handoff.contract import Geometry
from diptych.handoff.seal import Piece, make_seal
from diptych.handoff.ticket import Ticket

FORM = forms.llama_cpp(Geometry(layers=1, kv_heads=1, head_dim_k=2, head_dim_v=2), "f", "half")
TICKET = Ticket(
    handoff_id="h", request_id="r", receiver="d", transport="shm", address="", form=FORM, tokens=4, kv_bytes=32,
    offset=0, slot=0, epoch=1, expires_at=0.0,
)  # fmt: skip


class Sink:
    def __init__(self) -> None:
        self.got: list[tuple[int, object, object]] = []

    def write(self, token_start: int, keys: object, values: object) -> None:
        self.got.append((token_start, keys, values))


def kept(prompt: tuple[int, ...] = (1, 2, 3, 4), digest: bytes = b"d" * 16) -> KeptKV:
    sink = Remembering(Sink())
    for start in (0, 2):
        sink.write(start, [np.full((1, 2, 2), start, np.float16)], [np.zeros((1, 2, 2), np.float16)])
    return KeptKV(prompt, sink.chunks, TICKET, make_seal("h", 1, 32, [Piece(0, 4, digest)]))


def test_it_is_written_as_it_was() -> None:
    mine, sink = kept(), Sink()
    steps = mine.steps([1, 2, 3, 4], sink)
    assert list(steps) == [0, 2]
    assert [start for start, _, _ in sink.got] == [0, 2]
    assert all(sent is chunk.keys for (_, sent, _), chunk in zip(sink.got, mine.chunks, strict=True)), "not a copy"


def test_never_for_another_prompt() -> None:
    sink = Sink()
    with pytest.raises(StaleWrite, match="another prompt"):
        list(kept().steps([1, 2, 3, 5], sink))
    assert sink.got == []


def test_bytes_that_changed_meanwhile_are_refused() -> None:
    kept().check(TICKET, make_seal("again", 2, 32, [Piece(0, 4, b"d" * 16)]))
    with pytest.raises(CorruptKV, match="changed"):
        kept().check(TICKET, make_seal("again", 2, 32, [Piece(0, 4, b"e" * 16)]))


def test_room_is_bounded_and_the_oldest_goes() -> None:
    keeper = Keeper(limit_bytes=70, keep_s=10)
    for number in range(3):
        keeper.keep((b"me", str(number)), kept(), now=number)
        assert keeper.kv_bytes <= 70
    with pytest.raises(StaleWrite, match="not kept") as gone:
        keeper.get((b"me", "0"))
    assert gone.value.reason == "kv_gone"
    assert keeper.get((b"me", "2"))
    keeper.release((b"me", "2"))
    keeper.release((b"me", "2"))
    keeper.expire(now=20)
    assert (len(keeper), keeper.kv_bytes) == (0, 0)


def test_it_goes_with_the_connection_that_had_it_kept() -> None:
    keeper = Keeper(limit_bytes=1000, keep_s=10)
    keeper.keep((b"me", "a"), kept(), now=0)
    keeper.keep((b"you", "a"), kept(), now=0)
    keeper.lost(b"me")
    assert len(keeper) == 1
    with pytest.raises(StaleWrite):
        keeper.get((b"me", "a"))
    assert keeper.get((b"you", "a"))
