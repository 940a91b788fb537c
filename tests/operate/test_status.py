"""If these fail, a user believes that all chunks are processed when they are not, or waits for ever."""

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import RecordsToDelete
from support import LONGEST, send

from stream.config import STAGES, Settings, StageName
from stream.errors import ConfigurationError
from stream.kafka import clients, topics
from stream.operate import status
from stream.operate.status import StageStatus

pytestmark = pytest.mark.servers


async def publish(settings: Settings, count: int) -> None:
    await send(settings, [(f"c{n}".encode(), b"{}") for n in range(count)])


async def commit(settings: Settings, stage: StageName, behind: int = 0) -> None:
    """Commits the stage's whole source, except for the last `behind` records of one partition."""
    async with clients.admin(settings) as admin:
        partitions = await clients.partitions(admin, [topics.source(settings, stage)])
    client = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka_servers, group_id=topics.group(settings, stage), enable_auto_commit=False
    )
    await client.start()
    try:
        client.assign(partitions)
        ends = await client.end_offsets(partitions)
        fullest = max(ends, key=ends.__getitem__)
        await client.commit(ends | {fullest: ends[fullest] - behind})
    finally:
        await client.stop()


def of(stage: StageName, found: list[StageStatus]) -> StageStatus:
    return next(status for status in found if status.stage == stage)


async def test_a_stage_that_never_ran_has_everything_ahead_of_it(flow):
    await publish(flow, 5)
    assert await status.stages(flow) == [
        StageStatus("embed", total=5, done=0, dead_letters=0),
        StageStatus("expand", total=0, done=0, dead_letters=0),
        StageStatus("index", total=0, done=0, dead_letters=0),
    ]


async def test_lag_is_what_its_group_has_not_committed(flow):
    await publish(flow, 5)
    await commit(flow, "embed", behind=2)
    embed = of("embed", await status.stages(flow))
    assert (embed.total, embed.done, embed.lag) == (5, 3, 2)


async def test_all_is_ahead_of_a_stage_whose_committed_offset_lies_beyond_the_end(flow):
    """Kafka has lost records, or the topic was recreated while a worker ran: the worker reads from the beginning."""
    await publish(flow, 2)
    async with clients.admin(flow) as admin:
        partitions = await clients.partitions(admin, [flow.topic])
    await clients.commit(flow, topics.group(flow, "embed"), dict.fromkeys(partitions, 100))
    embed = of("embed", await status.stages(flow))
    assert (embed.total, embed.lag) == (2, 2)


async def test_dead_letters_are_counted_by_stage(flow):
    async with clients.producer(flow) as producer:
        for n, stage in enumerate(STAGES):
            for _ in range(n):
                await producer.send_and_wait(topics.dead_letters(flow, stage), value=b"{")
    assert [found.dead_letters for found in await status.stages(flow)] == [0, 1, 2]


async def test_dead_letters_that_kafka_has_deleted_are_not_counted(flow):
    name = topics.dead_letters(flow, "embed")
    async with clients.producer(flow) as producer:
        for _ in range(3):
            await producer.send_and_wait(name, value=b"{")
    async with clients.admin(flow) as admin:
        await admin.delete_records({TopicPartition(name, 0): RecordsToDelete(2)})
    assert of("embed", await status.stages(flow)).dead_letters == 1


async def test_one_look_holds_the_stages_and_both_stores(flow):
    async def count() -> int:
        return 7

    async def origins() -> dict[str, int]:
        return {"{}": 7}

    both = [SimpleNamespace(name=name, count=count, origins=origins) for name in ("Neo4j", "OpenSearch")]
    stores = SimpleNamespace(both=both)
    found = await status.status(flow, stores)
    assert [stage.stage for stage in found.stages] == list(STAGES)
    assert found.stores == {"Neo4j": 7, "OpenSearch": 7}
    assert found.origins == {"Neo4j": {"{}": 7}, "OpenSearch": {"{}": 7}}


async def test_caught_up_waits_for_the_last_record_and_shows_its_looks(flow):
    await publish(flow, 5)
    await commit(flow, "embed", behind=1)
    looks: asyncio.Queue[list[StageStatus]] = asyncio.Queue()
    waiting = asyncio.create_task(status.caught_up(flow, look=looks.put_nowait))
    for _ in range(3):
        assert of("embed", await looks.get()).lag == 1
    assert not waiting.done()
    await commit(flow, "embed")
    async with asyncio.timeout(LONGEST):
        await waiting


async def test_caught_up_waits_only_for_the_stages_that_are_named(flow):
    await publish(flow, 5)
    async with asyncio.timeout(LONGEST):
        await status.caught_up(flow, ["index"])


async def test_missing_topics_are_named(settings):
    with pytest.raises(ConfigurationError, match=settings.topic):
        await status.stages(settings)
