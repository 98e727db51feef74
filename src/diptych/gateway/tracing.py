"""OpenTelemetry traces: a span for each request and one for each part of its time, under the client's ``traceparent``.

    Converse ---------------------------------------------------------------
      queue | prefill | convert | transfer | decode_queue | first_step | decode

Spans are made from the record when the request is over, so that a token costs nothing; without OpenTelemetry's
environment variables nothing of it is even loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from diptych.errors import ConfigError
from diptych.types import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_NS_PER_MS = 1_000_000


def from_environment(environ: Mapping[str, str] = os.environ) -> Tracing | None:
    """The tracing that OpenTelemetry's variables ask for, or None. Raises ConfigError for an unknown exporter."""
    named = environ.get("OTEL_TRACES_EXPORTER") or ("otlp" if any(environ.get(name) for name in _ENDPOINTS) else "none")
    if named == "none" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    return Tracing(_provider(named))


def _provider(exporter: str) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  # loaded only where it is used
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter  # noqa: PLC0415

    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "diptych")})
    provider = TracerProvider(resource=resource)
    if exporter == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    elif exporter == "console":
        provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
    else:
        raise ConfigError(f"OTEL_TRACES_EXPORTER is '{exporter}'; it may be otlp, console or none")
    return provider


class Tracing:
    """Makes spans of records over an SDK's provider, which samples and exports them."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._provider = provider
        self._tracer = provider.get_tracer("diptych.gateway")
        self._propagator = TraceContextTextMapPropagator()

    def ended(self, record: RequestRecord, headers: Mapping[str, str], status: int) -> None:
        """The spans of one request that is over. ``headers`` are the client's."""
        from opentelemetry import trace  # noqa: PLC0415

        parent = self._propagator.extract({name: headers[name] for name in _CONTEXT if name in headers})
        began = int(record.started_at * 1e9)
        parts = list(_parts(record))
        total_ms = max(record.e2e_ms or 0.0, sum(ms for _, ms in parts))
        span = self._tracer.start_span(
            f"{record.operation} {record.model}",
            context=parent,
            kind=trace.SpanKind.SERVER,
            start_time=began,
            attributes={**_attributes(record), "http.response.status_code": status},
        )
        if record.error is not None:
            span.set_status(trace.StatusCode.ERROR, record.error)
        inside = trace.set_span_in_context(span)
        at = began
        for name, ms in parts:
            part = self._tracer.start_span(name, context=inside, start_time=at)
            at += int(ms * _NS_PER_MS)
            part.end(at)
        span.end(began + int(total_ms * _NS_PER_MS))

    def close(self) -> None:
        """Sends what is still to be sent."""
        self._provider.shutdown()


_CONTEXT = ("traceparent", "tracestate")


def _parts(record: RequestRecord) -> Iterator[tuple[str, float]]:
    """(name, milliseconds) of the parts that there were, in their order; decode is all after the first token."""
    for name, ms in msgspec.structs.asdict(record.parts_ms).items():
        if ms > 0:
            yield name, ms
    if record.ttft_ms is not None and record.e2e_ms is not None and record.e2e_ms > record.ttft_ms:
        yield "decode", record.e2e_ms - record.ttft_ms


def _attributes(record: RequestRecord) -> dict[str, Any]:
    known = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "diptych.request_id": record.id,
        "diptych.placement": record.placement,
        "diptych.prefill": record.prefill,
        "diptych.decode": record.decode,
        "diptych.cached_tokens": record.cached_tokens,
        "diptych.kv_bytes": record.kv_bytes,
        "diptych.recomputed": record.recomputed,
        "diptych.tier": record.tier,
        "diptych.status": record.status,
    }
    return {name: value for name, value in known.items() if value is not None}
