"""The simulator by hand-made cases: every part of a request's time, and what happens when things are full or break."""

from __future__ import annotations

import math

import pytest

from diptych.errors import ConfigError
from diptych.planner.fleetplan import Failure, Handoff
from diptych.planner.outcome import Objectives, measure, summary
from diptych.planner.simulate import simulate
from diptych.planner.traces import Trace
from tests.planner.conftest import alone, cost, pair, trace


def metrics(t: Trace, plan, **options):
    outcome = simulate(t, plan, **options)
    return outcome, measure(outcome, t.arrival_s, t.output_tokens)


def test_one_request_through_a_pair_shows_every_part():
    handoff = Handoff(bytes_per_token=1000.0, base_s=0.5, convert_bytes_s=1e6, overlap=False)
    plan = pair(cost(read=0.01), cost(step=0.1), handoff=handoff, nic=2e6)
    _, m = metrics(trace((0.0, 101, 3)), plan)
    parts = {name: float(values[0]) for name, values in m.parts_ms.items()}
    assert parts == pytest.approx(
        {"queue": 0, "prefill": 1000, "convert": 100, "transfer": 550, "decode_queue": 0, "first_step": 100}
    )
    assert m.ttft_ms[0] == pytest.approx(sum(parts.values()))
    assert m.itl_ms[0] == pytest.approx(100)


def test_the_parts_are_disjoint_and_add_up():
    t = trace(*[(0.3 * i, 200 + 37 * (i % 5), 5 + i % 7) for i in range(60)])
    handoff = Handoff(bytes_per_token=1e4, base_s=0.01, convert_bytes_s=1e8)
    _, m = metrics(t, pair(cost(), cost(step=0.03), p=2, d=2, handoff=handoff, nic=1e7))
    assert sum(m.parts_ms.values()) == pytest.approx(m.ttft_ms)
    assert all((values >= -1e-9).all() for values in m.parts_ms.values())


def test_overlap_leaves_only_the_last_chunk():
    """4,097 tokens hand over 4,096 in two chunks; the link carries one chunk while the other is computed."""
    overlapped = Handoff(bytes_per_token=1.0, overlap=True)
    serial = Handoff(bytes_per_token=1.0, overlap=False)
    reader, writer = cost(read=0.001), cost(step=0.01)
    times = [metrics(trace((0.0, 4097, 2)), pair(reader, writer, handoff=h, nic=4096.0))[1].ttft_ms[0] / 1e3
             for h in (overlapped, serial)]  # fmt: skip
    assert times == pytest.approx([4.096 + 0.5 + 0.01, 4.096 + 1.0 + 0.01])


def test_a_slow_link_holds_back_what_it_could_not_carry_meanwhile():
    plan = pair(cost(read=0.001), cost(step=0.01), handoff=Handoff(bytes_per_token=1.0), nic=512.0)
    _, m = metrics(trace((0.0, 4097, 2)), plan)
    backlog = 2048 - 512.0 * 4.096
    assert m.parts_ms["transfer"][0] / 1e3 == pytest.approx((2048 + max(0.0, backlog)) / 512.0)


def test_two_flows_share_an_interface():
    handoff = Handoff(bytes_per_token=1.0, overlap=False)
    plan = pair(cost(read=0.001), cost(step=0.01), p=2, d=1, handoff=handoff, nic=1000.0)
    _, m = metrics(trace((0.0, 1001, 2), (0.0, 1001, 2)), plan)
    assert m.parts_ms["transfer"] / 1e3 == pytest.approx([2.0, 2.0])


def test_a_flow_gets_the_whole_interface_when_the_other_is_done():
    handoff = Handoff(bytes_per_token=1.0, overlap=False)
    plan = pair(cost(read=0.001), cost(step=0.01), p=2, d=1, handoff=handoff, nic=1000.0)
    _, m = metrics(trace((0.0, 1001, 2), (0.5, 1001, 2)), plan)
    assert m.parts_ms["transfer"] / 1e3 == pytest.approx([1.5, 1.5])


def test_an_arrival_joins_at_the_next_step():
    plan = pair(cost(read=0.0), cost(step=1.0))
    outcome, m = metrics(trace((0.0, 2, 10), (2.25, 2, 2)), plan)
    assert outcome.joined[1] == pytest.approx(3.0)
    assert m.ttft_ms[1] == pytest.approx(1750)
    assert outcome.finish[1] == pytest.approx(5.0)


def test_reading_in_a_decode_worker_holds_up_the_others_and_yields_the_first_token():
    """Ten steps of 0.1 s; a prompt of 1,000 tokens in two chunks of 0.5 s is mixed into two of them."""
    plan = alone(cost(read=0.001, step=0.1), chunk=500)
    outcome, m = metrics(trace((0.0, 1, 11), (0.45, 1000, 2)), plan)
    assert m.ttft_ms[0] == pytest.approx(1.0)  # its own prompt of one token
    assert outcome.first[1] == pytest.approx(0.501 + 2 * (0.1 + 0.5))
    assert outcome.finish[0] == pytest.approx(0.001 + 10 * 0.1 + 2 * 0.5)


def test_slots_bound_the_batch():
    plan = pair(cost(read=0.0), cost(step=1.0), slots=2)
    outcome, _ = metrics(trace((0.0, 2, 3), (0.0, 2, 3), (0.0, 2, 3)), plan)
    assert list(outcome.joined) == pytest.approx([0.0, 0.0, 3.0])


def test_kv_bounds_the_batch():
    plan = pair(cost(read=0.0), cost(step=1.0, room=250))
    outcome, _ = metrics(trace((0.0, 101, 5), (0.0, 101, 5), (0.0, 101, 5)), plan)
    assert list(outcome.joined) == pytest.approx([0.0, 0.0, 5.0])
    assert outcome.preemptions == 0


def test_a_sequence_that_outgrows_the_kv_is_preempted_and_read_again():
    plan = pair(cost(read=0.0001), cost(step=1.0, room=230))
    outcome, m = metrics(trace((0.0, 101, 60), (0.0, 101, 60)), plan)
    assert outcome.preemptions == 1
    assert all(math.isfinite(t) for t in outcome.finish)
    assert m.ttft_ms[1] < 3000  # the first token had been sent before


def test_a_request_larger_than_any_worker_is_rejected():
    plan = pair(cost(), cost(room=50))
    outcome, m = metrics(trace((0.0, 101, 5), (0.0, 20, 5)), plan)
    assert outcome.rejected == 1
    assert math.isnan(outcome.finish[0])
    assert Objectives(ttft_ms=1e9).met(m).tolist() == [False, True]


def test_a_prefix_is_read_once():
    blocks = (tuple(range(4)), tuple(range(4)))
    t = trace((0.0, 2048, 2), (10.0, 2048, 2), blocks=blocks)
    outcome, m = metrics(t, pair(cost(), cost(), cache=10**6))
    assert list(outcome.cached_tokens) == [0, 2047]
    assert m.parts_ms["prefill"][1] == 0.0
    without, _ = metrics(t, pair(cost(), cost(), cache=0))
    assert list(without.cached_tokens) == [0, 0]


def test_the_oldest_prefix_leaves_first():
    blocks = ((1, 2), (3, 4), (1, 2))
    t = trace((0.0, 1024, 2), (10.0, 1024, 2), (20.0, 1024, 2), blocks=blocks)
    assert list(metrics(t, pair(cost(), cost(), cache=1024))[0].cached_tokens) == [0, 0, 0]
    assert list(metrics(t, pair(cost(), cost(), cache=2048))[0].cached_tokens) == [0, 0, 1023]


def test_mixed_fleets_choose_by_request():
    """The pair reads fast: long prompts go there; a short one is quicker in the decode worker."""
    plan = pair(cost(read=0.0001, start=0.5), cost(read=0.01, step=0.01), prefills=True)
    outcome, _ = metrics(trace((0.0, 5000, 2), (100.0, 4, 2)), plan)
    assert list(outcome.placed_prefill) == [0, -1]


@pytest.mark.parametrize("worker", ["P0", "D0"])
@pytest.mark.parametrize("at_s", [0.05, 0.35, 0.75, 2.5])
def test_a_worker_that_is_lost_loses_no_request(worker: str, at_s: float):
    t = trace(*[(0.1 * i, 300, 20) for i in range(30)])
    plan = pair(cost(), cost(step=0.05), p=2, d=2, handoff=Handoff(bytes_per_token=100.0), nic=1e5)
    plan = type(plan)(prefill=plan.prefill, decode=plan.decode, handoff=plan.handoff, failures=(Failure(at_s, worker),))
    outcome, _ = metrics(t, plan)
    assert all(math.isfinite(at) for at in outcome.finish)
    late = [i for i, arrival in enumerate(t.arrival_s) if arrival > at_s]
    where = outcome.placed_prefill if worker == "P0" else outcome.placed_decode
    assert all(where[i] == 1 for i in late)


def test_without_any_worker_requests_are_rejected():
    plan = pair(cost(), cost())
    plan = type(plan)(prefill=plan.prefill, decode=plan.decode, failures=(Failure(1.0, "D0"),))
    outcome, _ = metrics(trace((0.0, 10, 2), (5.0, 10, 2)), plan)
    assert outcome.rejected == 1


def test_a_failure_of_nobody_is_refused():
    plan = pair(cost(), cost())
    plan = type(plan)(prefill=plan.prefill, decode=plan.decode, failures=(Failure(1.0, "D7"),))
    with pytest.raises(ConfigError, match=r"D7.*P0, D0"):
        simulate(trace((0.0, 10, 2)), plan)


def test_the_summary_counts_failures_as_misses():
    t = trace((0.0, 101, 5), (0.0, 20, 5))
    outcome, m = metrics(t, pair(cost(), cost(room=50)))
    found = summary(outcome, m, t.output_tokens, Objectives(ttft_ms=1e6))
    assert (found["finished"], found["rejected"], found["attainment"]) == (1, 1, 0.5)
