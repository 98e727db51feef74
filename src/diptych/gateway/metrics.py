"""``/metrics`` for Prometheus. A request is counted once, at its end, from its record: a token costs nothing here.

Beside each metric stands the name that CloudWatch's ``AWS/Bedrock`` has for it, where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from diptych.types import RequestRecord

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_GAPS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_LABELS = ("model", "operation")


class Metrics:
    """What the gateway counts."""

    def __init__(self, in_flight: Callable[[], int], handoffs: Callable[[], Mapping[str, Any]]) -> None:
        self.registry = registry = CollectorRegistry()
        registry.register(_Now(in_flight, handoffs))
        self._responses = Counter(
            "diptych_responses", "Answers by HTTP status (InvocationClientErrors, -ServerErrors, -Throttles).",
            ("operation", "status"), registry=registry,
        )  # fmt: skip
        self._invocations = Counter(
            "diptych_invocations", "Requests that ran, by their end and placement (Invocations).",
            (*_LABELS, "placement", "status"), registry=registry,
        )  # fmt: skip
        self._tokens = Counter(
            "diptych_tokens", "Tokens: input, cached, handed_over, output (InputTokenCount, OutputTokenCount).",
            (*_LABELS, "kind"), registry=registry,
        )  # fmt: skip
        self._ttft = Histogram(
            "diptych_ttft_seconds", "Until the first token (TimeToFirstToken).", _LABELS,
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._e2e = Histogram(
            "diptych_e2e_seconds", "Until the last token (InvocationLatency).", _LABELS,
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._itl = Histogram(
            "diptych_itl_seconds", "Mean gap between a request's tokens.", _LABELS, buckets=_GAPS, registry=registry
        )  # fmt: skip

    def answered(self, operation: str, status: int, records: Iterable[RequestRecord]) -> None:
        """Counts one HTTP answer and the requests that it took."""
        self._responses.labels(operation, str(status)).inc()
        for record in records:
            self._ran(record)

    def _ran(self, record: RequestRecord) -> None:
        labels = (record.model, record.operation)
        self._invocations.labels(*labels, record.placement, record.status).inc()
        counts = {
            "input": record.prompt_tokens,
            "cached": record.cached_tokens,
            "handed_over": record.kv_tokens,
            "output": record.output_tokens,
        }
        for kind, count in counts.items():
            self._tokens.labels(*labels, kind).inc(count)
        for histogram, value in ((self._ttft, record.ttft_ms), (self._e2e, record.e2e_ms), (self._itl, record.itl_ms)):
            if value is not None:
                histogram.labels(*labels).observe(value / 1000)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)


class _Now(Collector):
    """What is read when it is asked for, rather than counted."""

    def __init__(self, in_flight: Callable[[], int], handoffs: Callable[[], Mapping[str, Any]]) -> None:
        self._in_flight = in_flight
        self._handoffs = handoffs

    def collect(self) -> Sequence[Metric]:
        """Where no handoff is under way, offered = admitted + recomputed (all reasons) + failed (all reasons)."""
        found = self._handoffs()
        running = GaugeMetricFamily("diptych_requests_running", "Requests being answered.", value=self._in_flight())
        offered = _count("offered", "Handoffs that were begun.", found)
        admitted = _count("admitted", "Handoffs whose KV a decode engine took over.", found)
        recomputed = _by_reason("recomputed", "Handoffs that were given up, and the prompt read again.", found)
        failed = _by_reason("failed", "Handoffs whose request ended, or went elsewhere, before admission.", found)
        return [running, offered, admitted, recomputed, failed]


def _count(name: str, what: str, found: Mapping[str, Any]) -> Metric:
    return CounterMetricFamily(f"diptych_handoff_{name}", what, value=found.get(name, 0))


def _by_reason(name: str, what: str, found: Mapping[str, Any]) -> Metric:
    family = CounterMetricFamily(f"diptych_handoff_{name}", what, labels=["reason"])
    for reason, count in found.get(name, {}).items():
        family.add_metric([reason], count)
    return family
