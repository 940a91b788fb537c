"""A worker's metrics for Prometheus; `docs/metrics.md` lists them. The three `embed_…` names that do not follow
Prometheus's conventions are part of the project's interface.
"""

from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
BATCH_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
HTTP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10)
AGES = (
    *(0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90),
    *(120, 180, 300, 600, 1800, 3600, 21_600, 86_400),
)

records = Counter("stream_records", "Records that left a stage, by outcome: done or rejected.", ["stage", "outcome"])
record_bytes = Counter(
    "stream_record_bytes", "Bytes of keys and values of these records, as received.", ["stage", "outcome"]
)
dead_letters = Counter("stream_dead_letters", "Records rejected by a stage, by reason.", ["stage", "reason"])
batch_size = Histogram("stream_batch_size", "Records in a batch.", ["stage"], buckets=SIZES)
batch_seconds = Histogram(
    "stream_batch_seconds", "Seconds from a batch's start to its acknowledgement.", ["stage"], buckets=BATCH_SECONDS
)
records_expired = Counter(
    "stream_records_expired",
    "Offsets of the stage's topic that Kafka deleted (by retention or on request) before the stage read them.",
    ["stage"],
)
in_flight = Gauge("stream_in_flight", "Batches in progress.", ["stage"])
lag = Gauge(
    "stream_lag_records",
    "Records of the stage's topic that its consumer group has not committed. Every worker of the stage reports the "
    "same; NaN if Kafka did not answer.",
    ["stage"],
)
end_to_end_seconds = Histogram(
    "stream_end_to_end_seconds",
    "Seconds from a record's timestamp in the first topic until both stores had it.",
    buckets=AGES,
)
retries = Counter(
    "stream_retries", "Retries of a batch because an external system was down, by cause.", ["stage", "cause"]
)
outranked = Counter(
    "stream_outranked", "Writes that a store ignored because it has a higher version of the chunk.", ["store"]
)
outage = Gauge("stream_outage", "1 while a batch waits for an external system to recover.", ["stage"])

embed_chunks_sec = Gauge("embed_chunks_sec", "Chunks a second in the last embedded batch.")
embed_latency_ms = Histogram(
    "embed_latency_ms",
    "Milliseconds of one request to the embedding server.",
    buckets=(5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000),
)
embed_batch_size = Histogram("embed_batch_size", "Texts of one request to the embedding server.", buckets=SIZES)
embed_in_flight = Gauge("embed_in_flight", "Requests to the embedding server that have no answer yet.")
embed_retries = Counter("embed_retries", "Retries of requests to the embedding server, by cause.", ["cause"])
embed_reused = Counter("embed_reused", "Chunks whose vector was reused because their text is unchanged.")
embed_tokens = Counter("embed_tokens", "Tokens that the embedding server has read.")
embed_server_up = Gauge(
    "embed_server_up", "1 if an embedding server answered its last request or probe, else 0.", ["server"]
)

queries_wanted = Counter("stream_queries_wanted", "Encoded queries that searches have asked for.", ["model"])
queries_encoded = Counter(
    "stream_queries_encoded", "Queries that a model has encoded; the others were in the cache.", ["model"]
)

http_requests = Counter("stream_http_requests", "Requests that the service has answered.", ["route", "status"])
http_seconds = Histogram(
    "stream_http_seconds", "Seconds from a request to the end of its answer.", ["route"], buckets=HTTP_SECONDS
)
http_in_flight = Gauge("stream_http_in_flight", "Requests that the service is answering.")
searches_degraded = Counter("stream_searches_degraded", "Answered searches without one of their legs, by leg.", ["leg"])

splade_token_budget = Gauge("stream_splade_token_budget", "Tokens that SPLADE runs on the GPU at once.")
splade_out_of_memory = Counter(
    "stream_splade_out_of_memory", "Times that SPLADE ran out of GPU memory and retried with fewer tokens."
)
gpu_memory = Gauge(
    "stream_gpu_memory_bytes", "Memory of SPLADE's GPU, by state: used (by any process) or free.", ["state"]
)
gpu_utilization = Gauge(
    "stream_gpu_utilization_ratio", "Fraction of the last second in which SPLADE's GPU was busy, 0 to 1."
)


class Metric(NamedTuple):
    """One metric, as `docs/metrics.md` lists it; `name` is the name in Prometheus."""

    name: str
    type: str
    labels: tuple[str, ...]
    meaning: str


def exposed(accept: str) -> tuple[bytes, str]:
    """All metrics of this process, in the format that the header `Accept` asks for, and their content type."""
    encode, content_type = choose_encoder(accept)
    return encode(REGISTRY), content_type


def listed() -> Iterator[Metric]:
    """The package's own metrics, as they are defined here."""
    for each in (one for one in globals().values() if isinstance(one, Counter | Gauge | Histogram)):
        (family,) = each.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield Metric(name, family.type, each._labelnames, family.documentation)
