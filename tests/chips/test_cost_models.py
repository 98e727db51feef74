"""Cost models: never faster than the hardware, monotone, and honest about what they rest on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.chips import catalogue, gpu
from diptych.chips.stepcost import CurveCost, DecodeLine, StepCost
from diptych.chips.worker import Worker, cost_model, fewest_chips, weight_bytes
from diptych.errors import ConfigError

WORKERS = [
    Worker(chip="h100", model="llama-3.1-70b", chips=8),
    Worker(chip="h100", model="llama-3.1-70b", chips=4, format="fp8"),
    Worker(chip="b200", model="deepseek-v3", chips=8, format="fp4"),
    Worker(chip="b200", model="gpt-oss-120b", chips=1, format="mxfp4"),
    Worker(chip="h200", model="llama-4-scout", chips=4),
    Worker(chip="trainium2", model="llama-3.1-405b", chips=16),
    Worker(chip="trainium2", model="gpt-oss-120b", chips=4),
    Worker(chip="cs3", model="llama-3.1-70b", chips=6, prefill_share=0.15),
    Worker(chip="cs3", model="gpt-oss-120b", chips=3, format="mxfp4", prefill_share=0.4, acceptance=1.0),
    Worker(chip="cpu-2core", model="smollm2-135m", chips=1),
    Worker(chip="mi300x", model="llama-3.1-8b", chips=1),
]
tokens = st.integers(1, 60_000)
workers = st.sampled_from(WORKERS)


@given(workers, tokens, st.integers(0, 60_000))
def test_prefill_never_beats_the_peak(worker: Worker, new: int, cached: int):
    g, chip = catalogue.model(worker.model).geometry, catalogue.chip(worker.chip)
    precision = gpu.PRECISIONS[worker.format]
    wanted = ("fp8" if chip.flops.fp4 else "bf16") if precision.multiply == "mxfp4" else precision.multiply
    peak = chip.flops_of(wanted).si * worker.chips
    dense = g.active_params - g.hidden * g.vocab
    assert cost_model(worker).prefill_s(new, cached) >= 2.0 * dense * new / peak * 0.999


@given(workers, st.integers(1, 256), st.integers(1, 4000))
def test_decode_never_beats_the_bandwidth(worker: Worker, batch: int, each: int):
    """Weights that every token reads, and the KV of all sequences, have to be read at least once a pass."""
    g, chip = catalogue.model(worker.model).geometry, catalogue.chip(worker.chip)
    precision = gpu.PRECISIONS[worker.format]
    read = g.always_params * precision.dense_bytes + batch * g.kv_bytes(each, precision.kv_bytes)
    passes = worker.acceptance if chip.family == "wafer" else 1.0
    bound = read / (chip.memory.bandwidth.si * worker.chips) / passes
    assert cost_model(worker).decode_s(batch, batch * each) >= bound * 0.999


@given(workers, st.integers(1, 256), st.integers(1, 256))
def test_decode_never_beats_the_peak(worker: Worker, batch: int, more: int):
    g, chip = catalogue.model(worker.model).geometry, catalogue.chip(worker.chip)
    peak = max(q.si for q in (chip.flops.bf16, chip.flops.fp8, chip.flops.fp4) if q is not None and q.known)
    assert (
        cost_model(worker).decode_s(batch, batch * more)
        >= 2.0 * g.active_params * batch / (peak * worker.chips) * 0.999
    )


@given(workers)
def test_weights_and_kv_fit_into_the_memory(worker: Worker):
    g, chip = catalogue.model(worker.model).geometry, catalogue.chip(worker.chip)
    kv = cost_model(worker).kv_capacity_tokens * g.kv_bytes(8192, gpu.PRECISIONS[worker.format].kv_bytes) / 8192
    assert weight_bytes(worker) * 0.97 + kv <= chip.memory.capacity.si * worker.chips


@given(workers, tokens, tokens, st.integers(0, 9000))
def test_more_work_takes_longer(worker: Worker, a: int, b: int, cached: int):
    cost = cost_model(worker)
    low, high = sorted((a, b))
    assert cost.prefill_s(low, cached) <= cost.prefill_s(high, cached)
    assert cost.prefill_s(low, 0) <= cost.prefill_s(low, cached)
    assert cost.decode_s(4, low) <= cost.decode_s(4, high)
    assert cost.decode_s(4, low) <= cost.decode_s(5, low)


@given(workers, st.integers(1, 300), st.integers(0, 3_000_000), st.integers(0, 100_000))
def test_the_line_is_the_step(worker: Worker, batch: int, context: int, further: int):
    cost = cost_model(worker)
    assert isinstance(cost, DecodeLine)
    base, slope, until = cost.decode_line(batch, context)
    at = min(context + further, until)
    assert base + slope * at == pytest.approx(cost.decode_s(batch, int(at)), rel=1e-9)
    assert until > context


def test_windows_make_a_knee():
    cost = cost_model(Worker(chip="b200", model="gpt-oss-120b", chips=1, format="mxfp4"))
    _, slope, until = cost.decode_line(4, 100)
    _, later, end = cost.decode_line(4, 4 * 128)
    assert until == 4 * 128
    assert later == pytest.approx(slope / 2)
    assert end == float("inf")


def test_a_knee_in_prefill():
    cost = StepCost(
        prefill_fixed_s=1.0, prefill_token_s=0.0, decode_fixed_s=1.0, decode_token_s=0.0, kv_capacity_tokens=1,
        knee=(2048.0, 5.0, 0.001),
    )  # fmt: skip
    assert cost.prefill_s(2048) == 1.0
    assert cost.prefill_s(2049) == pytest.approx(6.001)


def test_a_curve_is_straight_between_its_points_and_beyond_the_last():
    cost = CurveCost(
        points=((100.0, 1.0), (200.0, 3.0)), decode_fixed_s=1.0, decode_sequence_s=0.0, decode_token_s=0.0,
        kv_capacity_tokens=1,
    )  # fmt: skip
    assert [cost.prefill_s(n) for n in (0, 50, 100, 150, 200, 300)] == [0.0, 1.0, 1.0, 2.0, 3.0, 5.0]


def test_a_model_that_does_not_fit_says_how_many_chips_it_takes():
    with pytest.raises(ConfigError, match="does not fit on 4 x h100; the fewest that hold it are 11"):
        cost_model(Worker(chip="h100", model="llama-3.1-405b", chips=4))
    assert fewest_chips(Worker(chip="h100", model="llama-3.1-405b", chips=1)) == 11


def test_a_chip_without_a_peak_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match="FLOP/s unknown"):
        cost_model(Worker(chip="groq-3-lpu", model="llama-3.1-8b", chips=256))


@pytest.mark.parametrize(("field", "value"), [("format", "fp3"), ("chips", 0), ("dp", 3)])
def test_a_worker_that_cannot_be_is_refused(field: str, value: object):
    good = {"chip": "h100", "model": "llama-3.1-8b", "chips": 2}
    with pytest.raises(ConfigError):
        cost_model(Worker(**{**good, field: value}))  # type: ignore[arg-type]


def test_a_wafer_without_a_prefill_share_cannot_read():
    assert cost_model(Worker(chip="cs3", model="llama-3.1-70b", chips=6)).prefill_s(100) == float("inf")


def test_borrowed_coefficients_are_assumed_and_say_so():
    own, borrowed = (cost_model(Worker(chip=c, model="llama-3.1-8b", chips=1)) for c in ("h100", "mi300x"))
    assert own.kind == "published"
    assert borrowed.kind == "assumed"
    assert "mi300x: no measurement" in borrowed.notes[0]


def test_speculation_divides_the_floor():
    slow, fast = (cost_model(Worker(chip="cs3", model="llama-3.1-70b", chips=6, acceptance=a)) for a in (1.0, 2.0))
    assert slow.decode_fixed_s == pytest.approx(2 * fast.decode_fixed_s)
