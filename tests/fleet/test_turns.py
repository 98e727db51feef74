"""Whose chunk is next: short ones do not wait behind long ones, long ones do not wait for ever."""

from diptych.fleet.turns import AGEING_TOKENS_PER_S, next_turn


class Turn:
    def __init__(self, remaining: int, added_s: float = 0.0, started: bool = False, ready: bool = True) -> None:
        self.remaining, self.added_s, self.started, self.ready = remaining, added_s, started, ready


def test_the_shortest_goes_first_even_when_a_long_one_has_begun() -> None:
    long, short = Turn(2000, started=True), Turn(30)
    assert next_turn([long, short], 0.0, 4) is short


def test_a_long_one_is_served_under_an_endless_stream_of_short_ones() -> None:
    long = Turn(2000, started=True)
    now, served = 0.0, 0
    while long.remaining > 0 and now < 60:
        turn = next_turn([long, Turn(100, added_s=now)], now, 4)
        assert turn is not None
        served += turn is long
        turn.remaining -= min(256, turn.remaining)
        now += 0.25
    assert long.remaining == 0
    assert now > (2000 - 100) / AGEING_TOKENS_PER_S  # it did wait its time


def test_no_more_than_the_limit_hold_buffers() -> None:
    started = [Turn(500, started=True) for _ in range(2)]
    fresh = Turn(10)
    assert next_turn([*started, fresh], 0.0, 2) in started
    assert next_turn([*started, fresh], 0.0, 3) is fresh


def test_one_whose_receiver_is_slow_holds_up_nobody() -> None:
    stalled, other = Turn(10, started=True, ready=False), Turn(500)
    assert next_turn([stalled, other], 0.0, 4) is other
    assert next_turn([stalled], 0.0, 4) is None


def test_nothing_to_do() -> None:
    assert next_turn([], 0.0, 4) is None
