"""The learned cost models: they reproduce what was measured and follow what changes."""

import numpy as np
import pytest

from diptych.routing.learned import LearnedCost, fit_prefill


def test_the_fit_goes_through_three_points() -> None:
    points = [(48, 0.06), (160, 0.18), (400, 0.50)]
    a, b, c, d = fit_prefill(points)
    for tokens, seconds in points:
        assert a + b * tokens + c * tokens**2 == pytest.approx(seconds)
    assert d == 2 * c


def test_a_negative_term_is_dropped_rather_than_extrapolated() -> None:
    a, b, c, _ = fit_prefill([(48, 0.2), (160, 0.5), (400, 0.9)])
    assert c == 0.0
    assert a >= 0
    assert b > 0


def test_a_bend_that_is_noise_is_not_extrapolated() -> None:
    a, b, c, _ = fit_prefill([(24, 0.010), (96, 0.011), (288, 0.040)])
    assert c == 0.0
    assert a + b * 288 == pytest.approx(0.040)


def test_two_points_and_one_point_still_give_a_line() -> None:
    a, b, c, _ = fit_prefill([(10, 0.1), (20, 0.2)])
    assert (a + b * 30, c) == (pytest.approx(0.3), 0.0)
    assert fit_prefill([(1, 0.0)])[1] == pytest.approx(0.0)


def test_observations_move_the_prediction_and_older_ones_fade() -> None:
    cost = LearnedCost((0.0, 0.001, 0.0, 0.0), (0.01, 0.0, 0.0), 1000)
    for _ in range(60):
        cost.saw_prefill(512, 0, 1.024)
    assert cost.prefill_s(512) == pytest.approx(1.024, rel=0.1)
    for _ in range(200):
        cost.saw_prefill(512, 0, 0.256)
    assert cost.prefill_s(512) == pytest.approx(0.256, rel=0.1)


def test_steps_learn_the_price_of_a_batch() -> None:
    cost = LearnedCost((0.0, 0.001, 0.0, 0.0), (0.008, 0.004, 1e-6), 1000)
    draw = np.random.default_rng(0)
    for _ in range(300):
        batch, context = int(draw.integers(1, 9)), int(draw.integers(100, 12_000))
        cost.saw_step(batch, context, 0.006 + 0.003 * batch + 2e-6 * context)
    assert cost.decode_s(8, 4000) == pytest.approx(0.006 + 0.024 + 0.008, rel=0.1)


def test_a_prediction_is_never_negative() -> None:
    cost = LearnedCost((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0)
    cost.saw_prefill(100, 0, 0.0)
    assert cost.prefill_s(0) == 0.0
