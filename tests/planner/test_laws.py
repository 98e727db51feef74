"""Laws that hold for every fleet: conservation, capacity, queueing theory, and the same bytes for the same seed."""

from __future__ import annotations

import math
import sys
from array import array
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.chips import catalogue
from diptych.chips.stepcost import StepCost
from diptych.planner.candidates import Candidate, Choice, Side, enumerate_fleets, fleet_plan, total
from diptych.planner.decode import DecodeWorker, Sequence
from diptych.planner.fleetplan import DecodePool, FleetPlan, Handoff
from diptych.planner.goodput import evaluate
from diptych.planner.links import Flow, Links, Nic
from diptych.planner.outcome import Objectives, measure
from diptych.planner.search import promising, rank, search
from diptych.planner.simulate import simulate
from diptych.planner.traces import Trace, load
from tests.planner.conftest import alone, cost, pair

requests = st.lists(
    st.tuples(st.floats(0, 0.5), st.integers(1, 3000), st.integers(1, 40)), min_size=1, max_size=40
)  # gaps, prompts, outputs


def as_trace(drawn: list[tuple[float, int, int]], blocks: bool = False) -> Trace:
    gaps, prompts, outputs = zip(*drawn, strict=True)
    held = tuple(tuple(range(n // 512)) for n in prompts) if blocks else ()
    return Trace("drawn", array("d", np.cumsum(gaps)), array("q", prompts), array("q", outputs), held)


fleets = st.builds(
    lambda shape, p, d, slots, step, per_token, room, overlap: (
        alone(cost(read=1e-4, step=step, per_token=per_token, room=room), d=d, slots=slots)
        if shape == "alone"
        else pair(
            cost(read=1e-4, start=0.01),
            cost(read=1e-3, step=step, per_token=per_token, room=room),
            p=p,
            d=d,
            slots=slots,
            prefills=shape == "mixed",
            handoff=Handoff(1000.0, 0.0, 0, 0.001, 1e8, overlap),
            nic=1e7,
            cache=100_000,
        )
    ),
    st.sampled_from(["alone", "pair", "mixed"]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 8),
    st.sampled_from([0.02, 0.00033]),
    st.sampled_from([0.0, 1e-6]),
    st.sampled_from([4000, 20_000, 10**7]),
    st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(requests, fleets)
def test_every_request_ends_and_time_goes_forward(drawn, plan: FleetPlan):
    t = as_trace(drawn, blocks=True)
    outcome = simulate(t, plan)
    done = [i for i, at in enumerate(outcome.finish) if math.isfinite(at)]
    assert len(done) + outcome.rejected == len(t)
    for i in done:
        moments = [t.arrival_s[i], outcome.joined[i], outcome.first[i], outcome.finish[i]]
        assert all(a <= b + 1e-9 for a, b in pairwise(moments))
        if t.output_tokens[i] == 1:
            assert outcome.first[i] == pytest.approx(outcome.finish[i])
    if outcome.rejected:
        assert any(t.input_tokens[i] + t.output_tokens[i] > 4000 for i in range(len(t)))


@settings(deadline=None, max_examples=60)
@given(requests, fleets)
def test_jumping_and_stepping_agree(drawn, plan: FleetPlan):
    t = as_trace(drawn)
    jumped, stepped = simulate(t, plan), simulate(t, plan, exact=True)
    for column in ("joined", "first", "finish", "landed"):
        np.testing.assert_allclose(jumped.column(column), stepped.column(column), rtol=0, atol=1e-9)
    assert jumped.preemptions == stepped.preemptions


@settings(deadline=None, max_examples=20)
@given(requests, fleets)
def test_the_same_inputs_give_the_same_bytes(drawn, plan: FleetPlan):
    t = as_trace(drawn, blocks=True)
    one, two = simulate(t, plan), simulate(t, plan)
    for column in ("prefill_start", "landed", "joined", "first", "finish"):
        assert getattr(one, column).tobytes() == getattr(two, column).tobytes()


def test_the_same_seed_draws_the_same_bytes():
    one, two, other = (load(f"azure-conv:rate=3,requests=500,seed={seed}") for seed in (4, 4, 5))
    assert one.arrival_s.tobytes() == two.arrival_s.tobytes()
    assert one.input_tokens.tobytes() == two.input_tokens.tobytes()
    assert one.arrival_s.tobytes() != other.arrival_s.tobytes()


@settings(deadline=None, max_examples=40)
@given(requests, st.integers(1, 4))
def test_no_decode_worker_holds_more_than_its_kv_or_its_slots(drawn, slots: int):
    """Watched from inside, at every boundary; and every token asked for is emitted exactly once."""
    seen: list[tuple[int, int]] = []
    tokens = [0]

    class Watched(DecodeWorker):
        def _advance(self, steps: int, seconds: float) -> None:
            super()._advance(steps, seconds)
            seen.append((self.context + self.reserved, self.batch))
            tokens[0] += steps * self.batch

        def _join(self, sequence: Sequence, emitted: int = 0) -> None:
            tokens[0] += emitted
            super()._join(sequence, emitted)

    t = as_trace(drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["diptych.planner.simulate"], "DecodeWorker", Watched)
        outcome = simulate(t, alone(cost(read=1e-4, step=0.02, room=4000), slots=slots))
    assert all(context <= 4000 + 1 and batch <= slots for context, batch in seen)
    wanted = sum(n for n, at in zip(t.output_tokens, outcome.finish, strict=True) if math.isfinite(at))
    assert tokens[0] == wanted


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.floats(0, 3), st.floats(1, 50)), max_size=25))
def test_no_interface_carries_more_than_it_can(flows):
    """Whatever comes and goes: bytes moved never exceed the interface's rate, and all of them arrive."""
    heap: list[tuple[float, int, object, Flow]] = []
    count = 0

    def schedule(at, handler, flow):
        nonlocal count
        count += 1
        heap.append((at, count, handler, flow))

    links = Links(schedule)
    sources, targets = [Nic(10.0) for _ in range(3)], [Nic(7.0) for _ in range(3)]
    arrived: list[float] = []
    waiting = sorted(flows, key=lambda flow: flow[2])
    now = 0.0
    while heap or waiting:
        heap.sort(key=lambda event: event[:2])
        if waiting and (not heap or waiting[0][2] <= heap[0][0]):
            source, target, now, size = waiting.pop(0)
            links.start(now, sources[source], targets[target], size, arrived.append)
        else:
            now, _, handler, flow = heap.pop(0)
            handler(now, flow)
        for nic in (*sources, *targets):
            assert sum(flow.rate for flow in nic.flows) <= nic.bytes_s * (1 + 1e-12)
    assert len(arrived) == len(flows)
    if flows:
        assert max(arrived) - min(flow[2] for flow in flows) >= sum(flow[3] for flow in flows) / 21.0 - 1e-9


def exponential(n: int, mean: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).exponential(mean, n)


def poisson(n: int, rate: float, prompts: np.ndarray) -> Trace:
    arrivals = np.cumsum(exponential(n, 1 / rate, 11))
    return Trace("poisson", array("d", arrivals), array("q", prompts.tolist()), array("q", [1]) * n)


ARRIVALS = 200_000


def test_one_prefill_worker_is_an_m_d_1_queue():
    """Mean wait at load 0.5 is half a service time."""
    t = poisson(ARRIVALS, 0.5, np.full(ARRIVALS, 1001))
    outcome = simulate(t, pair(cost(read=0.001), cost(step=1e-6)))
    waits = outcome.column("prefill_start") - np.frombuffer(t.arrival_s)
    assert waits.mean() == pytest.approx(0.5, rel=0.03)


def test_prefill_workers_are_an_m_m_c_queue():
    """Four workers, exponential service of mean 1 s, load 0.5: Erlang's C over c mu - lambda."""
    c, load_, n = 4, 0.5, ARRIVALS
    prompts = np.maximum(2, np.rint(exponential(n, 10_000.0, 12)) + 1)
    t = poisson(n, c * load_, prompts.astype(int))
    outcome = simulate(t, pair(cost(read=1e-4), cost(step=1e-6), p=c))
    waits = outcome.column("prefill_start") - np.frombuffer(t.arrival_s)
    offered = c * load_
    blocked = offered**c / math.factorial(c) / (1 - load_)
    erlang_c = blocked / (sum(offered**k / math.factorial(k) for k in range(c)) + blocked)
    assert waits.mean() == pytest.approx(erlang_c / (c - offered), rel=0.03)


def test_a_free_link_leaves_two_queues_in_tandem():
    """One prefill and one decode worker of one slot: the recursion of Lindley, request by request."""
    rng = np.random.default_rng(5)
    n = 2000
    prompts, outputs = rng.integers(2, 900, n), rng.integers(1, 60, n)
    t = Trace(
        "t", array("d", np.cumsum(rng.exponential(1.2, n))), array("q", prompts.tolist()), array("q", outputs.tolist())
    )
    outcome = simulate(t, pair(cost(read=0.001), cost(step=0.02), slots=1))
    read = wrote = 0.0
    for i in range(n):
        read = max(t.arrival_s[i], read) + 0.001 * (prompts[i] - 1)
        wrote = max(read, wrote) + 0.02 * outputs[i]
        assert outcome.finish[i] == pytest.approx(wrote, abs=1e-8)


# -- the planner -------------------------------------------------------------------------------------------------------

CHOICES = [Choice("h100", "fp8"), Choice("trainium2")]
SLO = Objectives(ttft_ms=2000, itl_ms=60)


@pytest.fixture(scope="module")
def small() -> Trace:
    return load("poisson:rate=2,requests=200,input=3000,output=60,seed=3")


def test_a_larger_budget_only_adds_fleets(small: Trace):
    budgets = [60, 120, 250, 500]
    chosen = []
    for budget in budgets:
        found = enumerate_fleets("llama-3.1-70b", CHOICES, small, SLO, budget, ["aggregated", "disaggregated", "mixed"])
        chosen.append(set(promising(found, small, SLO, 2, lambda c: total(c, "price") or 1.0)))
        assert all((total(c, "price") or 0) <= budget for c in chosen[-1])
    assert all(less <= more for less, more in pairwise(chosen))
    assert len(chosen[-1]) > len(chosen[0]) > 0


def test_the_best_plan_of_a_larger_budget_is_never_worse(small: Trace):
    best = []
    for budget in (60, 120):
        found = enumerate_fleets("llama-3.1-70b", CHOICES[1:], small, SLO, budget, ["aggregated"])
        few = promising(found, small, SLO, 1, lambda c: total(c, "price") or 1.0)
        plan = rank("llama-3.1-70b", small, SLO, budget, search(few, small, SLO, jobs=1))
        winner = plan.best()
        best.append((winner.per("dollar") or 0.0) if winner else 0.0)
    assert best == sorted(best)
    assert best[-1] > 0


def test_goodput_never_exceeds_the_peak(small: Trace):
    """No plan serves more prompts than its chips have FLOP/s for: the trap that another planner fell into."""
    for chip, format_ in (("h100", "fp8"), ("trainium2", "bf16")):
        machine = catalogue.chip(chip).machines[0]
        side = Side(chip=chip, format=format_, chips=machine.chips, machine=machine.id, machines=1)
        fleet = Candidate(model="llama-3.1-70b", mode="aggregated", decode=side)
        found = evaluate(fleet, small, SLO)
        g = catalogue.model("llama-3.1-70b").geometry
        flops = found.max_goodput_rps * 0.9 * (g.flops(3000) + 60 * 2 * g.active_params)
        assert 0 < flops <= catalogue.chip(chip).flops_of(format_).si * machine.chips


def test_more_machines_never_serve_less(small: Trace):
    rates = []
    for machines in (1, 2, 4):
        side = Side(chip="h100", format="fp8", chips=4, machine="p5.48xlarge", machines=machines)
        rates.append(
            evaluate(Candidate(model="llama-3.1-70b", mode="aggregated", decode=side), small, SLO).max_goodput_rps
        )
    assert rates == sorted(rates)


def test_whole_machines_only():
    side = Side(chip="trainium2", format="bf16", chips=4, machine="trn2.48xlarge", machines=3)
    assert side.replicas == 12
    plan = fleet_plan(Candidate(model="llama-3.1-70b", mode="aggregated", decode=side), cache=False)
    assert plan.price_per_hour == pytest.approx(3 * 35.76)
    assert plan.mode == "aggregated"


def test_a_step_is_never_skipped_by_a_cost_model_without_a_line():
    """A cost model that offers only the four members is stepped."""

    class Bare:
        kv_capacity_tokens = 10**6
        cost_per_hour = None

        def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> float:
            return 0.001 * new_tokens

        def decode_s(self, batch: int, context_tokens: int) -> float:
            return 0.01 + 1e-6 * context_tokens

    lined = StepCost(prefill_fixed_s=0.0, prefill_token_s=0.001, decode_fixed_s=0.01, decode_token_s=1e-6,
                     kv_capacity_tokens=10**6)  # fmt: skip
    t = as_trace([(0.1, 500, 30)] * 20)
    plans = [FleetPlan(decode=(DecodePool(name="D", cost=c, count=1, prefills=True),)) for c in (Bare(), lined)]
    bare, line = (measure(simulate(t, p), t.arrival_s, t.output_tokens) for p in plans)
    np.testing.assert_allclose(bare.e2e_ms, line.e2e_ms, atol=1e-6)
