"""Traces: which stages a chunk passed, and how long each took.

A producer may send the header `traceparent` (W3C Trace Context). Every stage passes it on, as it does all headers, and
adds one span to the producer's trace, as a child of the producer's span. This span and the span of the record's batch
are linked to each other, because the whole batch takes the time. (OpenTelemetry's semantic conventions for messaging.)

Without a tracer provider nothing is recorded (`stream.tracing`).
"""

import time
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stream.records import Outcome, Record, Rejected, header

PARENT = "traceparent"

_tracer = trace.get_tracer("stream")
_propagator = TraceContextTextMapPropagator()


def begin(stage: str, began: int) -> Span:
    """The span of a batch that began at this time (nanoseconds since 1970); `end` ends it."""
    return _tracer.start_span(f"{stage} batch", kind=SpanKind.CONSUMER, start_time=began)


def end(batch: Span, stage: str, began: int, outcomes: Sequence[tuple[Record, Outcome]]) -> None:
    """Ends the span of a batch that began at this time, and makes a span of the same time for each traced record."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):  # no provider is set
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
            start_time=began,
        )
        if isinstance(outcome, Rejected):
            span.set_status(Status(StatusCode.ERROR, outcome.reason))
        batch.add_link(span.get_span_context())
        span.end(now)
    batch.end(now)
