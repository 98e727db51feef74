"""A worker whose own records were fitted (``diptych fit``): a + b n + c n^2, and a + b batch + c context."""

from __future__ import annotations

from diptych.chips.catalogue import Chip, Model
from diptych.chips.fits import Fits, values
from diptych.chips.gpu import PRECISIONS
from diptych.chips.stepcost import StepCost
from diptych.chips.worker import MEMORY_SHARE, SPAN_TOKENS, Worker, kind_of, price, weight_bytes


def build(worker: Worker, chip: Chip, model: Model, coefficients: Fits) -> StepCost:
    """Times as fitted; room for KV from the memory of the chips."""
    prefill, decode = values(coefficients.prefill), values(coefficients.decode)
    room = chip.memory.capacity.si * worker.chips * MEMORY_SHARE - weight_bytes(worker)
    a_token = model.geometry.kv_bytes(SPAN_TOKENS, PRECISIONS[worker.format].kv_bytes) / SPAN_TOKENS
    return StepCost(
        prefill_fixed_s=prefill["fixed"],
        prefill_token_s=prefill["token"],
        prefill_pair_s=2.0 * prefill["token_squared"],
        decode_fixed_s=decode["fixed"],
        decode_sequence_s=decode["sequence"],
        decode_token_s=decode["context"],
        kv_capacity_tokens=int(max(0.0, room) / a_token),
        cost_per_hour=price(worker),
        kind=kind_of(chip, model, coefficients),
    )
