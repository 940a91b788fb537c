"""Traces: where a chunk was, and how long.

A producer that sends the header `traceparent` (W3C Trace Context) gets a span of each stage into its trace, beside one
another under its own span; the header travels with the record as all headers do. Each of these spans is linked to the
span of the batch in which the record went, since that is what took the time, and the batch's to them.
(OpenTelemetry's semantic conventions for messaging.)

Nothing is measured unless a tracer provider is there: `STREAM_TRACES=1` makes one.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stream.config import Settings, StageName
from stream.errors import ConfigurationError
from stream.records import Outcome, Record, Rejected, header

PARENT = "traceparent"

_tracer = trace.get_tracer("stream")
_propagator = TraceContextTextMapPropagator()


@contextmanager
def exported(settings: Settings, stage: StageName) -> Iterator[None]:
    """While the context lasts, spans go out by OTLP over HTTP; OTEL_EXPORTER_OTLP_ENDPOINT and its likes say where to.

    Raises `ConfigurationError` if the packages for it are missing. Without `STREAM_TRACES` nothing happens.
    """
    if not settings.traces:
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError("STREAM_TRACES needs more packages: pip install 'chunk-stream[traces]'") from None
    provider = TracerProvider(resource=Resource.create({"service.name": f"chunk-stream-{stage}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()


def begin(stage: str) -> Span:
    """The span of a batch, which ends with `end`."""
    return _tracer.start_span(f"{stage} batch", kind=SpanKind.CONSUMER)


def end(batch: Span, stage: str, seconds: float, outcomes: Sequence[tuple[Record, Outcome]]) -> None:
    """Ends the span of a batch that took so many seconds, and makes one for each of its records that is traced."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):  # there is none
        return
    now = time.time_ns()
    batch.set_attribute("messaging.batch.message_count", len(outcomes))
    for record, outcome in outcomes:
        parent = header(record.headers, PARENT)
        if parent is None:
            continue
        context = _propagator.extract({PARENT: parent.decode("ascii", "replace")})
        if not trace.get_current_span(context).get_span_context().trace_flags.sampled:
            continue
        span = _tracer.start_span(
            stage,
            context,
            SpanKind.CONSUMER,
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.destination.name": record.topic,
                "messaging.destination.partition.id": str(record.partition),
                "messaging.kafka.offset": record.offset,
                "messaging.kafka.message.key": (record.key or b"").decode("utf-8", "replace"),
            },
            links=[Link(batch.get_span_context())],
            start_time=now - round(seconds * 1e9),
        )
        if isinstance(outcome, Rejected):
            span.set_status(Status(StatusCode.ERROR, outcome.reason))
        batch.add_link(span.get_span_context())
        span.end(now)
    batch.end(now)
