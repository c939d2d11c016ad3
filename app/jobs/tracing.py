"""Spans of OpenTelemetry, exported by OTLP; without an endpoint all of this does nothing.

The library is an optional extra, so it is imported only where an endpoint is set.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Span", "Tracing"]

Kind = Literal["SERVER", "CONSUMER", "INTERNAL"]
Attributes = Mapping[str, str | int | float | bool]


@dataclass
class Span:
    """A span under way. `traceparent`: what its children are under; None in no trace."""

    traceparent: str | None
    inner: Any = None

    def end(
        self,
        *,
        name: str | None = None,
        attributes: Attributes | None = None,
        error: str | None = None,
        at_s: float | None = None,
    ) -> None:
        """End it, at this unix time if not now; say what is known of it only now."""
        if self.inner is None:
            return
        if name is not None:
            self.inner.update_name(name)
        self.inner.set_attributes(attributes or {})
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            self.inner.set_status(Status(StatusCode.ERROR, error))
        self.inner.end(None if at_s is None else _nanoseconds(at_s))


class Tracing:
    """Makes the spans of one process."""

    def __init__(self, endpoint: str | None, service: str) -> None:
        """Spans go to `endpoint` ("http://host:4318") as those of `service`.

        What else there is to set, as OTEL_EXPORTER_OTLP_HEADERS or OTEL_TRACES_SAMPLER, is read
        from the environment by the library itself.
        """
        self._provider: Any = None
        if endpoint is None:
            return
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=5)
        resource = Resource.create({"service.name": service, "service.namespace": "avocat"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("avocat")

    def start(
        self,
        name: str,
        parent: str | None,
        kind: Kind = "INTERNAL",
        attributes: Attributes | None = None,
        at_s: float | None = None,
    ) -> Span:
        """Begin a span under `parent` (a traceparent; None: a trace of its own)."""
        if self._provider is None:
            return Span(parent)
        from opentelemetry.trace import SpanKind

        inner = self._tracer.start_span(
            name,
            _context(parent),
            SpanKind[kind],
            dict(attributes or {}),
            start_time=None if at_s is None else _nanoseconds(at_s),
        )
        own = inner.get_span_context()
        return Span(f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}", inner)

    def close(self) -> None:
        """Export what is left; gives up after some seconds where nobody takes it."""
        if self._provider is not None:
            self._provider.shutdown()


def _context(traceparent: str | None) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace import (
        NonRecordingSpan,
        SpanContext,
        TraceFlags,
        set_span_in_context,
    )

    if traceparent is None:
        return Context()
    _, trace, span, flags = traceparent.split("-")
    remote = SpanContext(int(trace, 16), int(span, 16), True, TraceFlags(int(flags, 16)))
    return set_span_in_context(NonRecordingSpan(remote), Context())


def _nanoseconds(unix_s: float) -> int:
    return int(unix_s * 1e9)
