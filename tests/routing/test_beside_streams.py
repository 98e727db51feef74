"""What a prefill worker takes beside running streams is not taken for what it takes."""

import pytest

from diptych.routing.learned import LearnedCost
from diptych.routing.router import DecodeView, Flying, PrefillView, Router
from diptych.types import Request, Sampling


@pytest.mark.parametrize(("cores", "learns"), [("host", False), ("", True)])
def test_a_slow_reading(cores: str, learns: bool) -> None:
    router = Router("transparent")
    reads = LearnedCost((0.0, 1e-3, 0.0, 0.0), (0.0, 0.0, 0.0), 0)
    router.prefill["p"] = PrefillView(reads, 1000, cores)
    router.decode["d"] = DecodeView(LearnedCost((0.0,) * 4, (0.0,) * 3, 1000), 8, 1000, cores)
    request = Request(id="r", model="m", prompt=tuple(range(101)), sampling=Sampling(max_tokens=1))
    router.decode["d"].flying["other"] = Flying(10, decoding=True)
    before = reads.prefill_s(100, 0)
    router.read("p", request, 0, 5.0)
    assert (reads.prefill_s(100, 0) > before) == learns
    router.decode["d"].flying.clear()
    router.read("p", request, 0, 5.0)
    assert reads.prefill_s(100, 0) > before
