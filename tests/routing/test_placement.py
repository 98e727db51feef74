"""The placement rule: a short prompt to decode alone, a long one to the pair, by prediction."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.routing.placement import DecodeState, Demand, Fleet, Link, Links, PrefillState, place


class Linear(msgspec.Struct, frozen=True):
    """A cost model of three numbers."""

    read_s: float
    fixed_s: float = 0.0
    step_s: float = 0.01
    kv_capacity_tokens: int = 20_480
    cost_per_hour: float | None = None

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> float:
        return self.fixed_s + self.read_s * new_tokens

    def decode_s(self, batch: int, context_tokens: int) -> float:
        return self.step_s * batch


FAST = Linear(read_s=0.001, fixed_s=0.05)
SLOW = Linear(read_s=0.004)
LINK = Link("p", "d", base_s=0.02)


def fleet(**decode: object) -> Fleet:
    return Fleet((PrefillState("p", FAST),), (DecodeState("d", SLOW, **decode),), Links([LINK]))  # type: ignore[arg-type]


def test_a_short_prompt_goes_to_decode_alone_and_a_long_one_to_the_pair() -> None:
    assert place(Demand(16, 64), fleet()).chosen.kind == "aggregated"
    assert place(Demand(800, 64), fleet()).chosen.kind == "disaggregated"


def test_the_crossing_point_follows_the_prefill_queue() -> None:
    busy = Fleet((PrefillState("p", FAST, queue_s=10.0),), fleet().decode, Links([LINK]))
    assert place(Demand(800, 64), busy).chosen.kind == "aggregated"


def test_a_cached_prefix_counts_on_either_side() -> None:
    at_decode = fleet(cached_tokens=790)
    assert place(Demand(800, 64), at_decode).chosen.kind == "aggregated"
    both = Fleet(
        (PrefillState("p", FAST, cached_tokens=790),), (DecodeState("d", SLOW, cached_tokens=400),), Links([LINK])
    )
    assert place(Demand(800, 64), both).chosen.kind == "disaggregated"


def test_a_prefill_that_would_hold_up_running_streams_is_charged_for_it() -> None:
    short = Demand(20, 64)
    assert place(short, fleet()).chosen.kind == "aggregated"
    assert place(short, fleet(batch=4)).chosen.kind == "disaggregated"


def test_no_link_means_no_pair() -> None:
    unlinked = msgspec.structs.replace(fleet(), links=Links())
    placement = place(Demand(800, 64), unlinked)
    assert placement.chosen.kind == "aggregated"
    assert placement.disaggregated is None


def test_a_request_that_may_not_use_the_pair_does_not() -> None:
    assert place(Demand(800, 64, may_disaggregate=False), fleet()).chosen.kind == "aggregated"


def test_one_token_has_nothing_to_hand_over() -> None:
    assert place(Demand(1, 64), fleet(batch=7)).chosen.kind == "aggregated"


def test_nobody_to_serve_is_an_error() -> None:
    with pytest.raises(LookupError):
        place(Demand(8, 8), Fleet((), (), Links()))


@given(
    prompt=st.integers(1, 4096),
    output=st.integers(1, 512),
    queue_s=st.floats(0, 20),
    wait_s=st.floats(0, 20),
    cached=st.integers(0, 4096),
    batch=st.integers(0, 7),
)
def test_the_choice_has_the_lowest_score(
    prompt: int, output: int, queue_s: float, wait_s: float, cached: int, batch: int
) -> None:
    decode = DecodeState("d", SLOW, wait_s=wait_s, cached_tokens=cached, batch=batch)
    view = Fleet((PrefillState("p", FAST, queue_s, cached),), (decode,), Links([LINK]))
    placement = place(Demand(prompt, output), view)
    ways = [way for way in (placement.aggregated, placement.disaggregated) if way is not None]
    assert placement.chosen.score_s == min(way.score_s for way in ways)
    assert all(0 <= way.ttft_s <= way.total_s for way in ways)


def test_a_busy_prefill_worker_on_the_same_cores_makes_decode_alone_dearer() -> None:
    queue = PrefillState("p", FAST, queue_s=3.0)
    apart = Fleet((queue,), (DecodeState("d", SLOW),), Links([LINK]))
    together = Fleet((queue,), (DecodeState("d", SLOW, rival_s=3.0, rival_jobs=4),), Links([LINK]))
    assert place(Demand(700, 64), apart).chosen.kind == "aggregated"
    assert place(Demand(700, 64), together).chosen.kind == "disaggregated"
