"""What a simulation found: one row a request in columns, and the summary that everybody reads."""

from __future__ import annotations

from array import array
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PARTS = ("queue", "prefill", "convert", "transfer", "decode_queue", "first_step")


class Outcome:
    """Columns by request, times in seconds since the first arrival; NaN where it never came to that.

    ``prefill_start`` .. ``landed`` are of the prefill that led to the first token: on a prefill worker, or (with
    ``placed_prefill`` -1) inside the decode worker.
    """

    def __init__(self, requests: int) -> None:
        nan = float("nan")
        (
            self.prefill_start,
            self.prefill_end,
            self.converted,
            self.landed,
            self.joined,
            self.first,
            self.finish,
        ) = (array("d", [nan]) * requests for _ in range(7))
        self.placed_prefill, self.placed_decode = (array("h", [-1]) * requests for _ in range(2))
        self.cached_tokens = array("l", [0]) * requests
        self.rejected = self.preemptions = self.retries = 0

    def column(self, name: str) -> Floats:
        """One of the columns as an array."""
        values: Floats = np.frombuffer(getattr(self, name), dtype=np.float64)
        return values


class Metrics(msgspec.Struct, frozen=True):
    """Per request: what the client sees. Unfinished requests have NaN and meet no objective."""

    arrival_s: Floats
    ttft_ms: Floats
    itl_ms: Floats
    e2e_ms: Floats
    parts_ms: dict[str, Floats]

    def attainment(self, objectives: Objectives) -> float:
        """Share of all requests that meet every objective."""
        return float(objectives.met(self).mean())


class Objectives(msgspec.Struct, frozen=True):
    """Upper bounds in milliseconds; None is no bound."""

    ttft_ms: float | None = None
    itl_ms: float | None = None
    e2e_ms: float | None = None

    def met(self, metrics: Metrics) -> NDArray[np.bool_]:
        ok = np.isfinite(metrics.e2e_ms)
        for name in ("ttft_ms", "itl_ms", "e2e_ms"):
            if (bound := getattr(self, name)) is not None:
                ok &= getattr(metrics, name) <= bound
        return ok


def measure(outcome: Outcome, arrival_s: array[float], output_tokens: array[int]) -> Metrics:
    """TTFT and its disjoint parts, mean gap between tokens, and time to the last token, in milliseconds."""
    arrival = np.frombuffer(arrival_s, dtype=np.float64)
    gaps = np.maximum(1, np.frombuffer(output_tokens, dtype=np.int64) - 1)
    c = outcome.column
    first, finish = c("first"), c("finish")
    marks = [arrival, c("prefill_start"), c("prefill_end"), c("converted"), c("landed"), c("joined"), first]
    parts = {name: (b - a) * 1e3 for name, a, b in zip(PARTS, marks, marks[1:], strict=False)}
    itl = np.where(np.frombuffer(output_tokens, dtype=np.int64) > 1, (finish - first) / gaps, 0.0)
    return Metrics(arrival, (first - arrival) * 1e3, itl * 1e3, (finish - arrival) * 1e3, parts)


def summary(outcome: Outcome, metrics: Metrics, output_tokens: array[int], objectives: Objectives) -> dict[str, Any]:
    """Counts, rates and percentiles of one run, ready for JSON."""
    done = np.isfinite(metrics.e2e_ms)
    finish = outcome.column("finish")
    span_s = float(np.nanmax(finish) - metrics.arrival_s[0]) if done.any() else 0.0
    tokens = int(np.frombuffer(output_tokens, dtype=np.int64)[done].sum())
    met = objectives.met(metrics)
    return {
        "requests": len(done),
        "finished": int(done.sum()),
        "rejected": outcome.rejected,
        "preemptions": outcome.preemptions,
        "retries": outcome.retries,
        "span_s": span_s,
        "output_tokens": tokens,
        "output_tokens_per_s": tokens / span_s if span_s else 0.0,
        "attainment": float(met.mean()),
        "goodput_rps": float(met.sum()) / span_s if span_s else 0.0,
        "disaggregated": int((np.frombuffer(outcome.placed_prefill, dtype=np.int16) >= 0).sum()),
        **{name: _percentiles(getattr(metrics, name)[done]) for name in ("ttft_ms", "itl_ms", "e2e_ms")},
        "ttft_parts_ms": {name: _percentiles(values[done]) for name, values in metrics.parts_ms.items()},
    }


def _percentiles(values: Floats) -> dict[str, float]:
    if not len(values):
        return {}
    found = np.percentile(values, [50, 90, 95, 99])
    return {
        "mean": float(values.mean()),
        **dict(zip(("p50", "p90", "p95", "p99"), map(float, found), strict=True)),
    }
