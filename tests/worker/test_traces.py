"""If these fail, nobody can see where a chunk was and how long, or a log contains what it must not."""

import asyncio
import json
import signal
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import orjson
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from ports import free_ports
from support import LONGEST, Worker, chunk, record

from stream.config import STAGES
from stream.kafka import clients
from stream.operate.status import caught_up
from stream.records import Done, Rejected
from stream.worker import traces

TRACE, PRODUCER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"  # of the W3C's own example
SAMPLED = ("traceparent", f"00-{TRACE}-{PRODUCER}-01".encode())
NOT_SAMPLED = ("traceparent", f"00-{TRACE}-{PRODUCER}-00".encode())
BEGAN = 1_700_000_000_000_000_000  # nanoseconds since 1970
SECRET = "a text that nobody else needs to see"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Span]]]:
    """A collector of OTLP over HTTP: its address, and the spans that it received."""
    spans: list[Span] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for of_scope in of_resource.scope_spans:
                    spans.extend(of_scope.spans)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()


@pytest.mark.servers
async def test_a_chunk_s_whole_way_is_in_its_producer_s_trace(flow, stores, collector):
    address, spans = collector
    told = {"STREAM_TRACES": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": address, "STREAM_LOG_FORMAT": "json"}
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(Worker(stage, port=port, **told))
            for stage, port in zip(STAGES, free_ports(3), strict=True)
        ]
        async with clients.producer(flow) as producer:
            for chunk_id, headers in (("traced", [SAMPLED]), ("unsampled", [NOT_SAMPLED]), ("bare", [])):
                value = orjson.dumps(chunk(chunk_id, SECRET))
                await producer.send_and_wait(flow.topic, value, key=chunk_id.encode(), headers=headers)
        async with asyncio.timeout(LONGEST):
            await caught_up(flow)
        for worker in workers:
            assert await worker.end(signal.SIGTERM) == 0
    batches = {span.span_id: span for span in spans if span.name.endswith(" batch")}
    way = sorted((s for s in spans if s.span_id not in batches), key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in way] == list(STAGES)
    for span in way:
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PRODUCER)
        (link,) = span.links
        assert batches[link.span_id].name == f"{span.name} batch"
        assert span.span_id in {back.span_id for back in batches[link.span_id].links}
        assert {a.key: a.value.string_value for a in span.attributes}["messaging.kafka.message.key"] == "traced"
    said = {worker.stage: [json.loads(line) for line in worker.log.read_text().splitlines()] for worker in workers}
    traced = defaultdict(list)
    for stage, lines in said.items():
        for line in lines:
            assert {"time", "level", "logger", "message"} <= line.keys()
            assert SECRET not in json.dumps(line)
            if line["message"].startswith("batch of "):
                traced[stage].append(line["trace_id"])
    assert {stage: sorted(ids) for stage, ids in traced.items()} == {
        stage: sorted(b.trace_id.hex() for b in batches.values() if b.name == f"{stage} batch") for stage in STAGES
    }


@pytest.fixture
def exporter(monkeypatch) -> InMemorySpanExporter:
    """Keeps what is exported, for one test."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("stream"))
    return exporter


def test_a_rejected_record_is_an_error_in_its_trace_and_broken_context_is_nobody_s(exporter):
    broken = [("traceparent", b"\xff"), ("traceparent", b"00-0-0-01"), ("traceparent", None)]
    outcomes = [(record({}, headers=[SAMPLED]), Rejected("schema", SECRET)), (record({}, headers=[SAMPLED]), Done())]
    outcomes += [(record({}, headers=[one]), Done()) for one in broken]
    traces.end(traces.begin("embed", BEGAN), "embed", BEGAN, outcomes)
    rejected, done, batch = exporter.get_finished_spans()
    assert (rejected.status.description, done.status.is_ok) == ("schema", True)
    assert (rejected.name, done.name, batch.name) == ("embed", "embed", "embed batch")
    assert done.start_time == batch.start_time == BEGAN
    assert done.end_time == batch.end_time > BEGAN
    assert SECRET not in "".join(span.to_json() for span in exporter.get_finished_spans())


def test_without_a_provider_nothing_is_parsed(monkeypatch):
    monkeypatch.setattr(traces, "_propagator", None)
    traces.end(traces.begin("embed", BEGAN), "embed", BEGAN, [(record({}, headers=[SAMPLED]), Done())])
