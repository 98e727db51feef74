"""``/metrics`` for Prometheus. A request is counted once, at its end, from its record: a token costs nothing here.

Beside each metric stands the name that CloudWatch's ``AWS/Bedrock`` has for it, where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
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

        self._refused = {
            name: Counter(f"diptych_{name}", f"{what} ({cloudwatch}).", ("operation",), registry=registry)
            for name, what, cloudwatch in (
                ("throttles", "Requests answered 429", "InvocationThrottles"),
                ("client_errors", "Requests answered 4xx but 429", "InvocationClientErrors"),
                ("server_errors", "Requests answered 5xx", "InvocationServerErrors"),
            )
        }
        self._quota = Counter(
            "diptych_quota_tokens", "Tokens that count against quotas (EstimatedTPMQuotaUsage).", _LABELS,
            registry=registry,
        )  # fmt: skip
        self._placements = Counter(
            "diptych_placements", "Where requests ran; prefill is empty where decode read the prompt itself.",
            ("prefill", "decode"), registry=registry,
        )  # fmt: skip
        self._parts = Histogram(
            "diptych_part_seconds", "Each part of the time to the first token.", ("part",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._cost = Counter(
            "diptych_cost", "Price of the tokens, in the configured currency.", ("model", "key"), registry=registry
        )  # fmt: skip

    def answered(self, operation: str, status: int, records: Iterable[RequestRecord]) -> None:
        """Counts one HTTP answer and the requests that it took."""
        self._responses.labels(operation, str(status)).inc()
        if (refused := _refusal(status)) is not None:
            self._refused[refused].labels(operation).inc()
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

        self._account(record)

    def _account(self, record: RequestRecord) -> None:
        if record.decode is not None:
            self._placements.labels(record.prefill or "", record.decode).inc()
        if record.output_tokens == 0:
            return
        self._quota.labels(record.model, record.operation).inc(record.prompt_tokens + record.output_tokens)
        for part, ms in msgspec.structs.asdict(record.parts_ms).items():
            self._parts.labels(part).observe(ms / 1000)
        if record.cost is not None:
            self._cost.labels(record.model, record.key or "").inc(record.cost)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)


def _refusal(status: int) -> str | None:
    """The counter of an answer that is a refusal; a client that hung up (499) was not refused."""
    if status == 429:
        return "throttles"
    if 400 <= status < 499:
        return "client_errors"
    return "server_errors" if status >= 500 else None


class Waiting(Collector):
    """Requests that wait for room in the fleet, by tier."""

    def __init__(self, waiting: Callable[[], Mapping[str, int]]) -> None:
        self._waiting = waiting

    def collect(self) -> Sequence[Metric]:
        family = GaugeMetricFamily("diptych_requests_waiting", "Requests that wait for room.", labels=["tier"])
        for tier, count in self._waiting().items():
            family.add_metric([tier], count)
        return [family]


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
