"""The fitted roofline of ``chips/gpu.py``; decode without mixed prompts, prefill as if it were alone."""

from __future__ import annotations

import math

from diptych.chips import gpu
from diptych.chips.catalogue import Chip, Model
from diptych.chips.fits import Fits, values
from diptych.chips.stepcost import StepCost, shaped
from diptych.chips.worker import MEMORY_SHARE, SPAN_TOKENS, Worker, kind_of, notes_of, price


def build(worker: Worker, chip: Chip, model: Model, coefficients: Fits) -> StepCost:
    """The fitted roofline; decode without concurrency's mixed prompts, prefill as if it were alone."""
    s = gpu.Setup(model.geometry, chip, gpu.PRECISIONS[worker.format], worker.chips, worker.dp)
    g, decode, prefill = model.geometry, values(coefficients.decode), values(coefficients.prefill)
    one, token = gpu.prefill_terms(s, 1.0, 1.0), 1.0 / s.gpus / s.peak
    alone = math.exp(math.fsum(_alone(coefficients).values()))
    fixed = {name: one[name] for name in ("layer", "latent_layer")}
    per_token = {n: one[n] for n in ("dense_flops", "expert_flops", "token_traffic", "queued_flops", "queued_latent")}
    pair_s = 2.0 * g.pair_width / s.tp / chip.flops_of("bf16").si
    every_expert = gpu.decode_terms(s, 1e9, 1.0)["weights"] - _shared_read(s)
    peak_token_s = 2.0 * (g.active_params - g.hidden * g.vocab) * token
    weights = prefill.get("weights", 0.0)
    step = gpu.decode_terms(s, 1.0, 1.0)
    mixed = gpu.mixed_terms(s, 2048.0)
    own = gpu.weighted(gpu.prefill_terms(s, 2048.0, 1.0), prefill) * alone
    cost = StepCost(
        prefill_fixed_s=(gpu.weighted(fixed, prefill) + weights * _shared_read(s)) * alone,
        prefill_token_s=max(gpu.weighted(per_token, prefill) * alone, peak_token_s),
        prefill_pair_s=pair_s * prefill.get("attention_flops", 1.0),
        prefill_experts_s=weights * every_expert * alone,
        decode_fixed_s=gpu.weighted(gpu.layer_terms(g), decode) + decode.get("weights", 0.0) * _shared_read(s),
        decode_sequence_s=gpu.weighted({n: step[n] for n in ("flops", "allreduce")}, decode)
        + decode.get("sequence", 0.0),
        decode_experts_s=decode.get("weights", 0.0) * every_expert,
        decode_token_s=decode.get("kv", 0.0) * step["kv"],
        kv_capacity_tokens=int(s.kv_room_tokens(MEMORY_SHARE, SPAN_TOKENS)),
        cost_per_hour=price(worker),
        interference=min(1.0, gpu.weighted(mixed, values(coefficients.mixed)) / own) if coefficients.mixed else 1.0,
        kind=kind_of(chip, model, coefficients, *([chip.links.scale_up] if worker.chips > 1 else [])),
        notes=notes_of(chip, coefficients),
    )
    return shaped(cost, g)


def _alone(coefficients: Fits) -> dict[str, float]:
    """Exponents x factors for one request alone (concurrency is counted against 16) on the best-known engine."""
    found = values(coefficients.factors)
    return {
        "concurrency": found.get("concurrency", 0.0) * math.log(1.0 / 16.0),
        "vllm": found.get("vllm", 0.0),
    }


def _shared_read(s: gpu.Setup) -> float:
    """Seconds at peak to read what every token reads."""
    return s.geometry.always_params * s.precision.dense_bytes / s.tp / s.bandwidth
