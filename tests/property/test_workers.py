"""Generated records through the real broker and the three workers: if this fails, one record can break the flow.

The topics are as another operator may have made them: not compacted, so that a record may lack its key, and open to any
timestamp. Records are compressed, so that some are larger than the topics' limit once unpacked. Half of the records are
in transactions, between aborted ones.
"""

import signal
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import count

import hypothesis
import orjson
import pytest
from aiokafka import AIOKafkaProducer
from checker import check, check_stores
from hypothesis import given
from hypothesis import strategies as st
from ports import free_ports
from strategies import Case, batches, kinds_of, numbered
from support import Worker, read, transactional

from stream.config import STAGES, Settings, StageName
from stream.kafka import clients, topics
from stream.operate.status import caught_up
from stream.operate.verify import verify
from stream.records import MAX_VERSION, Chunk, Record

pytestmark = pytest.mark.servers

GROUP = 20  # records that are published in the same way
OPEN = {"cleanup.policy": "delete", "retention.ms": "-1", "message.timestamp.after.max.ms": str(2**63 - 1)}


@pytest.fixture
def variables(variables: dict[str, str]) -> dict[str, str]:
    return variables | {"STREAM_MAX_RECORD_BYTES": "100000", "STREAM_MAX_MESSAGE_BYTES": str(2**20)}


@pytest.fixture
async def flow(settings: Settings) -> Settings:
    """Settings whose topics exist and accept any record."""
    async with clients.admin(settings) as admin:
        wanted = list(topics.definitions(settings, 1))
        for topic in wanted:
            if not topic.name.endswith(topics.DLQ):
                topic.topic_configs |= OPEN
        await admin.create_topics(wanted)
        await topics._until_known(admin, [topic.name for topic in wanted])
    return settings


@pytest.fixture
async def workers(flow: Settings, stores: object) -> AsyncIterator[list[Worker]]:
    async with AsyncExitStack() as stack:
        started = [Worker(stage, port=port) for stage, port in zip(STAGES, free_ports(len(STAGES)), strict=True)]
        yield [await stack.enter_async_context(worker) for worker in started]


def generated(stage: StageName, settings: Settings) -> list[Case]:
    """At least a thousand records; each batch has its own chunks."""
    cases: list[Case] = []
    prefixes = (f"{stage}{n}" for n in count())

    @hypothesis.settings(derandomize=True)  # Hypothesis could not repeat a later failure
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        cases.extend(data.draw(batches(stage, settings, next(prefixes))))

    collect()
    assert len(cases) >= 1000
    assert {case.kind for case in cases} == set(kinds_of(stage))
    return [numbered(case, n) for n, case in enumerate(cases)]


async def send(settings: Settings, topic: str, records: Sequence[Record]) -> None:
    """Publishes records as they are, one after the other; every other group of them in a transaction.

    An aborted transaction with the same records comes first: a reader of aborted records sees each record twice.
    """
    compressed = {"compression_type": "gzip", "max_request_size": 2**31 - 1}
    async with clients.letter_producer(settings) as plain, transactional(settings, topic, **compressed) as producer:
        for start in range(0, len(records), 2 * GROUP):
            await append(plain, topic, records[start : start + GROUP])
            for end in (producer.abort_transaction, producer.commit_transaction):
                await producer.begin_transaction()
                await append(producer, topic, records[start + GROUP : start + 2 * GROUP])
                await end()


async def append(producer: AIOKafkaProducer, topic: str, records: Sequence[Record]) -> None:
    """Records of one key go to one partition."""
    count = len(await producer.partitions_for(topic))
    for record in records:
        batch = producer.create_batch()
        batch.append(key=record.key, value=record.value, timestamp=record.timestamp, headers=list(record.headers))
        partition = zlib.crc32(record.key or b"") % count
        await (await producer.send_batch(batch, topic, partition=partition))


class Flow:
    """The outputs of the stages since the last call."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seen: dict[str, Mapping[int, int]] = {}  # the next offset of each partition, by topic

    async def new(self, topic: str | None) -> list[Record]:
        if topic is None:
            return []
        records = await read(self._settings, topic)
        before = self._seen.get(topic, {})
        self._seen[topic] = {record.partition: record.offset + 1 for record in records}
        return [record for record in records if record.offset >= before.get(record.partition, 0)]

    async def through(self, stage: StageName, cases: list[Case]) -> list[Case]:
        """Sends cases to a stage, waits for all stages and checks its outputs; returns the cases that came through."""
        settings = self._settings
        await self.new(topics.target(settings, stage))  # discards the cases that were sent to the next stage directly
        await send(settings, topics.source(settings, stage), [case.record for case in cases])
        await caught_up(settings)
        outputs = await self.new(topics.target(settings, stage))
        letters = await self.new(topics.dead_letters(settings, stage))
        return check(stage, settings, cases, outputs, letters)


def as_chunk(case: Case, settings: Settings) -> Case:
    """The chunk that leads to a record of a later stage; a deletion if the chunk is too large."""
    record = case.record
    value, headers = record.value, record.headers
    if record.size > settings.max_record_bytes:
        value, headers = None, (("version", str(MAX_VERSION).encode()),)
    elif value:
        value = orjson.dumps({k: v for k, v in orjson.loads(value).items() if k in Chunk.__annotations__})
    return Case("a chunk", replace(record, value=value, headers=headers), frozenset({None}))


async def test_every_record_leads_to_one_outcome_and_verify_is_clean(flow, stores, workers):
    """From the last stage to the first, so that a stage's outputs pass the next stages without help."""
    made = Flow(flow)
    indexed, expanded = generated("index", flow), generated("expand", flow)
    await check_stores(stores, indexed, await made.through("index", indexed), flow)
    await made.through("expand", expanded)
    assert await made.new(topics.dead_letters(flow, "index")) == []

    # `verify` compares with the first topic, so the chunks that were sent to later topics are added there.
    behind = [as_chunk(case, flow) for case in indexed + expanded if None in case.outcomes]
    chunks = [numbered(case, n) for n, case in enumerate(generated("embed", flow) + behind)]
    await made.through("embed", chunks)
    assert await made.new(topics.dead_letters(flow, "expand")) == []
    assert await made.new(topics.dead_letters(flow, "index")) == []
    report = await verify(flow, stores)
    assert (report.differences, report.ahead_chunks) == ([], [])
    for worker in workers:
        assert await worker.end(signal.SIGTERM) == 0
    print(f"{len(indexed):,} + {len(expanded):,} + {len(chunks):,} records; {report}")
