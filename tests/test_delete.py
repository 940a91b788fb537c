"""If these fail, a deleted document can still be found, or another has lost chunks."""

import asyncio
import signal
from contextlib import AsyncExitStack

import orjson
import pytest
from conftest import free_ports
from support import Worker, chunk, read, send
from typer.testing import CliRunner

from stream import kafka
from stream.cli import app
from stream.config import STAGES
from stream.delete import chunks_of, delete
from stream.records import Tombstone, decode
from stream.status import caught_up
from stream.verify import verify

pytestmark = pytest.mark.servers


async def publish(settings, *chunks):
    await send(settings, [(one["chunk_id"].encode(), orjson.dumps(one)) for one in chunks])


async def test_only_what_the_document_still_has_is_deleted(flow):
    await publish(
        flow,
        chunk("a", version=3),
        chunk("other", doc_id="d2"),
        chunk("moved away", version=1),
        chunk("moved away", version=2, doc_id="d2"),
        chunk("moved here", version=1, doc_id="d2"),
        chunk("moved here", version=2),
        chunk("late", version=9),
        chunk("late", version=8, doc_id="d2"),
        chunk("gone", version=1),
        chunk("back", version=1),
        chunk("last", version=2**53 - 1),
    )
    async with kafka.producer(flow) as producer:
        for key, version in [("gone", b"2"), ("back", b"2"), ("a", b"1")]:
            await producer.send_and_wait(flow.topic, key=key.encode(), value=None, headers=[("version", version)])
    await publish(flow, chunk("back", version=3))
    await send(flow, [(b"a", b"{not json")])
    found = {tombstone.chunk_id: tombstone.version for tombstone in await chunks_of(flow, "d1")}
    assert found == {"a": 4, "moved here": 3, "late": 10, "back": 4, "last": 2**53 - 1}


async def test_a_chunk_without_a_version_is_outranked_too(flow):
    await publish(flow, {"chunk_id": "a", "doc_id": "d1", "text": "no version"})
    ((record,), (tombstone,)) = await read(flow, flow.topic), await chunks_of(flow, "d1")
    assert tombstone.version == record.timestamp + 1
    await delete(flow, [tombstone])
    last = (await read(flow, flow.topic))[-1]
    assert decode(last, "chunk", flow.max_record_bytes) == Tombstone("a", record.timestamp + 1)
    assert await chunks_of(flow, "d1") == []


async def test_a_document_is_gone_from_both_stores_and_a_replay_of_it_stays_gone(flow, stores):
    mine, others = [chunk(f"m{n}", version=5) for n in range(5)], [chunk("o", doc_id="d2", version=5)]
    await publish(flow, *mine, *others)
    async with AsyncExitStack() as stack:
        workers = [Worker(stage, port=port) for stage, port in zip(STAGES, free_ports(3), strict=True)]
        for worker in workers:
            await stack.enter_async_context(worker)
        await caught_up(flow)
        would = await asyncio.to_thread(CliRunner().invoke, app, ["delete", "--doc-id", "d1", "--dry-run"])
        assert "would delete 5 chunks of d1" in would.stdout
        did = await asyncio.to_thread(CliRunner().invoke, app, ["delete", "--doc-id", "d1"])
        assert did.stdout == "deleted 5 chunks of d1\n"
        await caught_up(flow)
        assert {store.name: await store.count() for store in stores.both} == {"Neo4j": 1, "OpenSearch": 1}
        await publish(flow, *mine)
        await caught_up(flow)
        assert {store.name: await store.count() for store in stores.both} == {"Neo4j": 1, "OpenSearch": 1}
        for worker in workers:
            assert await worker.end(signal.SIGTERM) == 0
    assert (await verify(flow, stores)).deleted == 5
