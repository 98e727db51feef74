"""offered = admitted + recomputed + failed, whatever happens and however often it is said."""

from __future__ import annotations

import random

from diptych.tally import Tally


def test_every_handoff_ends_once() -> None:
    tally, chance = Tally(), random.Random(1)
    ends = ["admitted", "recomputed", "failed"]
    for _ in range(1000):
        handoff = tally.begin()
        for _ in range(chance.randint(1, 3)):
            handoff.ended(chance.choice(ends), chance.choice(["a", "b"]))  # type: ignore[arg-type]
    counts = tally.as_dict()
    assert counts["offered"] == 1000
    assert counts["admitted"] + sum(counts["recomputed"].values()) + sum(counts["failed"].values()) == 1000
    assert set(counts["recomputed"]) == set(counts["failed"]) == {"a", "b"}
