"""A wafer is bound by latency, not by bandwidth."""

from __future__ import annotations

from diptych.chips import gpu
from diptych.chips.catalogue import Chip, Model
from diptych.chips.fits import Fits, values
from diptych.chips.stepcost import StepCost, shaped
from diptych.chips.worker import SPAN_TOKENS, Worker, price, weight_bytes


def build(worker: Worker, chip: Chip, model: Model, coefficients: Fits) -> StepCost:
    """Latency, not bandwidth: floor + layers + hops, over the tokens that a pass emits."""
    assert chip.wafer is not None, "a chip of the family wafer has a [wafer] table"
    g, precision = model.geometry, gpu.PRECISIONS[worker.format]
    decode = values(coefficients.decode)
    wafers = worker.chips * chip.wafer.wafers.si
    peak = chip.flops_of(precision.multiply).si * worker.chips
    bandwidth = chip.memory.bandwidth.si * worker.chips
    floor_s = decode["floor"] + g.layers * decode["layer"]
    room = chip.memory.capacity.si * worker.chips * decode["memory_share"] - weight_bytes(worker)
    a_token = g.kv_bytes(SPAN_TOKENS, precision.kv_bytes) / SPAN_TOKENS
    share = worker.prefill_share
    flop_s = 1.0 / (peak * share) if share else float("inf")
    cost = StepCost(
        prefill_fixed_s=floor_s + (wafers - 1) * chip.wafer.hop.si if share else float("inf"),
        prefill_token_s=2.0 * (g.active_params - g.hidden * g.vocab) * flop_s,
        prefill_pair_s=2.0 * g.pair_width * flop_s,
        decode_fixed_s=(floor_s + (wafers - 1) * chip.wafer.hop.si) / worker.acceptance,
        decode_sequence_s=2.0 * g.active_params / (peak * decode["decode_share"]),
        decode_token_s=g.layers * g.kv_elements * precision.kv_bytes / (bandwidth * decode["decode_share"]),
        kv_capacity_tokens=int(max(0.0, room) / a_token),
        cost_per_hour=price(worker),
        kind="assumed",
        notes=("the wafer's prefill rate is unpublished and therefore swept",),
    )
    return shaped(cost, g)
