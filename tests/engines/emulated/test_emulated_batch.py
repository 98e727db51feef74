"""Continuous batching takes the cost model's time, keeps to slots and capacity, and loses no token."""

from __future__ import annotations

import random

import pytest

from diptych.config import DecodeSettings, PrefillSettings
from diptych.engines.emulated import costs, fault
from diptych.engines.emulated.batch import Batch, Sequence
from diptych.errors import ConfigError


class Line:
    """10 ms + 1 a sequence + 0.01 a KV token; prompts 1 ms a token."""

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> float:
        return 0.001 * new_tokens

    def step_s(self, batch: int, context_tokens: int) -> float:
        return 0.010 + 0.001 * batch + 0.00001 * context_tokens


def drive(batch: Batch) -> list[tuple[float, Sequence]]:
    """(time, sequence) of every token, until nothing is left to do."""
    now, found = 0.0, []
    while True:
        batch.admit()
        if batch.idle:
            return found
        now += batch.step_s()
        found += [(now, sequence) for sequence in batch.step()]


def test_one_stream_by_hand() -> None:
    batch = Batch(Line(), 4, 10_000, 128, 1.0)
    batch.add(one := Sequence(100, 0, 3))
    assert [round(at, 6) for at, _ in drive(batch)] == [0.012, 0.02401, 0.03603]
    assert (one.emitted, one.left, one.context) == (3, 0, 103)


def test_a_prompt_read_here_yields_the_first_token_with_its_last_chunk() -> None:
    batch = Batch(Line(), 4, 10_000, 128, 1.0)
    batch.add(Sequence(0, 300, 2))
    (first, _), (second, _) = drive(batch)
    assert first == pytest.approx(0.3)
    assert second == pytest.approx(0.3 + 0.010 + 0.001 + 0.003)


def test_a_chunk_holds_up_the_streams_beside_it() -> None:
    batch = Batch(Line(), 4, 10_000, 128, 0.5)
    batch.add(Sequence(100, 0, 50))
    batch.add(Sequence(0, 128, 1))
    batch.admit()
    assert batch.step_s() == pytest.approx(0.012 + 0.5 * 0.128)
    assert len(batch.step()) == 2


def test_slots_capacity_and_tokens_over_many_random_requests() -> None:
    draw = random.Random(3)
    batch = Batch(Line(), 5, 900, 64, 1.0)
    asked = [Sequence(draw.randrange(300), draw.choice((0, draw.randrange(1, 300))), draw.randrange(1, 60))
             for _ in range(200)]  # fmt: skip
    wanted = [s.left for s in asked]
    ends = [s.context + s.to_read + s.left for s in asked]
    for sequence in asked:
        batch.add(sequence)
    while not batch.idle:
        batch.admit()
        assert len(batch._running) + (batch._reading is not None) <= 5
        assert sum(s.context for s in batch._running) == batch._context <= 900
        if draw.random() < 0.01 and batch._running:
            gone = draw.choice(batch._running)
            batch.remove(gone)
            wanted[asked.index(gone)], ends[asked.index(gone)] = gone.emitted, -1
            continue
        batch.step()
    assert [s.emitted for s in asked] == wanted
    # a token that a prompt's last chunk yields is not in the KV yet
    assert all(end < 0 or s.context == end - bool(s.to_read) for s, end in zip(asked, ends, strict=True))


def test_who_comes_first_joins_first() -> None:
    batch = Batch(Line(), 1, 10_000, 64, 1.0)
    order = [Sequence(10, 0, 2), Sequence(0, 10, 2), Sequence(10, 0, 2)]
    for sequence in order:
        batch.add(sequence)
    seen = list(dict.fromkeys(sequence for _, sequence in drive(batch)))
    assert seen == order


# -- what is emulated ------------------------------------------------------------------------------------------------


def cs3(**more: object) -> DecodeSettings:
    return DecodeSettings(engine="emulated", chip="cs3", **more)


def test_3000_tokens_a_second_on_a_wafer() -> None:
    pace = costs.pace_of(cs3(), 1.0)
    assert 2900 < 1.0 / pace.step_s(1, 1000) < 3300
    assert costs.pace_of(cs3(speed=10.0), 1.0).step_s(1, 1000) == pytest.approx(pace.step_s(1, 1000) / 10)
    assert costs.pace_of(cs3(), 4.0).step_s(1, 1000) == pytest.approx(4 * pace.step_s(1, 1000))


def test_a_wafer_whose_prefill_is_not_known_reads_a_token_a_step() -> None:
    pace = costs.pace_of(cs3(), 1.0)
    assert pace.prefill_s(100) == pytest.approx(100 * pace.step_s(1, 50))
    assert costs.pace_of(cs3(prefill_share=0.15), 1.0).prefill_s(1000) < pace.prefill_s(1000)


def test_whole_machines_by_default() -> None:
    assert costs.emulated_worker(PrefillSettings(engine="emulated", chip="trainium2")).chips == 16
    assert costs.emulated_worker(PrefillSettings(engine="emulated", chip="trainium2", chips=4)).chips == 4
    assert "llama-3.1-405b in bf16" in costs.build_of(cs3(costs_of="llama-3.1-405b"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (cs3(costs_of="nobody-1b"), "no model 'nobody-1b'"),
        (DecodeSettings(engine="emulated", chip="cs9"), "no chip 'cs9'"),
        (cs3(chips=1, costs_of="llama-3.1-405b"), "does not fit"),
    ],
)
def test_what_cannot_be_emulated(settings: DecodeSettings, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        costs.pace_of(settings, 1.0)


def test_room_for_a_request() -> None:
    settings = cs3(ctx_per_request=10_000_000)
    with pytest.raises(ConfigError, match="ctx_per_request = 10000000"):
        costs.room_for(settings, costs.pace_of(settings, 1.0).cost)


@pytest.mark.parametrize("text", ["", "slow=0", "slow=-1", "explode", "wrong_kv=x", "refuse_admission=1"])
def test_faults_that_are_not_known_to_a_prefill_worker(text: str) -> None:
    with pytest.raises(ConfigError, match="fail_after_tokens, stall_after_tokens, wrong_kv, slow"):
        fault.parse(text, decode=False)


def test_faults() -> None:
    late = fault.parse("wrong_kv=3", decode=True)
    assert [late.strikes("wrong_kv", count) for count in (1, 2, 3, 4)] == [False, False, True, True]
    assert not late.strikes("slow", 100)
    assert fault.parse("slow=4", decode=True).slowdown == 4.0
    assert fault.parse(None, decode=True).slowdown == 1.0
