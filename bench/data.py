"""Test data of the benchmarks: records of the usual size with random content. Chunk `n` is always the same."""

import asyncio
import uuid
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np

from stream.config import Settings, StageName
from stream.kafka import clients, topics
from stream.records import Chunk, Expanded, encode, sha256
from stream.vectors import pack

UNACKNOWLEDGED = 500

WORDS = 110  # per text: about 700 characters
TERMS = (180, 50)  # per chunk: mean and standard deviation
VOCABULARY = 30_522
SPREAD = 0x9E3779B97F4A7C15F39CC0605CEDC835  # 2**128 over the golden ratio: IDs in no order, as real ones are


def chunk(n: int, version: int = 1) -> Chunk:
    """Chunk `n`. Its text depends on its version."""
    words = np.random.default_rng([n, version]).zipf(1.3, WORDS) % VOCABULARY
    return {
        "chunk_id": str(uuid.UUID(int=n * SPREAD % 2**128)),
        "doc_id": f"document-{n // 20}",
        "text": " ".join(f"word{word}" for word in words),
        "version": version,
    }


def expanded(of: Chunk) -> Expanded:
    """A chunk with a random unit vector (4096,) and random terms."""
    rng = np.random.default_rng(list(of["chunk_id"].encode()))
    vector = rng.standard_normal(4096).astype("<f4")
    terms = rng.choice(VOCABULARY, max(8, int(rng.normal(*TERMS))), replace=False)
    weights = rng.lognormal(-1, 0.7, len(terms)) + 0.05
    norm = float(np.linalg.norm(weights))
    provenance: Any = {"model": "random", "revision": "none", "parameters": {}}
    return {
        **of,
        "text_sha256": sha256(of["text"]),
        "embedding_qwen": pack(vector / np.linalg.norm(vector)),
        "embedding_provenance": provenance,
        "splade_terms": {f"term{term}": weight / norm for term, weight in zip(terms, weights.tolist(), strict=True)},
        "splade_norm": norm,
        "splade_provenance": provenance,
    }


def embedded(of: Chunk) -> dict[str, Any]:
    """A chunk as embed publishes it for expand."""
    return {name: value for name, value in expanded(of).items() if not name.startswith("splade")}


async def own_topics(settings: Settings) -> Settings:
    """The same settings with new, empty topics. The topics are not deleted."""
    settings = settings.model_copy(update={"topic": f"bench-{uuid.uuid4().hex[:8]}"})
    await topics.create(settings)
    return settings


async def publish(settings: Settings, stage: StageName, chunks: Iterable[Any]) -> int:
    """Fills the topic that a stage reads. Returns the mean size of a record in bytes."""
    topic, sizes, left = topics.source(settings, stage), list[int](), iter(chunks)
    async with clients.producer(settings) as producer:
        while some := list(islice(left, UNACKNOWLEDGED)):
            sent = []
            for one in some:
                value, headers = encode(one)
                sizes.append(len(value) + sum(len(content) for _, content in headers))
                sent.append(await producer.send(topic, value, key=one["chunk_id"].encode(), headers=headers))
            await asyncio.gather(*sent)
    return sum(sizes) // len(sizes)
