"""Computes the sizing tables of docs/operations.md from the measured figures.

    python bench/sizing.py

Rates are proportional to GPUs, cores and processes; where that ends, the text beside the tables says why.
"""

from math import ceil
from pathlib import Path
from typing import Any

import orjson
import typer
from data import chunk, embedded, expanded
from plane import SIZES, padded

from stream.records import encode

FIGURES = Path(__file__).parent.parent / "docs" / "figures"
TOKENS = 512  # of a chunk; about 2 KB of English
DIMENSIONS = 4096
GPUS = (1, 10, 100, 1_000)
CHUNKS = (10**6, 10**7, 10**8, 10**9)
REPLICAS = 3
# Bytes on disk for a chunk, measured with 4,096 dimensions and 400 terms.
OPENSEARCH_BYTES, NEO4J_BYTES = 7_000, 40_000
SHARD_BYTES = 30 * 2**30  # at most, for searches: the OpenSearch project and its hosts recommend 10 to 30 GiB
# Of the vector index: float32 and int8 of each dimension, and the graph's neighbours. Neo4j recommends memory for a
# quarter of it, beside heap and page cache
# (https://neo4j.com/docs/operations-manual/current/performance/vector-index-memory-configuration).
INDEX_BYTES, IN_MEMORY = DIMENSIONS * 5 + 32 * 8, 0.25


def figure(name: str) -> Any:
    """A committed result."""
    return orjson.loads((FIGURES / f"{name}.json").read_bytes())


def record_bytes() -> list[int]:
    """Bytes of a chunk's record in each compacted topic."""
    of = padded(chunk(0), SIZES[0])
    records = (encode(made(of)) for made in (lambda of: of, embedded, expanded))
    return [len(value) + sum(len(content) for _, content in headers) for value, headers in records]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rates() -> str:
    """What a number of GPUs needs around it."""
    vllm = figure("embed")["results"][0]["texts_a_minute"]["the stage"] / 60
    runs = {run["gpus"]: run["chunks_a_second"] for run in figure("expand-one-gpu")["runs"]}
    splade = runs["0,0"]
    stage = figure("sink")["ways"]["stage"]
    stores = stage["chunks_a_second"] / 2  # chunks a second on each of the two cores, which ran everything
    own = figure("growth")["records_a_second"]["20 KB"]["1"]["median"]
    a_chunk = sum(record_bytes())
    rows = []
    for gpus in GPUS:
        a_second = gpus / (1 / vllm + 1 / splade)
        for_splade = a_second / splade
        rows.append([
            f"{gpus:,}",
            f"{a_second:,.0f}",
            f"{gpus - for_splade:,.1f} and {for_splade:,.1f}",
            f"{a_second * a_chunk / 1e6:,.0f}",
            f"{ceil(a_second / own)}, {2 * ceil(for_splade)}, {ceil(a_second * stage['client_cpu_seconds_a_chunk'])}",
            f"{ceil(a_second / stores):,}",
        ])  # fmt: skip
    head = ["GPUs", "chunks a second", "GPUs for vLLM and SPLADE", "MB a second into Kafka"]
    return table([*head, "processes: embed, expand, index", "cores of both stores"], rows)


def amounts() -> str:
    """What a number of chunks needs."""
    in_kafka = sum(record_bytes()) * REPLICAS
    rows = [
        [
            f"{chunks:,}",
            f"{chunks * in_kafka / 1e12:,.2f}",
            f"{chunks * OPENSEARCH_BYTES / 1e9:,.0f}",
            f"{ceil(chunks * OPENSEARCH_BYTES / SHARD_BYTES):,}",
            f"{chunks * NEO4J_BYTES / 1e9:,.0f}",
            f"{chunks * INDEX_BYTES * IN_MEMORY / 1e9:,.0f}",
        ]
        for chunks in CHUNKS
    ]
    head = ["chunks", "TB in Kafka, three replicas", "GB in OpenSearch", "shards of 30 GiB at most"]
    return table([*head, "GB in Neo4j", "GB of memory for its vector index"], rows)


def main() -> None:
    """Print the tables."""
    print(rates(), end="\n\n")
    print(amounts())


if __name__ == "__main__":
    typer.run(main)
