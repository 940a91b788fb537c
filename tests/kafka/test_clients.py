"""If these fail, a command that reads a topic misses a record, takes one that was never committed, or never ends."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError
from support import open_transaction, read, send, until

from stream.config import Settings
from stream.errors import Outage
from stream.kafka import clients, reader
from stream.operate import replay

pytestmark = pytest.mark.servers


async def test_a_topic_is_read_to_its_end_and_progress_is_told(flow: Settings):
    sent = [(b"%d" % n, b"x") for n in range(100)]
    await send(flow, sent)
    told = []
    read = [r async for r in reader.read_to_end(flow, flow.topic, progress=lambda *numbers: told.append(numbers))]
    assert sorted((record.key, record.value) for record in read) == sorted(sent)
    assert told[0] == (0, 100)
    assert told[-1] == (100, 100)


async def test_kafka_that_falls_silent_while_a_topic_is_read_is_an_outage(flow: Settings, monkeypatch):
    await send(flow, [(b"%d" % n, b"x" * 300_000) for n in range(100)])  # more than is fetched at once
    monkeypatch.setattr(reader, "STALL_TIMEOUT", 1)

    async def away(*_, **__):
        raise KafkaConnectionError

    read = 0
    with pytest.raises(Outage, match="sent nothing"):
        async for _ in reader.read_to_end(flow, flow.topic):
            read += 1
            monkeypatch.setattr(AIOKafkaClient, "send", away)
    assert 0 < read < 100


async def test_a_topic_without_records_leaves_no_client_that_goes_on_fetching(flow: Settings):
    before = asyncio.all_tasks()
    assert await read(flow, flow.topic) == []

    async def ended() -> bool:
        return asyncio.all_tasks() <= before

    await until(ended)


@asynccontextmanager
async def transaction(settings: Settings):
    """A producer with a transaction open that has written a record to partition 0."""
    async with open_transaction(settings) as producer:
        await producer.send_and_wait(settings.topic, key=b"in", value=b"x", partition=0)
        yield producer
        await producer.abort_transaction()


async def behind(settings: Settings) -> None:
    """Publishes a record to partition 0, outside of any transaction."""
    async with clients.producer(settings) as producer:
        await producer.send_and_wait(settings.topic, key=b"behind", value=b"x", partition=0)


async def test_aborted_records_are_not_read_and_what_lies_behind_an_open_transaction_is_waited_for(flow: Settings):
    """Otherwise `verify` reports a chunk as missing, and `replay` replaces a record with an older one."""
    progress: list[tuple[int, int]] = []
    records = reader.read_to_end(flow, flow.topic, progress=lambda *told: progress.append(told))
    async with transaction(flow):
        await behind(flow)
        reading = asyncio.create_task(anext(records))
        while len(progress) < 3:  # until the reader has polled again without a record
            await asyncio.wait([reading], timeout=0.1)
        assert progress[-1] == (0, 2)
        assert not reading.done()
    assert (await reading).key == b"behind"
    await records.aclose()
    assert [record.key for record in await read(flow, flow.topic)] == [b"behind"]


async def test_a_transaction_that_stays_open_is_an_outage_that_says_where(flow: Settings, monkeypatch):
    monkeypatch.setattr(reader, "STALL_TIMEOUT", 1)
    await behind(flow)
    async with transaction(flow):
        with pytest.raises(Outage, match=rf"a transaction is still open in {flow.topic}/0 at offset 1"):
            await read(flow, flow.topic)


async def test_a_reset_to_the_latest_offset_leaves_what_an_open_transaction_will_commit(flow: Settings):
    await behind(flow)
    async with transaction(flow):
        await behind(flow)
        assert (await replay.reset(flow, "embed", "latest"))[0] == 1
        assert (await replay.reset(flow, "embed", 2**50))[0] == 1  # a time in the future
        async with clients.offsets(flow) as client:
            tp = TopicPartition(flow.topic, 0)
            assert (await client.end_offsets([tp]))[tp] == 3
