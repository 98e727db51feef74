"""Tickets cannot be forged, altered, kept or lent; the state machine has no way round a check."""

from __future__ import annotations

import hmac
import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.errors import StaleWrite
from diptych.handoff import state
from diptych.handoff.contract import KVForm
from diptych.handoff.landing import Landing
from diptych.handoff.ticket import sign, verify
from diptych.handoff.transports import load

from .conftest import kv

KEY = b"k" * 32
DEADLINES = state.Deadlines(offered_s=1, streaming_s=2, sealed_s=3, admitted_s=4)


@pytest.fixture
def ticket(landing: Landing, target: KVForm):
    return landing.offer("request-1", target, 10, 5.0)


def test_round_trip_and_expiry(ticket) -> None:
    wire = sign(ticket, KEY)
    assert verify(wire, KEY, ticket.expires_at - 0.001) == ticket
    with pytest.raises(StaleWrite, match="expired"):
        verify(wire, KEY, ticket.expires_at)


def test_every_altered_byte_is_refused(ticket) -> None:
    wire = sign(ticket, KEY)
    for index in range(len(wire)):
        bad = bytearray(wire)
        bad[index] ^= 1
        with pytest.raises(StaleWrite, match="signature"):
            verify(bytes(bad), KEY, 0.0)
    for cut in (b"", wire[:16], wire[:32], wire[:-1], wire + b"\0"):
        with pytest.raises(StaleWrite, match="signature"):
            verify(cut, KEY, 0.0)


def test_another_key_or_another_version_is_refused(ticket) -> None:
    with pytest.raises(StaleWrite, match="signature"):
        verify(sign(ticket, b"other"), KEY, 0.0)
    body = msgspec.msgpack.encode({"handoff_id": "x"})
    with pytest.raises(StaleWrite, match="version"):
        verify(hmac.digest(KEY, body, "sha256") + body, KEY, 0.0)


def test_a_request_larger_than_the_ticket_is_refused(landing: Landing, source: KVForm, ticket) -> None:
    shm = load("shm")
    writer = shm.open_writer(ticket, source)
    with pytest.raises(StaleWrite, match="beyond"):
        writer.write(4, *kv(source, 7))
    with pytest.raises(StaleWrite, match="beyond"):
        writer.write(-1, *kv(source, 7))
    writer.abort()
    writer.abort()
    with pytest.raises(StaleWrite):
        writer.write(0, *kv(source, 7))
    with pytest.raises(StaleWrite):
        writer.seal()
    shm.close()


EVENTS = ("write", "seal", "admit", "release", "fail")


def apply(current: state.HandoffState, event: str, now: float) -> state.HandoffState:
    if event == "fail":
        return state.fail(current, "why", now)
    return state.step(current, event, now, DEADLINES)  # type: ignore[arg-type]


def test_admission_only_ever_follows_a_seal() -> None:
    for events in itertools.product(EVENTS, repeat=5):
        current, seen = state.offered(0.0, DEADLINES), []
        for now, event in enumerate(events, start=1):
            try:
                current = apply(current, event, float(now))
            except StaleWrite:
                continue
            seen.append(event)
            if current.phase == "admitted":
                assert "seal" in seen
                assert "fail" not in seen
                assert seen.count("admit") == 1


@given(st.lists(st.sampled_from(EVENTS), max_size=12))
def test_final_states_are_final_and_others_have_a_deadline(events: list[str]) -> None:
    current = state.offered(0.0, DEADLINES)
    for now, event in enumerate(events, start=1):
        before = current
        try:
            current = apply(before, event, float(now))
        except StaleWrite:
            assert event in {"write", "seal", "admit"}
            continue
        if before.final:
            assert current == before
        assert current.final == (current.deadline is None)
        if not current.final:
            assert current.deadline is not None
            assert not current.expired(current.deadline - 0.001)
            assert current.expired(current.deadline)
