"""Who goes in when: tiers overtake, nobody is lost, and a share is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from diptych.routing.admission import Admission
from diptych.types import TIERS, Tier


def test_a_priority_request_overtakes_and_flex_waits_while_others_do() -> None:
    admission = Admission(lambda: 1)
    assert admission.enter("first", "flex") == ["first"]
    for name, tier in (("f", "flex"), ("d1", "default"), ("d2", "default"), ("p", "priority"), ("r", "reserved")):
        assert admission.enter(name, tier) == []
    order = []
    inside = "first"
    while admitted := admission.leave(inside):
        (inside,) = admitted
        order.append(inside)
    assert order == ["r", "p", "d1", "d2", "f"]
    assert admission.inside == 0


def test_a_share_is_kept_for_the_reserved_tier() -> None:
    admission = Admission(lambda: 4, kept=2)
    assert [admission.enter(f"p{n}", "priority") for n in range(3)] == [["p0"], ["p1"], []]
    assert [admission.enter(f"r{n}", "reserved") for n in range(3)] == [["r0"], ["r1"], []]
    assert admission.leave("r0") == ["r2"]
    assert admission.leave("p0") == ["p2"]


def test_a_share_as_large_as_the_fleet_leaves_one_place() -> None:
    admission = Admission(lambda: 2, kept=9)
    assert admission.enter("d", "default") == ["d"]
    assert admission.enter("e", "default") == []


def test_who_hangs_up_while_waiting_leaves_no_trace() -> None:
    admission = Admission(lambda: 1)
    admission.enter("a", "default")
    admission.enter("b", "default")
    admission.enter("c", "default")
    assert admission.leave("b") == []
    assert admission.leave("a") == ["c"]
    assert admission.waiting == dict.fromkeys(TIERS, 0)


def test_workers_come_and_go() -> None:
    room = 1
    admission = Admission(lambda: room)
    admission.enter("a", "default")
    assert admission.enter("b", "flex") == []
    room = 3
    assert admission.enter("c", "default") == ["c", "b"]
    room = 0
    assert admission.enter("d", "default") == ["d"]


@given(st.lists(st.tuples(st.sampled_from(TIERS), st.booleans()), max_size=80), st.integers(1, 5), st.integers(0, 3))
def test_never_too_many_and_nobody_is_lost(steps: list[tuple[Tier, bool]], capacity: int, kept: int) -> None:
    admission = Admission(lambda: capacity, kept)
    inside: list[str] = []
    tiers: dict[str, Tier] = {}
    for number, (tier, leaves) in enumerate(steps):
        if leaves and inside:
            inside += admission.leave(inside.pop(0))
        tiers[str(number)] = tier
        inside += admission.enter(str(number), tier)
        assert len(inside) == admission.inside <= capacity
        waiting = [tier for tier, count in admission.waiting.items() if count]
        if waiting and len(inside) < capacity:
            own = sum(tiers[one] == "reserved" for one in inside)
            assert waiting[0] != "reserved"
            assert capacity - len(inside) <= min(kept, capacity - 1) - own
    while inside:
        inside += admission.leave(inside.pop(0))
    assert not any(admission.waiting.values())
