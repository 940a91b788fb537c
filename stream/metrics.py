"""What a worker counts, for Prometheus. The three `embed_…` names are part of the project's interface."""

from prometheus_client import Counter, Gauge, Histogram

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

records = Counter("stream_records", "Records that left a stage, by outcome.", ["stage", "outcome"])
dead_letters = Counter("stream_dead_letters", "Records rejected by a stage, by reason.", ["stage", "reason"])
batch_size = Histogram("stream_batch_size", "Records of a batch.", ["stage"], buckets=SIZES)
batch_seconds = Histogram("stream_batch_seconds", "From a batch's start to its acknowledgement.", ["stage"])
in_flight = Gauge("stream_in_flight", "Batches in the works.", ["stage"])
retries = Counter("stream_retries", "Batches tried again because something outside was down.", ["stage"])
outage = Gauge("stream_outage", "1 while a batch waits for something outside to come back.", ["stage"])

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

splade_token_budget = Gauge("stream_splade_token_budget", "Tokens that SPLADE runs on the GPU at once.")
splade_out_of_memory = Counter("stream_splade_out_of_memory", "Times that SPLADE found no GPU memory and tried less.")
