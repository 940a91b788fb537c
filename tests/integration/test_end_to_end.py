"""The whole flow on real servers, with vectors of the real model's length: if this fails, chunks are lost."""

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from itertools import islice

import pytest
from conftest import embedding_server
from ports import free_ports
from support import LONGEST, Worker

from stream import corpus
from stream.config import STAGES
from stream.kafka import reader, topics
from stream.local import hashing
from stream.models.embeddings import EmbeddingClient
from stream.operate.publish import publish
from stream.operate.status import caught_up, stages, status
from stream.operate.verify import verify
from stream.search import searcher
from stream.search.request import Request
from stream.search.searcher import Searcher

pytestmark = pytest.mark.servers

COUNT = 1000


@pytest.fixture
def variables(variables: dict[str, str]) -> Iterator[dict[str, str]]:
    """With an embedding server, a node label and a vector index for this length."""
    with embedding_server() as address:
        yield variables | {
            "STREAM_EMBED_URL": address,
            "STREAM_EMBED_DIMENSIONS": str(hashing.DIMENSIONS),
            "STREAM_NEO4J_LABEL": "FullSize",
            "STREAM_NEO4J_INDEX": "full_size_idx",
        }


async def test_a_thousand_chunks_end_to_end(flow, stores, monkeypatch):
    monkeypatch.setattr(searcher, "CHUNK_SECONDS", LONGEST)  # a busy machine is no outage
    lines = [json.dumps(chunk).encode() for chunk in islice(corpus.chunks(), COUNT)]
    async with AsyncExitStack() as stack:
        workers = [Worker(stage, port=port) for stage, port in zip(STAGES, free_ports(3), strict=True)]
        for worker in workers:
            await stack.enter_async_context(worker)
        assert (await publish(lines, flow)).sent == COUNT
        async with asyncio.timeout(LONGEST):
            await caught_up(flow)
        report = await verify(flow, stores)
        assert report.differences == []
        assert (report.published, report.indexed, report.dead_lettered) == (COUNT, COUNT, 0)
        assert (await status(flow, stores)).stores == {"Neo4j": COUNT, "OpenSearch": COUNT}
        assert await searching(flow, stores)
        for worker in workers:
            assert await worker.end(signal.SIGTERM) == 0
    assert all(stage.lag == 0 for stage in await stages(flow))


async def read_at(flow, position):
    assert position.topic == topics.source(flow, "index")
    since, only = {position.partition: position.offset}, [position.partition]
    async with aclosing(reader.read_to_end(flow, position.topic, since, only)) as records:
        return await anext(records)


async def searching(flow, stores) -> bool:
    """Whether each search mode finds a chunk by the words of its text. The chunk names its record and its models."""
    async with EmbeddingClient(flow) as embedder:
        search = Searcher(flow, stores, embedder)
        chunk = next(c for c in islice(corpus.chunks(), COUNT) if len(c["text"].split()) > 20)
        query = " ".join(chunk["text"].split()[:20])
        asked = [
            Request(query=query, mode=mode, k=3, strict=True, deadline=LONGEST)
            for mode in ("lexical", "dense", "hybrid")
        ]
        answers = [await search.search(request) for request in asked]
        detail = await search.detail(chunk["chunk_id"])
        record = await read_at(flow, detail.position)
    assert record.key == chunk["chunk_id"].encode()
    assert all(detail.provenance.values())
    return all(chunk["chunk_id"] in [hit.chunk_id for hit in answer.hits] for answer in answers)
