"""If these fail, a deleted document can still be found, or another document loses chunks."""

import asyncio
import signal
from contextlib import AsyncExitStack

import orjson
import pytest
from ports import free_ports
from support import Worker, chunk, names, read, send
from typer.testing import CliRunner

from stream.cli import app
from stream.config import STAGES
from stream.kafka import clients
from stream.operate import delete as deleting
from stream.operate.delete import chunks_of, delete
from stream.operate.status import caught_up
from stream.operate.verify import verify
from stream.records import Decoder, Rejected, Tombstone

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
    async with clients.producer(flow) as producer:
        for key, version in [("gone", b"2"), ("back", b"2"), ("a", b"1")]:
            await producer.send_and_wait(flow.topic, key=key.encode(), value=None, headers=[("version", version)])
    await publish(flow, chunk("back", version=3))
    await send(flow, [(b"a", b"{not json")])
    found = {deletion.chunk_id: deletion.version for deletion in await chunks_of(flow, "d1")}
    assert found == {"a": 4, "moved here": 3, "late": 10, "back": 4, "last": 2**53 - 1}


async def test_a_chunk_without_a_version_is_outranked_too(flow):
    await publish(flow, {"chunk_id": "a", "doc_id": "d1", "text": "no version"})
    ((record,), (deletion,)) = await read(flow, flow.topic), await chunks_of(flow, "d1")
    assert deletion.version == record.timestamp + 1
    assert await delete(flow, [deletion]) == []
    last = (await read(flow, flow.topic))[-1]
    assert Decoder.of("chunk", flow)(last) == Tombstone("a", record.timestamp + 1)
    assert await chunks_of(flow, "d1") == []


async def put(settings, partition, chunk_id, version, doc_id="d1"):
    """Publishes a chunk, or without `doc_id` a tombstone, as a producer with another partitioner does."""
    value = orjson.dumps(chunk(chunk_id, version=version, doc_id=doc_id)) if doc_id else None
    async with clients.producer(settings) as producer:
        headers = [] if doc_id else [("version", str(version).encode())]
        await producer.send_and_wait(
            settings.topic, key=chunk_id.encode(), value=value, partition=partition, headers=headers
        )


async def last(settings):
    """What compaction leaves of each key in each partition: its version, and whether it is a tombstone."""
    found = {}
    for one in await read(settings, settings.topic):
        value = Decoder.of("chunk", settings)(one)
        found[one.key.decode(), one.partition] = (
            "bad" if isinstance(value, Rejected) else (names(value)[1], isinstance(value, Tombstone))
        )
    return found


async def test_a_chunk_is_deleted_in_every_partition_that_holds_its_key(flow):
    """Its producers have different partitioners, or an earlier `stream delete` knew only one of the partitions."""
    for partition in (0, 1):
        await put(flow, partition, f"only {partition}", 1)
        await put(flow, partition, "both", 1 + partition)
        await put(flow, partition, "moved away", 2 - partition, f"d{2 - partition}")
        await put(flow, partition, f"half {partition}", 1)
        await put(flow, 1 - partition, f"half {partition}", 2, None)
        await put(flow, partition, f"other {partition}", 1, "d2")
        await put(flow, 1 - partition, f"other {partition}", 2, None)
    deletions = await chunks_of(flow, "d1")
    assert {one.chunk_id: (one.version, sorted(one.partitions)) for one in deletions} == {
        "only 0": (2, [0]),
        "only 1": (2, [1]),
        "both": (3, [0, 1]),
        "half 0": (3, [0, 1]),
        "half 1": (3, [0, 1]),
    }
    await delete(flow, deletions)
    found = await last(flow)
    for deletion in deletions:
        for partition in deletion.partitions:
            assert found[deletion.chunk_id, partition] == (deletion.version, True)
    assert found["moved away", 0] == (2, False)
    assert await chunks_of(flow, "d1") == []


async def test_a_tombstone_behind_which_an_old_record_came_is_published_again(flow):
    """Compaction removes the tombstone and leaves the record, which a reindex would bring back."""
    await put(flow, 0, "a", 9, None)
    await put(flow, 0, "a", 3)
    (deletion,) = await chunks_of(flow, "d1")
    assert (deletion.version, dict(deletion.partitions)) == (10, {0: 2})


async def test_what_is_published_while_a_document_is_deleted_stays_the_newest(flow):
    """The topic keeps a chunk's last record, the stores keep its highest version: both must be the same."""
    for key in ("next", "higher", "equal", "moved", "deleted", "quiet"):
        await put(flow, 0, key, 5)
    deletions = await chunks_of(flow, "d1")
    await put(flow, 0, "next", 6)
    await put(flow, 0, "higher", 7)
    await put(flow, 0, "higher", 8)
    await put(flow, 0, "equal", 5)
    await put(flow, 0, "moved", 9, "d2")
    await put(flow, 0, "deleted", 8, None)
    async with clients.producer(flow) as producer:
        await producer.send_and_wait(flow.topic, key=b"quiet", value=b"{not json", partition=0)
    assert await delete(flow, deletions) == ["higher", "moved", "next"]
    assert {key: held for (key, _), held in (await last(flow)).items()} == {
        "next": (6, False),
        "higher": (8, False),
        "equal": (6, True),
        "moved": (9, False),
        "deleted": (8, True),
        "quiet": (6, True),
    }


async def test_the_command_names_what_was_published_meanwhile(flow, monkeypatch):
    await put(flow, 0, "a", 1)
    await put(flow, 0, "b", 1)
    real = deleting.chunks_of

    async def busy(*arguments):
        found = await real(*arguments)
        await put(flow, 0, "b", 7)
        return found

    monkeypatch.setattr(deleting, "chunks_of", busy)
    ended = await asyncio.to_thread(CliRunner().invoke, app, ["delete", "--doc-id", "d1"])
    assert (ended.exit_code, ended.stdout) == (1, "deleted 1 chunks of d1\n")
    assert ended.stderr == "b is not deleted: it was published while the command ran\n"


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
