"""Exports the traces of a process: `STREAM_TRACES=1` creates the tracer provider, without which nothing is recorded."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace

from stream.config import Settings
from stream.errors import ConfigurationError


@contextmanager
def exported(settings: Settings, name: str) -> Iterator[None]:
    """Exports spans by OTLP over HTTP while the context lasts; the variables OTEL_EXPORTER_OTLP_* say where to.

    Raises `ConfigurationError` if the packages for it are missing. Does nothing without `STREAM_TRACES`.
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
    provider = TracerProvider(resource=Resource.create({"service.name": f"chunk-stream-{name}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()
