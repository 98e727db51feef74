"""Which cores a decode worker's threads are bound to."""

from diptych.config import DecodeSettings, FleetSettings, PrefillSettings
from diptych.fleet.cores import bound


def test_engines_that_must_share_cores_have_decode_bound_a_thread_a_core() -> None:
    assert bound(FleetSettings(), (4, 5)) == {"decode-0": (4, 5)}


def test_cores_for_everybody_bind_nobody() -> None:
    assert bound(FleetSettings(), range(4)) == {}


def test_several_decode_workers_take_the_cores_in_turn() -> None:
    fleet = FleetSettings(decode=tuple(DecodeSettings(id=f"decode-{i}", threads=2) for i in range(3)))
    assert bound(fleet, (0, 1, 2)) == {"decode-0": (0, 1), "decode-1": (2, 0), "decode-2": (1, 2)}


def test_threads_elsewhere_need_no_core() -> None:
    elsewhere = FleetSettings(prefill=(PrefillSettings(device="cuda"),))
    assert bound(elsewhere, (0, 1)) == {}
    addressed = FleetSettings(decode=(DecodeSettings(address="http://10.0.0.1:8080"), DecodeSettings(id="here")))
    assert bound(addressed, (0, 1)) == {"here": (0, 1)}


def test_more_threads_than_cores_are_left_to_the_scheduler() -> None:
    assert bound(FleetSettings(decode=(DecodeSettings(threads=3),)), (0, 1)) == {}
