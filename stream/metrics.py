"""What a worker counts, for Prometheus. `docs/metrics.md` lists it; the three `embed_…` names that do not follow
Prometheus's conventions are part of the project's interface.
"""

from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import Counter, Gauge, Histogram

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
BATCH_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
AGES = (0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1800, 3600, 21_600, 86_400)

records = Counter("stream_records", "Records that left a stage, by outcome: done or rejected.", ["stage", "outcome"])
record_bytes = Counter("stream_record_bytes", "Bytes of their keys and values, as they came.", ["stage", "outcome"])
dead_letters = Counter("stream_dead_letters", "Records rejected by a stage, by reason.", ["stage", "reason"])
batch_size = Histogram("stream_batch_size", "Records of a batch.", ["stage"], buckets=SIZES)
batch_seconds = Histogram(
    "stream_batch_seconds", "From a batch's start to its acknowledgement.", ["stage"], buckets=BATCH_SECONDS
)
in_flight = Gauge("stream_in_flight", "Batches in the works.", ["stage"])
lag = Gauge(
    "stream_lag_records",
    "Records of the stage's topic that its consumer group has not committed; every worker of the stage says the same, "
    "NaN if Kafka did not say.",
    ["stage"],
)
end_to_end_seconds = Histogram(
    "stream_end_to_end_seconds",
    "From a record's timestamp in the first topic until both stores had it.",
    buckets=AGES,
)
retries = Counter(
    "stream_retries", "Batches tried again because something outside was down, by cause.", ["stage", "cause"]
)
outage = Gauge("stream_outage", "1 while a batch waits for something outside to come back.", ["stage"])
outranked = Counter(
    "stream_outranked", "Writes that a store did not apply, because it holds a higher version of the chunk.", ["store"]
)

embed_chunks_sec = Gauge("embed_chunks_sec", "Chunks a second in the last embedded batch.")
embed_latency_ms = Histogram(
    "embed_latency_ms",
    "Milliseconds of one request to the embedding server.",
    buckets=(5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000),
)
embed_batch_size = Histogram("embed_batch_size", "Texts of one request to the embedding server.", buckets=SIZES)
embed_in_flight = Gauge("embed_in_flight", "Requests to the embedding server that have no answer yet.")
embed_retries = Counter("embed_retries", "Requests to the embedding server made again, by cause.", ["cause"])
embed_reused = Counter("embed_reused", "Chunks that got the vector which an unchanged text has had before.")
embed_tokens = Counter("embed_tokens", "Tokens that the embedding server has read.")
embed_server_up = Gauge(
    "embed_server_up", "Whether an embedding server answered when it was last asked, 1 or 0.", ["server"]
)

splade_token_budget = Gauge("stream_splade_token_budget", "Tokens that SPLADE runs on the GPU at once.")
splade_out_of_memory = Counter("stream_splade_out_of_memory", "Times that SPLADE found no GPU memory and tried less.")
gpu_memory = Gauge("stream_gpu_memory_bytes", "Memory of SPLADE's GPU, by state: used (by anybody) or free.", ["state"])
gpu_utilization = Gauge("stream_gpu_utilization_ratio", "How much of the last second SPLADE's GPU was at work, 0 to 1.")


class Metric(NamedTuple):
    """How a metric is asked for, and what it says."""

    name: str
    type: str
    labels: tuple[str, ...]
    meaning: str


def listed() -> Iterator[Metric]:
    """The package's own metrics, as they are defined here."""
    for each in (one for one in globals().values() if isinstance(one, Counter | Gauge | Histogram)):
        (family,) = each.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield Metric(name, family.type, each._labelnames, family.documentation)
