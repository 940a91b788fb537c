"""If these fail, one batch that the broker stores and aiokafka cannot read stops a worker, and each command, for ever.

Such a batch has a header name that is not UTF-8, or is the marker of a transaction whose record compaction has removed.
"""

import json
from unittest.mock import patch

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.consumer import fetcher
from aiokafka.errors import KafkaError
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchBuilderPy
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from running import running
from support import FORGETFUL, chunk, compacted, create_topics, read, transactional, until

from stream.config import Settings
from stream.kafka import clients, deadletters, reader, record_batches, topics
from stream.operate import redrive
from stream.records import header

BROKEN = b"caf\xe9\x00\xff"
ESCAPED = "caf\\xe9\x00\\xff"
NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)


class Name(str):
    """A header name of any bytes, for aiokafka's builder in Python; no client writes one that is not UTF-8."""

    def __new__(cls, raw: bytes) -> "Name":
        name = super().__new__(cls, "")
        name.raw = raw
        return name

    def encode(self, *_) -> bytes:
        return self.raw


def builder(compression: int = NONE, transactional: bool = False, producer: int = -1) -> _DefaultRecordBatchBuilderPy:
    return _DefaultRecordBatchBuilderPy(2, compression, transactional, producer, 0, 0, 2**20)


def batch(first: int, *names: bytes, **how) -> bytes:
    """A batch as a broker stores it: one record for each header name, from the offset `first` on."""
    building = builder(**how)
    for n, name in enumerate(names):
        building.append(n, 1000, b"k%d" % (first + n), b"v" * 100, [(Name(name), b"x"), ("nothing", None)])
    data = building.build()
    data[:8] = first.to_bytes(8, "big")
    return bytes(data)


def emptied_marker(offset: int, producer: int) -> bytes:
    """What compaction leaves of a transaction marker: its batch, without a record."""
    data = bytearray(batch(offset, transactional=True, producer=producer))
    data[22] |= _DefaultRecordBatchBuilderPy.CONTROL_MASK  # the lower byte of the attributes
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    return bytes(data)


def fetched(data: bytes, offset: int = 0, aborted=()) -> list:
    """The records that aiokafka reads from the bytes of a fetch at an offset."""
    memory = fetcher.MemoryRecords(data)
    return [*fetcher.PartitionRecords(TopicPartition("t", 0), memory, [*aborted], offset, None, None, True, 1)]


@pytest.mark.parametrize("compression", [NONE, GZIP, SNAPPY, LZ4, ZSTD])
def test_each_record_comes_once_whatever_batch_has_the_broken_name(compression):
    data = batch(0, b"a", b"b") + batch(2, b"c", BROKEN, b"d", compression=compression) + batch(5, b"\xff")
    read = fetched(data)
    assert [record.offset for record in read] == [0, 1, 2, 3, 4, 5]
    assert [record.key for record in read] == [b"k%d" % n for n in range(6)]
    assert [record.headers[0][0] for record in read] == ["a", "b", "c", ESCAPED, "d", "\\xff"]
    assert all(record.headers[0][1] == b"x" and record.headers[1] == ("nothing", None) for record in read)


def test_a_fetch_that_begins_within_a_batch_begins_there():
    assert [record.offset for record in fetched(batch(0, b"a", BROKEN, b"b", BROKEN), 2)] == [2, 3]


def test_what_was_aborted_stays_away_behind_a_broken_name():
    aborted = batch(2, b"a", b"b", transactional=True, producer=7)
    assert [r.offset for r in fetched(batch(0, b"a", BROKEN) + aborted + batch(4, b"c"), aborted=[(7, 2)])] == [0, 1, 4]
    data = batch(0, b"a", b"b", transactional=True, producer=7) + batch(2, BROKEN) + batch(3, b"c")
    assert [r.offset for r in fetched(data, aborted=[(7, 0)])] == [2, 3]


@pytest.mark.parametrize("name", [b"a", BROKEN])  # read by the reader in C, or in Python
def test_an_emptied_marker_is_passed_and_ends_no_transaction(name):
    data = batch(0, name) + emptied_marker(1, producer=7) + batch(2, b"b", transactional=True, producer=7)
    assert [r.offset for r in fetched(data)] == [0, 2]
    assert [r.offset for r in fetched(data + batch(3, b"c"), aborted=[(7, 1)])] == [0, 3]


def test_a_name_in_utf_8_is_read_by_the_reader_in_c():
    memory = fetcher.MemoryRecords(batch(0, "字".encode()))
    assert isinstance(memory.next_batch(), DefaultRecordBatch)
    assert DefaultRecordBatch.__module__.startswith("aiokafka.record._crecords")
    assert fetched(batch(0, "字".encode()))[0].headers[0][0] == "字"


@pytest.mark.servers
async def test_the_marker_of_a_transaction_that_a_newer_producer_aborted_can_be_read_after_compaction(settings):
    await create_topics(settings, FORGETFUL)
    topic = settings.topic
    async with transactional(settings, topic) as old:
        await old.begin_transaction()
        await old.send_and_wait(topic, key=b"aborted", value=b"1", partition=0)
        async with transactional(settings, topic):
            pass  # aborts the transaction of the old producer, with a newer epoch
    with patch.object(fetcher, "PartitionRecords", record_batches.PartitionRecords):

        async def emptied() -> bool:
            try:
                await compacted(settings, topic)
            except KafkaError as error:
                return "did not contain any records" in str(error)
            return False

        async with clients.producer(settings) as producer:
            await producer.send_and_wait(topic, key=b"last", value=b"1", partition=0)
        await until(emptied)
    assert {record.key for record in await read(settings, topic)} == {b"last"}


async def publish(settings: Settings, topic: str, name: bytes, key: bytes, value: bytes | None) -> None:
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka_servers) as producer:
        batch = producer.create_batch()
        batch._builder = builder()
        batch.append(timestamp=None, key=key, value=value, headers=[(Name(name), b"x")])
        await (await producer.send_batch(batch, topic, partition=0))


@pytest.mark.servers
async def test_a_record_with_a_broken_header_name_passes_and_a_bad_one_is_a_dead_letter_that_can_be_redriven(flow):
    await publish(flow, flow.topic, BROKEN, b"good", json.dumps(chunk("good")).encode())
    await publish(flow, flow.topic, BROKEN, b"bad", b"not json")
    async with running(flow):
        await until(lambda: _has(flow, topics.dead_letters(flow, "embed"), 1))
        await until(lambda: _has(flow, topics.source(flow, "expand"), 1))
        planned = await redrive.plan(flow, "embed", deadletters.Filter())
        assert [verdict.stays for verdict in planned] == [None]
        await redrive.redrive(flow, "embed", planned)
        await until(lambda: _has(flow, topics.dead_letters(flow, "embed"), 3))  # two letters and a marker
    (passed,) = await read(flow, topics.source(flow, "expand"))
    assert (passed.key, header(passed.headers, ESCAPED)) == (b"good", b"x")
    letters = [one for one in await read(flow, topics.dead_letters(flow, "embed")) if deadletters.letter_of(one)]
    assert [header(letter.headers, ESCAPED) for letter in letters] == [b"x", b"x"]
    assert deadletters.DeadLetter.of(letters[-1]).attempts == 2
    assert [record.key for record in await read(flow, flow.topic)] == [b"good", b"bad", b"bad"]


async def _has(settings: Settings, topic: str, count: int) -> bool:
    return len([record async for record in reader.read_to_end(settings, topic)]) == count
