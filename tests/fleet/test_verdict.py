"""The verdict over canaries, and the numbers it rests on."""

import numpy as np
import pytest

from diptych.fleet.canary import kl_nats, top1_and_gap, worst_row
from diptych.fleet.verdict import CanaryOutcome, judge

GOOD = CanaryOutcome(64, kl=0.006, top1_equal=True, gap=1.0, k_row_error=0.1, v_row_error=0.2)


def changed(**fields: object) -> list[CanaryOutcome]:
    values = {name: getattr(GOOD, name) for name in GOOD.__struct_fields__}
    return [GOOD] * 31 + [CanaryOutcome(**{**values, **fields})]


def test_good_canaries_pass() -> None:
    verdict = judge([GOOD] * 32)
    assert verdict.passed
    assert verdict.failures == ()


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"kl": 2.0}, "kl_mean"),
        ({"top1_equal": False, "gap": 0.6}, "max_flip_gap"),
        ({"k_row_error": 0.98}, "k_row_error_max"),
        ({"v_row_error": 1.67}, "v_row_error_max"),
        ({"k_row_error": float("inf")}, "k_row_error_max"),
        ({"kl": float("nan")}, "kl_mean"),
    ],
)
def test_one_bad_canary_fails_the_pair_and_says_why(fields: dict[str, object], name: str) -> None:
    verdict = judge(changed(**fields))
    assert not verdict.passed
    assert any(failure.startswith(name) for failure in verdict.failures)


def test_many_flips_fail_even_when_each_is_a_near_tie() -> None:
    flip = changed(top1_equal=False, gap=0.1)[-1]
    assert not judge([GOOD] * 24 + [flip] * 8).passed
    assert judge([GOOD] * 28 + [flip] * 4).passed


def test_kl_is_zero_for_equals_and_exact_for_a_known_pair() -> None:
    p = np.log(np.array([0.5, 0.25, 0.25]))
    q = np.log(np.array([0.25, 0.5, 0.25]))
    assert kl_nats(p, p) == 0.0
    assert kl_nats(p, q) == pytest.approx(0.25 * np.log(2))
    assert kl_nats(p + 3.0, q - 1.0) == pytest.approx(0.25 * np.log(2))


def test_top1_and_its_lead() -> None:
    assert top1_and_gap(np.array([-3.0, -1.0, -1.5, -9.0])) == (1, pytest.approx(0.5))


def test_the_worst_row_sees_one_zeroed_and_one_shifted_row() -> None:
    draw = np.random.default_rng(1)
    own = [draw.normal(size=(20, 64)).astype(np.float16) for _ in range(3)]
    assert worst_row(own, own) == 0.0
    zeroed = [layer.copy() for layer in own]
    zeroed[1][7] = 0
    assert worst_row(own, zeroed) == pytest.approx(1.0, abs=0.01)
    assert worst_row(own, [np.roll(layer, 1, axis=0) for layer in own]) > 0.9
    broken = [layer.copy() for layer in own]
    broken[2][0, 0] = np.nan
    assert worst_row(own, broken) == float("inf")
