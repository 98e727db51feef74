"""Trainium: time per layer, weights and KV at the bandwidth, FLOPs at the peak, exchanges at the link."""

from __future__ import annotations

from diptych.chips import gpu
from diptych.chips.catalogue import Chip, Model
from diptych.chips.fits import Fits, values
from diptych.chips.stepcost import StepCost, shaped
from diptych.chips.worker import MEMORY_SHARE, SPAN_TOKENS, Worker, kind_of, notes_of, price, weight_bytes


def build(worker: Worker, chip: Chip, model: Model, coefficients: Fits) -> StepCost:
    """Time per layer, weights and KV at the bandwidth, FLOPs at the peak, each with its coefficient."""
    g, precision = model.geometry, gpu.PRECISIONS[worker.format]
    decode, prefill = values(coefficients.decode), values(coefficients.prefill)
    peak = chip.flops_of(precision.multiply).si * worker.chips
    bandwidth = chip.memory.bandwidth.si * worker.chips
    experts = g.moe_layers * g.experts * g.expert_params * precision.expert_bytes
    room = chip.memory.capacity.si * worker.chips * MEMORY_SHARE - weight_bytes(worker)
    a_token = g.kv_bytes(SPAN_TOKENS, precision.kv_bytes) / SPAN_TOKENS
    shared_read = g.always_params * precision.dense_bytes / bandwidth
    flop_s = prefill["flops"] / peak
    link = chip.links.scale_up
    exchanged = worker.chips > 1 and link.known
    exchange_s = prefill["exchange"] * 4.0 * g.layers * g.hidden / link.si if exchanged else 0.0
    cost = StepCost(
        prefill_fixed_s=prefill["layer"] * g.layers,
        prefill_token_s=2.0 * (g.active_params - g.hidden * g.vocab) * flop_s + exchange_s,
        prefill_pair_s=2.0 * g.pair_width * flop_s,
        decode_fixed_s=decode["layer"] * g.layers + decode["weights"] * shared_read,
        decode_sequence_s=2.0 * g.active_params / peak * decode.get("flops", 1.0),
        decode_experts_s=decode["weights"] * experts / bandwidth,
        decode_token_s=decode["weights"] * g.layers * g.kv_elements * precision.kv_bytes / bandwidth,
        kv_capacity_tokens=int(max(0.0, room) / a_token),
        cost_per_hour=price(worker),
        kind=kind_of(chip, model, coefficients),
        notes=notes_of(chip, coefficients),
    )
    return shaped(cost, g)
