"""aiconfigurator's table of GPU measurements: reading it, mending its layouts, and judging the GPU model by it.

The concurrency stands only inside a text column, some layouts name more GPUs than there were, and saturated points
measure a queue. Rows are left out by named rules, and every rule's count is reported.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from pathlib import Path

import msgspec

from diptych.chips import catalogue, gpu
from diptych.chips.fit import Fitted, fit_terms
from diptych.errors import ConfigError
from diptych.planner.validation.table import Score, score

SYSTEMS = {
    "h100_sxm": "h100", "h200_sxm": "h200", "b200_sxm": "b200", "b300_sxm": "b300", "gb200": "gb200",
    "gb300": "gb300", "a100_sxm": "a100",
}  # fmt: skip
FORMATS: dict[str, gpu.Format] = {
    "nvfp4": "fp4", "fp8": "fp8", "fp8_block": "fp8", "int4_wo": "int4", "": "bf16", "bf16": "bf16",
}  # fmt: skip
DECODE_PRIOR = {
    "weights": 1.2, "kv": 1.2, "flops": 1.2, "allreduce": 1.2, "layer": 1.2e-5, "expert_layer": 1.2e-5,
    "latent_layer": 1.2e-5, "indexer_layer": 1.2e-5, "mixed_flops": 1.2, "mixed_tokens": 1.2,
}  # fmt: skip
PREFILL_PRIOR = {
    "dense_flops": 1.2, "expert_flops": 1.2, "attention_flops": 1.2, "token_traffic": 1.2, "weights": 1.2,
    "layer": 1.2e-4, "latent_layer": 1.2e-4, "queued_flops": 1.2, "queued_latent": 1.2e-8,
}  # fmt: skip
TPOT_TARGET, TTFT_TARGET, TPOT_MODEL_TARGET, TTFT_MODEL_TARGET = 0.15, 0.25, 0.35, 0.45


class Row(msgspec.Struct, frozen=True):
    """One measurement of a replica under ``concurrency`` requests of ``isl`` tokens in and ``osl`` out."""

    model: str
    setup: gpu.Setup
    backend: str
    concurrency: float
    isl: float
    osl: float
    ttft_s: float
    tpot_s: float


def read(path: Path) -> tuple[list[Row], dict[str, int]]:
    """The aggregated rows that can be judged, and how many each rule left out."""
    left_out: Counter[str] = Counter()
    rows: dict[tuple[object, ...], Row] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line, record in enumerate(csv.DictReader(file), 2):
            try:
                row, reason = _row(record)
            except (KeyError, ValueError, TypeError) as error:
                raise ConfigError(f"{path}:{line}: not a row of aiconfigurator's table: {error}") from None
            if row is None:
                left_out[reason] += 1
                continue
            kept = rows.setdefault((*msgspec.structs.astuple(row)[2:], row.model, row.setup.chip.id), row)
            left_out["duplicate"] += kept is not row
    return list(rows.values()), dict(left_out)


def _row(record: dict[str, str]) -> tuple[Row | None, str]:
    if record["mode"] != "agg":
        return None, "disaggregated: worker counts are missing"
    try:
        model = catalogue.model(record["model_path"])
    except ConfigError:
        return None, "no geometry for the model"
    if (format_ := _format(model.id, record)) is None or record["system"] not in SYSTEMS:
        return None, "unknown system or quantisation"
    gpus, dp = _layout(record, model.geometry.experts > 0)
    if model.geometry.heads % (gpus // dp):
        return None, "layout: tensor parallelism does not divide the heads"
    setup = gpu.Setup(model.geometry, catalogue.chip(SYSTEMS[record["system"]]), gpu.PRECISIONS[format_], gpus, dp)
    row = Row(
        model.id, setup, record["backend"], _concurrency(record, dp), float(record["isl"]), float(record["osl"]),
        float(record["silicon_ttft_ms"]) / 1e3, float(record["silicon_tpot_ms"]) / 1e3,
    )  # fmt: skip
    reason = _unusable(row)
    return (None, reason) if reason else (row, "")


def _unusable(row: Row) -> str:
    """The rule that leaves the row out, or nothing."""
    if not (math.isfinite(row.ttft_s) and row.ttft_s > 0 and math.isfinite(row.tpot_s) and row.tpot_s > 0):
        return "no time"
    room = row.setup.kv_room_tokens(context=row.isl + row.osl)
    if row.concurrency * (row.isl + row.osl) > 0.9 * room:
        return "KV need above 0.9 of capacity"
    if row.ttft_s > 0.1 * row.osl * row.tpot_s:
        return "saturated: TTFT above 10 % of osl x TPOT"
    return ""


def _format(model: str, record: dict[str, str]) -> gpu.Format | None:
    if model.startswith("gpt-oss"):
        return "mxfp4"  # whatever the column says: these weights exist in no other format
    return FORMATS.get(record["moe_quant_mode"] or record["gemm_quant_mode"])


def _layout(record: dict[str, str], experts: bool) -> tuple[int, int]:
    """(GPUs, attention ranks that each hold whole heads), mended where the table names more GPUs than there were."""

    def at_least_one(key: str) -> int:
        return max(1, int(float(record[key] or 1)))

    tp, dp = at_least_one("tp_size"), at_least_one("attention_dp_size")
    moe_tp, ep = at_least_one("moe_tp_size"), at_least_one("moe_ep_size")
    gpus = tp * dp
    if experts and tp == dp > 1 and ep == tp * dp:
        return tp, tp
    if experts and moe_tp == ep > 1:
        gpus = ep  # "4x4" is four GPUs, not sixteen
        return gpus, min(dp, gpus) if dp > 1 else 1
    if experts and gpus < moe_tp * ep:
        gpus = moe_tp * ep
        return gpus, gpus // tp
    return gpus, min(dp, gpus)


def _concurrency(record: dict[str, str], dp: int) -> float:
    if found := re.search(r"silicon_concurrency=(\d+)", record["silicon_data_source"]):
        return float(found[1])
    return float(record["batch_size"]) * dp


def tpot_terms(row: Row) -> dict[str, float]:
    """A decode step at half of the output, and the prompts that are mixed into the steps of one output."""
    mixed = gpu.mixed_terms(row.setup, row.isl)
    rate = row.concurrency / row.osl
    return {
        **gpu.decode_terms(row.setup, row.concurrency, row.isl + row.osl / 2),
        **{name: seconds * rate for name, seconds in mixed.items()},
    }


def ttft_terms(row: Row) -> dict[str, float]:
    return gpu.prefill_terms(row.setup, row.isl, row.concurrency)


def ttft_factors(row: Row) -> dict[str, float]:
    """Log of the concurrency over 16, and which engine it was."""
    return {
        "concurrency": math.log(row.concurrency / 16.0),
        "sglang": float(row.backend == "sglang"),
        "vllm": float(row.backend == "vllm"),
    }


def fit_tpot(rows: list[Row]) -> Fitted:
    terms = [tpot_terms(row) for row in rows]
    return fit_terms(terms, [{}] * len(rows), [r.tpot_s for r in rows], DECODE_PRIOR, gpu.AT_PEAK, pull=0.2)


def fit_ttft(rows: list[Row]) -> Fitted:
    terms, factors = [ttft_terms(row) for row in rows], [ttft_factors(row) for row in rows]
    return fit_terms(terms, factors, [r.ttft_s for r in rows], PREFILL_PRIOR, gpu.AT_PEAK, pull=0.05)


def judge(path: Path) -> list[Score]:
    """Leave one model out: each is predicted by a fit to all of the others."""
    rows, excluded = read(path)
    tpot: dict[str, list[tuple[float, float]]] = {}
    ttft: dict[str, list[tuple[float, float]]] = {}
    for model in sorted({row.model for row in rows}):
        others, own = [r for r in rows if r.model != model], [r for r in rows if r.model == model]
        decode, prefill = fit_tpot(others), fit_ttft(others)
        tpot[model] = [(decode.predict(tpot_terms(r)), r.tpot_s) for r in own]
        ttft[model] = [(prefill.predict(ttft_terms(r), ttft_factors(r)), r.ttft_s) for r in own]
    return [
        *_scores("TPOT", tpot, len(rows), excluded, TPOT_TARGET, TPOT_MODEL_TARGET),
        *_scores("TTFT", ttft, len(rows), excluded, TTFT_TARGET, TTFT_MODEL_TARGET),
    ]


def _scores(
    metric: str,
    found: dict[str, list[tuple[float, float]]],
    rows: int,
    excluded: dict[str, int],
    target: float,
    model_target: float,
) -> list[Score]:
    everything = [pair for pairs in found.values() for pair in pairs]
    whole = score("gpu_silicon", f"{metric}, leave one model out", everything, fit_rows=rows, target=target,
                  excluded=excluded)  # fmt: skip
    models = [
        score(
            "gpu_silicon",
            f"{metric}, {model} held out",
            pairs,
            fit_rows=rows - len(pairs),
            target=model_target,
        )
        for model, pairs in found.items()
    ]
    return [whole, *models]
