"""The live router: what is in flight counts, reserved and lost workers get nothing, modes are kept."""

import numpy as np
import pytest

from diptych.errors import WorkerLost
from diptych.routing.learned import LearnedCost
from diptych.routing.placement import Link
from diptych.routing.remembered import Remembered
from diptych.routing.router import DecodeView, PrefillView, Router, Way
from diptych.types import Request, Sampling


def make_router(mode: str = "transparent") -> Router:
    router = Router(mode)
    router.prefill["p"] = PrefillView(LearnedCost((0.03, 0.001, 0.0, 0.0), (0, 0, 0), 0), 10_000)
    router.decode["d"] = DecodeView(LearnedCost((0.0, 0.004, 0.0, 0.0), (0.006, 0.003, 0.0), 20_480), 8, 20_480)
    router.links["p", "d"] = Link("p", "d", base_s=0.02)
    return router


def make_request(tokens: int, number: int = 0, **fields: object) -> Request:
    prompt = tuple(range(number * 10_000, number * 10_000 + tokens))
    return Request(id=f"r{number}", model="m", prompt=prompt, sampling=Sampling(max_tokens=64), **fields)  # type: ignore[arg-type]


def test_opt_in_keeps_the_pair_for_those_who_ask() -> None:
    router = make_router("opt-in")
    assert router.place(make_request(800)).chosen.kind == "aggregated"
    assert router.place(make_request(800, latency="optimized")).chosen.kind == "disaggregated"
    assert make_router().place(make_request(800)).chosen.kind == "disaggregated"


def test_a_full_prefill_queue_sends_the_next_one_to_decode_alone() -> None:
    router = make_router()
    kinds = []
    for number in range(12):
        request = make_request(600, number)
        placement = router.place(request)
        router.began(request, placement)
        kinds.append(placement.chosen.kind)
    assert kinds[0] == "disaggregated"
    assert "aggregated" in kinds


def test_what_ended_leaves_no_trace_in_the_load() -> None:
    router = make_router()
    request = make_request(800)
    before = router.place(request)
    router.began(request, before)
    assert router.decode["d"].flying
    assert router.prefill["p"].reading_s
    router.ended(request, before, [])
    assert not router.decode["d"].flying
    assert not router.prefill["p"].reading_s
    assert router.place(request) == before


def test_a_conversation_goes_on_where_its_prefix_is() -> None:
    router = make_router()
    first = make_request(800)
    placement = router.place(first)
    router.began(first, placement)
    router.ended(first, placement, [7, 8, 9])
    second = Request(id="r2", model="m", prompt=(*first.prompt, 7, 8, 9, 5), sampling=first.sampling)
    assert router.place(second).chosen.kind == "aggregated"


def test_a_lost_worker_gets_nothing_and_holds_nothing() -> None:
    router = make_router()
    router.lost("p")
    assert router.place(make_request(800)).chosen.kind == "aggregated"
    router.lost("d")
    with pytest.raises(WorkerLost):
        router.place(make_request(8))
    router.back("d")
    router.back("p")
    assert router.place(make_request(800)).chosen.kind == "disaggregated"


def test_workers_that_just_failed_are_avoided() -> None:
    with pytest.raises(WorkerLost):
        make_router().place(make_request(8), without=["d"])


def test_a_reserved_worker_serves_only_by_name() -> None:
    router = make_router()
    router.decode["alone"] = DecodeView(LearnedCost((0, 0, 0, 0), (0, 0, 0), 20_480), 8, 20_480)
    router.reserved.add("alone")
    assert router.place(make_request(8)).chosen.decode == "d"
    forced = router.place(make_request(800), only=Way("alone", None)).chosen
    assert (forced.decode, forced.prefill) == ("alone", None)
    assert router.place(make_request(8), only=Way("d", "p")).chosen.kind == "disaggregated"


def test_remembered_sequences_are_bounded_and_matched_by_prefix() -> None:
    held = Remembered(2, 100)
    held.add("a", [1, 2, 3, 4])
    held.add("b", [1, 2, 9])
    assert held.longest_prefix(np.array([1, 2, 3, 7], np.int32)) == 3
    held.add("c", [5])
    assert held.longest_prefix(np.array([1, 2, 3, 7], np.int32)) == 2
    held.add("d", list(range(100)))
    assert held.longest_prefix(np.array([5], np.int32)) == 0
