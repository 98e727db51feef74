"""The wafer, Trainium, a KV link and a pair of desktops: fitted to a few published points, judged on the others."""

from __future__ import annotations

import math

from diptych.chips import catalogue
from diptych.chips.fit import fit_positive
from diptych.chips.fits import fits, values
from diptych.chips.measurements import PairPoint, TrainiumPoint, WaferPoint, published
from diptych.chips.worker import Worker, weight_bytes
from diptych.planner.validation.table import Score, score

WAFER_TARGET, TRAINIUM_TARGET, TRANSFER_TARGET, PAIR_TARGET = 0.15, 0.35, 0.10, 0.10
PREFILL_LAYER_S = 0.0897 / 80
"""Seconds per layer of a Trainium2 prefill that no token adds to: 89.7 ms for Llama 3.3 70B at a prompt of a few
hundred tokens (the prefix-caching table of NxD Inference), over its 80 layers."""


def wafers_for(model: str, format_: str, share: float) -> int:
    """Systems of CS-3 whose SRAM holds the weights."""
    worker = Worker(chip="cs3", model=model, chips=1, format=format_)  # type: ignore[arg-type]  # from the same Literal
    return math.ceil(weight_bytes(worker) / (catalogue.chip("cs3").memory.capacity.si * share))


def wafer_row(point: WaferPoint) -> tuple[list[float], float, float]:
    """(terms, seconds of hops, seconds of one pass). A pass emits ``acceptance`` tokens."""
    chip, layers = catalogue.chip("cs3"), catalogue.model(point.model).geometry.layers
    assert chip.wafer is not None, "the CS-3 has a [wafer] table"
    share = values(fits("wafer").decode)["memory_share"]
    hops_s = (wafers_for(point.model, point.format, share) - 1) * chip.wafer.hop.si
    return [1.0, float(layers)], hops_s, point.acceptance / point.decode.si


def fit_wafer(points: list[WaferPoint]) -> list[float]:
    """[floor_s, layer_s] of a pass."""
    rows = [wafer_row(point) for point in points]
    return fit_positive([terms for terms, _, _ in rows], [pass_s - hops for _, hops, pass_s in rows])


def judge_wafer() -> list[Score]:
    points = published().wafer
    fitted = [p for p in points if p.role == "fit"]
    found = fit_wafer(fitted)
    scores = []
    for role, metric, target in (
        ("judge", "decode tok/s", WAFER_TARGET),
        ("print", "decode, out of family", None),
    ):
        pairs = []
        for point in (p for p in points if p.role == role):
            (one, layers), hops_s, _ = wafer_row(point)
            predicted_s = (found[0] * one + found[1] * layers + hops_s) / point.acceptance
            pairs.append((1.0 / predicted_s, point.decode.si))
        scores.append(score("cs3", metric, pairs, fit_rows=len(fitted), target=target, by="max"))
    return scores


def trainium_tpot_terms(point: TrainiumPoint) -> list[float]:
    """[layers, seconds at the bandwidth]: one stream reads its weights and its KV."""
    g, chip = catalogue.model(point.model).geometry, catalogue.chip("trainium2")
    read = 2.0 * g.active_params + g.kv_bytes(point.prompt)
    return [float(g.layers), read / (chip.memory.bandwidth.si * point.chips)]


def trainium_ttft_terms(point: TrainiumPoint) -> list[float]:
    """[seconds of exchange at the link, seconds at the peak]; the fixed time per layer is given, not fitted."""
    g, chip = catalogue.model(point.model).geometry, catalogue.chip("trainium2")
    moved = 4.0 * g.layers * point.prompt * g.hidden
    return [moved / chip.links.scale_up.si, g.flops(point.prompt) / (chip.flops.bf16.si * point.chips)]


def fit_trainium(points: list[TrainiumPoint]) -> tuple[list[float], list[float]]:
    """([layer_s, read], [exchange, flops]); a coefficient at peak that the fit would put below 1 is held at 1."""
    tpot = _held([trainium_tpot_terms(p) for p in points], [p.tpot.si for p in points])
    rest = [p.ttft.si - PREFILL_LAYER_S * catalogue.model(p.model).geometry.layers for p in points]
    return tpot, _held([trainium_ttft_terms(p) for p in points], rest)


def _held(rows: list[list[float]], seconds: list[float]) -> list[float]:
    found = fit_positive(rows, seconds)
    if found[1] >= 1.0:
        return found
    return [
        *fit_positive([[row[0]] for row in rows], [s - row[1] for row, s in zip(rows, seconds, strict=True)]),
        1.0,
    ]


def judge_trainium() -> list[Score]:
    points = published().trainium
    fitted, judged = [p for p in points if p.role == "fit"], [p for p in points if p.role == "judge"]
    tpot, ttft = fit_trainium(fitted)
    steps = [(_dot(tpot, trainium_tpot_terms(p)), p.tpot.si) for p in judged]
    first = [
        (
            _dot(ttft, trainium_ttft_terms(p)) + PREFILL_LAYER_S * catalogue.model(p.model).geometry.layers,
            p.ttft.si,
        )
        for p in judged
    ]
    names = "gpt-oss TP16, Seed-OSS TP8 and TP16"
    return [
        score("trainium2", f"TPOT, {names}", steps, fit_rows=len(fitted), target=TRAINIUM_TARGET, by="max"),
        score("trainium2", f"TTFT, {names}", first, fit_rows=len(fitted), target=TRAINIUM_TARGET, by="max"),
    ]


def judge_transfer() -> list[Score]:
    """A KV transfer is a fixed time and a rate."""
    points = published().transfer
    fitted, judged = [p for p in points if p.role == "fit"], [p for p in points if p.role == "judge"]

    def terms(model: str, prompt: int) -> list[float]:
        return [1.0, catalogue.model(model).geometry.kv_bytes(prompt)]

    found = fit_positive([terms(p.model, p.prompt) for p in fitted], [p.time.si for p in fitted])
    pairs = [(_dot(found, terms(p.model, p.prompt)), p.time.si) for p in judged]
    rate = f"{found[0] * 1e3:.3f} ms + bytes / {1 / found[1] / 1e9:.0f} GB/s"
    return [score("mooncake_kv_transfer", rate, pairs, fit_rows=len(fitted), target=TRANSFER_TARGET, by="max")]


def judge_pair() -> list[Score]:
    """DGX Spark reads, M3 Ultra writes: efficiencies from each alone, then the pair over 10GbE."""
    points = published().pair
    alone = {p.prefill_chip: p for p in points if p.role == "fit"}
    (pair,) = (p for p in points if p.role == "judge")
    totals = {name: (_prefill_s(p, p) + _decode_s(p, p), p.prefill.si + p.decode.si) for name, p in alone.items()}
    read_s = _prefill_s(pair, alone[pair.prefill_chip])
    write_s = _decode_s(pair, alone[pair.decode_chip])
    geometry = catalogue.model(pair.model).geometry
    move_s = geometry.kv_bytes(pair.prompt) / catalogue.chip(pair.prefill_chip).links.nic.si
    overlapped_s = max(read_s, move_s) + move_s / geometry.layers + write_s
    measured_s = pair.prefill.si + pair.decode.si
    slowest = max(total for total, _ in totals.values())
    speedup = max(measured for _, measured in totals.values()) / measured_s
    fit_rows = len(alone)
    return [
        score("exo", "total of each alone", list(totals.values()), fit_rows=fit_rows, target=PAIR_TARGET, by="max"),
        score("exo", "total of the pair, layer by layer", [(overlapped_s, measured_s)], fit_rows=fit_rows,
              target=PAIR_TARGET),
        score("exo", "speed-up over the slower (2.8x)", [(slowest / overlapped_s, speedup)], fit_rows=fit_rows,
              target=PAIR_TARGET),
        score("exo", "total of the pair without overlap", [(read_s + move_s + write_s, measured_s)],
              fit_rows=fit_rows),
    ]  # fmt: skip


def _prefill_s(point: PairPoint, alone: PairPoint) -> float:
    """FLOPs over the peak, at the share of it that the device reached alone."""
    peak = catalogue.chip(point.prefill_chip).flops.bf16.si
    flops = catalogue.model(point.model).geometry.flops
    reached = flops(alone.prompt) / alone.prefill.si / catalogue.chip(alone.prefill_chip).flops.bf16.si
    return flops(point.prompt) / (peak * reached)


def _decode_s(point: PairPoint, alone: PairPoint) -> float:
    """Bytes over the bandwidth, at the share of it that the device reached alone."""

    def read(p: PairPoint) -> float:
        g = catalogue.model(p.model).geometry
        return p.output * (2.0 * g.active_params + g.kv_bytes(p.prompt + p.output / 2))

    own, other = catalogue.chip(alone.decode_chip).memory.bandwidth.si, catalogue.chip(point.decode_chip)
    reached = read(alone) / alone.decode.si / own
    return read(point) / (other.memory.bandwidth.si * reached)


def _dot(coefficients: list[float], terms: list[float]) -> float:
    return sum(c * t for c, t in zip(coefficients, terms, strict=True))
