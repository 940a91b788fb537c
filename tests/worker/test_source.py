"""If these fail, a worker commits records that are not done, stops committing, or reads aborted records."""

import asyncio
import json
from types import SimpleNamespace

import faust
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic, RecordsToDelete
from prometheus_client import REGISTRY
from running import passing, running
from support import LONGEST, chunk, open_transaction, read, send, until

from stream.config import Settings
from stream.kafka import clients, lag, topics
from stream.operate import reindex, replay, status
from stream.worker import source
from stream.worker.consumer import OffsetTracker

servers = pytest.mark.servers


# What may be committed


def records(*offsets):
    return [SimpleNamespace(offset=offset) for offset in offsets]


def test_what_is_committed_is_the_oldest_record_that_is_not_done():
    progress = OffsetTracker(0)
    first, second = records(0, 1)
    progress.read([first, second], 2)
    assert progress.committable == 0
    progress.acknowledge(first)
    assert progress.committable == 1
    progress.acknowledge(second)
    assert progress.committable == 2


def test_a_position_that_moves_on_without_records_is_committed_only_when_all_before_it_is_done():
    """Markers and aborted records follow a batch that hangs: after a crash a worker must get the batch again."""
    progress = OffsetTracker(7)
    (hanging,) = records(7)
    progress.read([hanging], 8)
    progress.read([], 20)
    assert progress.committable == 7
    progress.acknowledge(hanging)
    assert progress.committable == 20


def test_a_gap_of_any_size_is_passed_at_once():
    progress = OffsetTracker(1)
    before, behind = records(1, 10**15)
    progress.read([before, behind], 10**15 + 1)
    progress.acknowledge(before)
    assert progress.committable == 10**15
    progress.acknowledge(behind)
    assert progress.committable == 10**15 + 1


def test_a_record_that_faust_has_dropped_is_never_passed():
    progress = OffsetTracker(0)
    dropped, delivered = records(0, 1)
    progress.read([dropped, delivered], 2)
    progress.acknowledge(delivered)
    assert progress.committable == 0


def test_what_an_earlier_assignment_has_read_acknowledges_nothing_of_this_one():
    """A recreated topic has other records at the same offsets."""
    (old,) = records(0)
    (new,) = records(0)
    progress = OffsetTracker(0)
    progress.read([new], 1)
    progress.acknowledge(old)
    assert progress.committable == 0


# The source's use of Faust, with a fake Faust


class Faust(SimpleNamespace):
    """An app whose signals, agent and consumer do nothing until the test says so."""

    def __init__(self):
        signal = SimpleNamespace(connect=lambda function, weak: function)
        super().__init__(
            topic=lambda *_, **__: None,
            agent=lambda *_, **__: lambda function: function,
            on_partitions_revoked=SimpleNamespace(connect=self._connect),
            on_partitions_assigned=signal,
            on_before_shutdown=signal,
            consumer_generation_id=1,
            consumer=SimpleNamespace(commit=self._commit),
        )

    def _connect(self, function, weak):
        self.revoke = function

    async def _commit(self):
        pass


@pytest.fixture
def faked(monkeypatch):
    """A source of batches of three with a fake Faust, and the fake."""
    app = Faust()
    monkeypatch.setattr(source, "_app", lambda *_: app)
    made = source.Source("embed", Settings(_env_file=None, batch_size=3, batch_bytes=100))

    async def revoked():
        pass

    made.connect(None, lambda partitions: None, revoked, None)
    return made, app


def fetched(*offsets, value=b"", headers=()):
    return [
        SimpleNamespace(topic="t", partition=0, offset=n, key=b"k", value=value, timestamp=1, headers=headers)
        for n in offsets
    ]


def offsets(deliveries):
    return [delivery.record.offset for delivery in deliveries]


async def test_a_batch_is_what_has_arrived_and_the_next_fetch_waits_until_less_than_a_batch_is_left(faked):
    made, _ = faked
    waiting = asyncio.create_task(made.take())
    await made._deliver(fetched(0), 1)
    assert offsets(await waiting) == [0]
    delivering = asyncio.create_task(made._deliver(fetched(*range(1, 8)), 1))
    assert offsets(await made.take()) == [1, 2, 3]
    assert not delivering.done()
    assert offsets(await made.take()) == [4, 5, 6]
    await delivering
    assert made.has_more
    assert offsets(await made.take()) == [7]
    assert not made.has_more


async def test_a_batch_is_no_larger_than_the_memory_for_it_and_a_larger_record_comes_alone(faked):
    made, _ = faked
    delivering = asyncio.create_task(made._deliver(fetched(0, 1, value=b"x" * 60) + fetched(2, value=b"x" * 500), 1))
    assert [offsets(await made.take()) for _ in range(3)] == [[0], [1], [2]]
    await delivering
    await made._deliver(fetched(3, 4, headers=[("vector", b"x" * 60)]), 1)
    assert [offsets(await made.take()) for _ in range(2)] == [[3], [4]]


async def test_records_of_a_generation_that_has_passed_are_not_current(faked):
    """Another worker also gets these records."""
    made, _ = faked
    await made._deliver(fetched(1), 0)
    await made._deliver(fetched(2), 1)
    assert offsets(made.current(await made.take())) == [2]


async def test_what_had_arrived_of_revoked_partitions_is_dropped_and_the_next_fetch_goes_on(faked):
    """Kafka delivers it again after the next assignment: without this it would be there twice."""
    made, app = faked
    delivering = asyncio.create_task(made._deliver(fetched(*range(5)), 1))
    await asyncio.sleep(0)
    await app.revoke(app, {"tp"})
    await delivering
    assert not made.has_more


# A worker on a real Kafka


def good(number: int, version: int = 1) -> tuple[bytes, bytes]:
    return f"c{number}".encode(), json.dumps(chunk(f"c{number}", version=version)).encode()


@pytest.fixture
def one(settings: Settings) -> Settings:
    return settings.model_copy(update={"partitions": 1, "commit_interval": 0.2})


@pytest.fixture
async def topic(one: Settings) -> TopicPartition:
    """The one partition of a flow's first topic."""
    await topics.create(one)
    return TopicPartition(one.topic, 0)


async def make_topic(settings: Settings, configs: dict[str, str]) -> None:
    """Makes the flow's topics, the first with settings of its own."""
    limit = {"max.message.bytes": str(settings.max_message_bytes)}
    async with clients.admin(settings) as admin:
        await admin.create_topics([NewTopic(settings.topic, 1, 1, topic_configs=configs | limit)])
    await topics.create(settings)


async def abort_many(settings: Settings, count: int) -> None:
    """An aborted transaction, which leaves a gap of `count` offsets and a marker."""
    async with open_transaction(settings) as producer:
        sent = [await producer.send(settings.topic, key=b"%d" % n, value=b"never") for n in range(count)]
        await asyncio.gather(*sent)
        await producer.abort_transaction()


async def committed(settings: Settings) -> int | None:
    """What the embed stage has committed of partition 0."""
    async with clients.admin(settings) as admin:
        found = await lag.committed(admin, topics.group(settings, "embed"))
    return found.get(TopicPartition(settings.topic, 0))


async def commits(settings: Settings, offset: int) -> None:
    async def there() -> bool:
        return await committed(settings) == offset

    await until(there)


async def end(settings: Settings) -> int:
    """The high watermark of partition 0."""
    tp = TopicPartition(settings.topic, 0)
    async with clients.offsets(settings) as client:
        return (await client.end_offsets([tp]))[tp]


async def passed(settings: Settings) -> list[tuple[bytes, int]]:
    """Keys and versions of what the stage has published, in order."""
    return [(r.key, json.loads(r.value)["version"]) for r in await read(settings, topics.source(settings, "expand"))]


@servers
async def test_what_a_transaction_aborted_changes_nothing_and_leaves_no_lag(one, topic):
    await send(one, [good(1), good(2)])
    async with running(one):
        await commits(one, 2)
        async with open_transaction(one) as producer:
            await producer.send_and_wait(one.topic, key=b"c1", value=None)
            await producer.send_and_wait(one.topic, key=b"c2", value=good(2, version=9)[1])
            await send(one, [good(3)])
            await producer.abort_transaction()
        await commits(one, await end(one))
        assert await passed(one) == [(b"c1", 1), (b"c2", 1), (b"c3", 1)]
        assert [found.lag for found in await status.stages(one) if found.stage == "embed"] == [0]


@servers
async def test_what_follows_an_open_transaction_waits_for_its_end(one, topic):
    async with running(one):
        async with open_transaction(one) as producer:
            await producer.send_and_wait(one.topic, key=b"c1", value=good(1)[1])
            await send(one, [good(2)])
            await send(one, [good(3)])
            assert [found.lag for found in await status.stages(one) if found.stage == "embed"] == [3]
            await producer.commit_transaction()
        await commits(one, 4)
    assert await passed(one) == [(b"c1", 1), (b"c2", 1), (b"c3", 1)]


class Hanging:
    """A stage that has `taken` a batch and passes it on when its `gate` is open."""

    def __init__(self) -> None:
        self.taken, self.gate = asyncio.Event(), asyncio.Event()

    async def __call__(self, chunks):
        self.taken.set()
        await self.gate.wait()
        return await passing(chunks)


@servers
async def test_markers_behind_a_batch_that_hangs_are_not_committed_before_it(one, topic):
    """Otherwise kill -9 loses the batch."""
    hanging = Hanging()
    await send(one, [good(1)])
    async with running(one, hanging) as worker:
        await hanging.taken.wait()
        await abort_many(one, 3)
        last = await end(one)

        async def read_on() -> bool:
            consumer = worker._app.consumer._thread._consumer
            return consumer._subscription.subscription.assignment.state_value(topic).position == last

        await until(read_on)
        await worker._app.consumer.commit()
        assert await committed(one) == 0
        hanging.gate.set()
        await commits(one, last)


@servers
async def test_workers_that_come_and_go_lose_nothing(settings):
    """Each change takes the partitions away from all workers in the middle of fetches and batches."""
    two = settings.model_copy(update={"partitions": 2, "commit_interval": 60.0})  # only drains commit
    other = two.model_copy(update={"instance": "other"})
    await topics.create(two)
    publishing = asyncio.create_task(publish_for_a_while(two))
    async with running(two):
        await until(lambda: has_passed(two, 200))
        async with running(other):
            await until(lambda: has_passed(two, 800))
        await until(lambda: has_passed(two, 1200))
    async with running(other) as worker:
        sent = await publishing
        await until(lambda: has_passed(two, sent))
        await until(lambda: has_read_all(worker, two))  # also the aborted records behind the last one
    assert {key for key, _ in await passed(two)} == {good(n)[0] for n in range(sent)}
    assert [found.lag for found in await status.stages(two) if found.stage == "embed"] == [0]


@servers
async def test_what_is_done_while_a_worker_stops_is_committed(one, topic):
    """Faust discards the records that it has fetched by then, and seeks back to fetch them again."""
    hanging = Hanging()
    await send(one, [good(1)])
    async with running(one.model_copy(update={"commit_interval": 60.0}), hanging) as worker:
        await hanging.taken.wait()
        stopping = asyncio.create_task(worker.stop())
        await until(lambda: asyncio.sleep(0, not worker._app.consumer.flow_active))
        await worker._app.consumer.perform_seek()  # `Consumer.getmany` does the same
        hanging.gate.set()
        await stopping
    assert await committed(one) == 1


async def publish_for_a_while(settings: Settings) -> int:
    """Publishes 2,000 chunks, one hundred at a time with a transaction marker after each; returns their number."""
    count = 0
    while count < 2000:
        await send(settings, [good(n) for n in range(count, count + 100)])
        count += 100
        await abort_many(settings, 1)
    return count


async def has_read_all(worker: source.Source, settings: Settings) -> bool:
    progress = worker._app.consumer._thread.progress
    async with clients.offsets(settings) as client:
        ends = await client.end_offsets(list(progress))
    return len(progress) == settings.partitions and all(progress[tp].committable == end for tp, end in ends.items())


async def has_passed(settings: Settings, count: int) -> bool:
    return len(await read(settings, topics.source(settings, "expand"))) >= count


@servers
async def test_a_fresh_group_commits_where_nothing_is_left_to_read(one, topic):
    await abort_many(one, 3)
    async with running(one):
        await commits(one, 4)


@servers
async def test_a_large_gap_at_once_after_offset_0_is_passed(one, topic):
    """Faust itself treats the offset 0 as missing, and makes a list of every offset in a gap."""
    await send(one, [good(0)])
    await abort_many(one, 20_000)
    await send(one, [good(1)])
    async with running(one):
        await commits(one, await end(one))
    assert await passed(one) == [(b"c0", 1), (b"c1", 1)]


@servers
async def test_offset_0_survives_compaction_and_the_next_do_not(one):
    """A fresh group, and one that was set back, pass the gap."""
    eager = {"cleanup.policy": "compact", "segment.ms": "200", "min.cleanable.dirty.ratio": "0.0"}
    await make_topic(one, eager | {"max.compaction.lag.ms": "200"})
    await send(one, [good(0)])
    for version in range(1, 5):
        await send(one, [good(1, version)])

    async def compacted() -> bool:
        await send(one, [good(2)])  # whatever is written closes the segment before it
        return [r.offset for r in await read(one, one.topic)][:2] == [0, 4]

    await until(compacted, every=1)
    last = await end(one)
    async with running(one):
        await commits(one, last)
    async with asyncio.timeout(LONGEST):
        while True:
            try:
                await replay.reset(one, "embed", "earliest")
                break
            except Exception:
                await asyncio.sleep(0.5)
    assert await committed(one) == 0
    async with running(one):
        await commits(one, last)


@servers
async def test_a_reindex_gets_past_a_topic_that_ends_with_a_marker(one, topic):
    await send(one, [good(0)])
    await abort_many(one, 1)
    looks: list[tuple[str, int, int]] = []
    async with running(one), asyncio.timeout(LONGEST):
        await reindex._pass_end(one, ["embed"], lambda *look: looks.append(look))
    assert looks[-1] == ("embed", 3, 3)


@servers
async def test_records_that_kafka_deleted_before_they_were_read_are_counted_and_named(one, caplog):
    labels = {"stage": "embed"}
    before = REGISTRY.get_sample_value("stream_records_expired_total", labels) or 0
    topic = TopicPartition(one.topic, 0)
    await make_topic(one, {"cleanup.policy": "delete"})
    await send(one, [good(0), good(1)])
    async with running(one):
        await commits(one, 2)
    await send(one, [good(n) for n in range(2, 6)])
    async with clients.admin(one) as admin:
        await admin.delete_records({topic: RecordsToDelete(6)})
    async with running(one):
        await commits(one, 6)  # also without a record left, or other tools would keep showing a lag
        await send(one, [good(6)])
        await commits(one, 7)
        async with clients.admin(one) as admin:  # records that were read are not counted
            await admin.delete_records({topic: RecordsToDelete(7)})
        await send(one, [good(7)])
        await commits(one, 8)
    assert [key for key, _ in await passed(one)] == [b"c0", b"c1", b"c6", b"c7"]
    assert REGISTRY.get_sample_value("stream_records_expired_total", labels) - before == 4
    (said,) = [r.getMessage() for r in caplog.records if "deleted" in r.getMessage()]
    assert said == f"Kafka has deleted 4 offsets of {one.topic}/0, 2 to 5, before they were read"


@servers
async def test_a_topic_that_was_made_again_is_read_from_its_beginning_and_the_committed_offset_goes_down(one, topic):
    await send(one, [good(n) for n in range(5)])
    async with running(one):
        await commits(one, 5)
        async with clients.admin(one) as admin:
            await admin.delete_topics([one.topic])
            await until(lambda: _gone(admin, one.topic))
        await topics.create(one)
        await send(one, [good(7), good(8)])
        await commits(one, 2)
    assert [key for key, _ in await passed(one)][5:] == [b"c7", b"c8"]


@servers
async def test_a_follower_that_is_behind_does_not_make_a_worker_read_its_partition_again(one, topic):
    """An offset that the leader has and the follower does not have yet is out of the follower's range (KIP-392)."""
    await send(one, [good(n) for n in range(5)])
    async with running(one.model_copy(update={"kafka_rack": "a"})) as worker:
        await commits(one, 5)
        thread = worker._app.consumer._thread
        assert thread._consumer._fetcher._client_rack == "a"
        await thread.call_thread(thread._reset, thread._consumer, {topic: 5})
        await send(one, [good(5)])
        await commits(one, 6)
    assert [key for key, _ in await passed(one)] == [b"c0", b"c1", b"c2", b"c3", b"c4", b"c5"]


async def _gone(admin, topic) -> bool:
    return topic not in await admin.list_topics()


# What may change with a new version of Faust or aiokafka


@servers
async def test_faust_and_aiokafka_are_as_consumer_py_takes_them(one, topic):
    async with running(one) as worker:
        consumer = worker._app.consumer._thread._consumer
        await until(lambda: asyncio.sleep(0, bool(worker._app.consumer._thread.progress)))
        assert consumer._fetcher._isolation_level == 1
        assert consumer._fetcher._default_reset_strategy == 0
        assert faust.types.tuples.ConsumerMessage.__dictoffset__  # a message can carry its record
        state = consumer._subscription.subscription.assignment.state_value(topic)
        assert state.has_valid_position
        await send(one, [good(1)])
        await commits(one, 1)
        assert worker._app.consumer._acked == {}  # Faust's own bookkeeping stays empty
        assert worker._app.consumer._gap == {}
        assert worker._app.consumer._committed_offset[topic] == 1
