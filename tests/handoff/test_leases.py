"""Leases end exactly once, for a reason that is said, and never hold more than their limit."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from diptych.handoff.leases import Lease, Leases


def lease(name: str, owner: str = "d0", kv_bytes: int = 10, until: float = 100.0) -> Lease[str]:
    return Lease(name, owner, kv_bytes, until, f"kv of {name}")


def test_heartbeat_keeps_all_of_an_owner_and_silence_ends_them() -> None:
    leases: Leases[str] = Leases(limit_bytes=1000, silence_s=5.0)
    for name in "abc":
        leases.grant(lease(name), now=0.0)
    leases.grant(lease("x", owner="d1"), now=0.0)
    leases.heartbeat("d0", now=4.0)
    assert [(ended.id, why) for ended, why in leases.expire(now=6.0)] == [("x", "silent")]
    assert len(leases) == 3
    assert [why for _, why in leases.expire(now=9.0)] == ["silent"] * 3
    assert leases.kv_bytes == 0


def test_a_lease_ends_at_its_own_time_however_alive_its_owner() -> None:
    leases: Leases[str] = Leases(limit_bytes=1000, silence_s=5.0)
    leases.grant(lease("a", until=7.0), now=6.0)
    assert leases.expire(now=6.9) == []
    assert [why for _, why in leases.expire(now=7.0)] == ["expired"]


def test_the_oldest_goes_when_room_is_needed() -> None:
    leases: Leases[str] = Leases(limit_bytes=25, silence_s=5.0)
    leases.grant(lease("a"), now=0.0)
    leases.grant(lease("b"), now=0.0)
    assert [(ended.id, why) for ended, why in leases.grant(lease("c"), now=0.0)] == [("a", "room")]
    assert [ended.id for ended, _ in leases.grant(lease("huge", kv_bytes=26), now=0.0)] == ["b", "c", "huge"]
    assert (len(leases), leases.kv_bytes) == (0, 0)


def test_granting_again_supersedes_and_release_is_idempotent() -> None:
    leases: Leases[str] = Leases(limit_bytes=100, silence_s=5.0)
    leases.grant(lease("a"), now=0.0)
    assert [why for _, why in leases.grant(lease("a", owner="d1"), now=0.0)] == ["superseded"]
    assert leases.lost("d0") == []
    assert [ended.what for ended in leases.lost("d1")] == ["kv of a"]
    assert leases.release("a") is None
    leases.grant(lease("b"), now=0.0)
    ended = leases.release("b")
    assert ended is not None
    assert leases.release("b") is None
    leases.heartbeat("d0", now=1.0)
    assert leases.expire(now=1000.0) == []


class Model(RuleBasedStateMachine):
    """Against a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.leases: Leases[str] = Leases(limit_bytes=60, silence_s=4.0)
        self.held: dict[str, Lease[str]] = {}
        self.heard: dict[str, float] = {}
        self.now = 0.0
        self.ended: set[str] = set()
        self.granted = 0

    def gone(self, lease_id: str) -> None:
        del self.held[lease_id]
        assert lease_id not in self.ended
        self.ended.add(lease_id)

    @rule(owner=st.sampled_from(["d0", "d1"]), size=st.integers(1, 30), life=st.floats(0.5, 20))
    def grant(self, owner: str, size: int, life: float) -> None:
        self.granted += 1
        made = lease(str(self.granted), owner, size, self.now + life)
        self.held[made.id] = made
        for old, why in self.leases.grant(made, self.now):
            assert why == "room"
            self.gone(old.id)
        self.heard[owner] = self.now

    @rule(owner=st.sampled_from(["d0", "d1", "d2"]))
    def heartbeat(self, owner: str) -> None:
        self.leases.heartbeat(owner, self.now)
        self.heard[owner] = self.now

    @rule(pick=st.integers(0, 5))
    def release(self, pick: int) -> None:
        if self.held:
            lease_id = sorted(self.held)[pick % len(self.held)]
            assert self.leases.release(lease_id) == self.held[lease_id]
            self.gone(lease_id)

    @rule(owner=st.sampled_from(["d0", "d1"]))
    def lost(self, owner: str) -> None:
        for ended in self.leases.lost(owner):
            assert ended.owner == owner
            self.gone(ended.id)
        assert all(held.owner != owner for held in self.held.values())

    @rule(seconds=st.floats(0.1, 5))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for ended, _ in self.leases.expire(self.now):
            assert self.now >= ended.until or self.now - self.heard[ended.owner] >= 4.0
            self.gone(ended.id)
        for held in self.held.values():
            assert self.now < held.until
            assert self.now - self.heard[held.owner] < 4.0

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.leases) == len(self.held)
        assert self.leases.kv_bytes == sum(held.kv_bytes for held in self.held.values()) <= 60


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)
