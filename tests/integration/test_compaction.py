"""If these fail, a compacted topic stops a worker, hides a lost chunk or restores an old version.

Each topic begins with a record that compaction keeps, followed by a gap in the offsets. Old versions are gone, and so
are deleted chunks with their tombstones. The topic ends with an aborted transaction, so the last offsets of each
partition have no readable record.
"""

import asyncio
from itertools import count

import orjson
import pytest
from aiokafka.partitioner import DefaultPartitioner
from ports import free_ports
from support import FORGETFUL, LONGEST, Worker, chunk, compacted, create_topics, expanded, names, read, transactional

from stream.config import Settings
from stream.kafka import clients, topics
from stream.kafka.deadletters import Filter, letter_headers
from stream.operate import reindex
from stream.operate.delete import chunks_of
from stream.operate.redrive import plan, redrive
from stream.operate.replay import Range, publish_again
from stream.operate.replay import plan as replay_plan
from stream.operate.status import caught_up, stages
from stream.operate.verify import verify
from stream.records import VERSION_HEADER, Decoder, Record, Rejected, Tombstone, encode

pytestmark = pytest.mark.servers

PARTITIONS = [0, 1]


def in_partition(word: str, partition: int) -> str:
    """A chunk_id with this word whose records go to this partition."""
    partitioner = DefaultPartitioner()
    chunk_ids = (f"{word}-{n}" for n in count())
    return next(one for one in chunk_ids if partitioner(one.encode(), PARTITIONS, PARTITIONS) == partition)


FIRST, CHANGED, GONE, LAST = (
    [in_partition(word, partition) for partition in PARTITIONS] for word in ("first", "changed", "gone", "last")
)
PUBLISHED = (  # with versions; a negative version is a tombstone
    [(chunk_id, 1) for chunk_id in FIRST]
    + [(chunk_id, version) for chunk_id in CHANGED for version in (1, 2, 3, 4)]
    + [(chunk_id, version) for chunk_id in GONE for version in (1, -2)]
    + [(chunk_id, 1) for chunk_id in LAST]
)
ABORTED = [(chunk_id, -9) for chunk_id in FIRST] + [(chunk_id, 9) for chunk_id in CHANGED + GONE]
LIVE = {chunk_id: version for chunk_id, version in PUBLISHED if chunk_id not in GONE}


@pytest.fixture
async def flow(settings: Settings) -> Settings:
    await create_topics(settings, FORGETFUL)
    made = {settings.topic: chunk, topics.source(settings, "index"): expanded}
    async with clients.producer(settings) as producer:
        for topic, make in made.items():
            for one in PUBLISHED:
                await send(producer, topic, make, *one)
    await asyncio.gather(*(compacted(settings, topic) for topic in made))
    async with transactional(settings, settings.topic) as producer:
        await producer.begin_transaction()
        for topic, make in made.items():
            for one in ABORTED:
                await send(producer, topic, make, *one)
        await producer.abort_transaction()
    return settings


async def send(producer, topic, make, chunk_id, version):
    if version > 0:
        value, headers = encode(make(chunk_id, f"version {version}", version))
    else:
        value, headers = None, [(VERSION_HEADER, str(-version).encode())]
    await producer.send_and_wait(topic, key=chunk_id.encode(), value=value, headers=headers)


async def live_in(settings, topic, contract):
    """The versions by chunk in the last records of a topic; negative for a tombstone."""
    found = {}
    for record in await read(settings, topic):
        decoded = Decoder.of(contract, settings)(record)
        assert not isinstance(decoded, Rejected)
        chunk_id, version = names(decoded)
        found[chunk_id] = -version if isinstance(decoded, Tombstone) else version
    return found


async def test_a_worker_that_comes_first_reaches_the_end_and_so_does_what_is_replayed(flow, stores):
    async with Worker("index", port=free_ports(1)[0]), asyncio.timeout(LONGEST):
        await caught_up(flow, ["index"])
        assert (await stages(flow))[2].lag == 0
        report = await verify(flow, stores)
        assert (report.differences, report.indexed) == ([], len(LIVE))
        planned = await replay_plan(flow, "index", Range())
        assert await publish_again(flow, "index", planned) == len(LIVE)
        await caught_up(flow, ["index"])
        report = await verify(flow, stores)
        assert (report.differences, report.indexed) == ([], len(LIVE))


async def test_the_first_stage_passes_on_what_is_left_and_nothing_that_was_aborted(flow):
    async with Worker("embed", port=free_ports(1)[0]), asyncio.timeout(LONGEST):
        await caught_up(flow, ["embed"])
    assert await live_in(flow, topics.source(flow, "expand"), "embedded") == LIVE


async def test_a_reindex_ends_and_has_all_that_is_left(flow, stores):
    async with asyncio.timeout(LONGEST):
        assert await reindex.start(flow) == 2
    report = await verify(flow, stores)
    assert (report.differences, report.indexed) == ([], len(LIVE))


async def test_what_is_planned_is_about_what_is_left(flow):
    tombstones = await chunks_of(flow, "d1")
    assert {one.chunk_id: one.version for one in tombstones} == {c: version + 1 for c, version in LIVE.items()}
    assert len((await replay_plan(flow, "embed", Range())).places) == len(LIVE)


async def test_a_letter_goes_unless_its_key_has_a_newer_record_also_if_its_own_record_is_gone(flow):
    letters, wrong = topics.dead_letters(flow, "embed"), Rejected("schema", "a mistake")
    async with clients.letter_producer(flow) as producer:
        for chunk_id, offset in ((CHANGED[0], 1), (FIRST[0], 0)):
            value = orjson.dumps(chunk(chunk_id, "rejected", 1))
            rejected = Record(flow.topic, 0, offset, chunk_id.encode(), value, 1000)
            headers = letter_headers(rejected, "embed", wrong)
            await producer.send_and_wait(letters, key=rejected.key, value=value, headers=headers)
    verdicts = await plan(flow, "embed", Filter())
    assert [verdict.stays for verdict in verdicts] == ["its key has a newer record", None]
    await redrive(flow, "embed", verdicts)
    assert await live_in(flow, flow.topic, "chunk") == LIVE
    lasts = {record.partition: record.key for record in await read(flow, flow.topic)}
    assert lasts[0] == FIRST[0].encode()
