"""If these fail, a batch is larger than it may be, or a record is left out of it."""

import asyncio
import json
import sys
import time

import aiohttp
import pytest
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from ports import free_ports
from support import chunk, until

from stream import progress
from stream.config import Settings
from stream.errors import Outage, TooManyRejected
from stream.health import web
from stream.kafka.deadletters import ATTEMPTS_HEADER, LEFT_OUT_HEADER
from stream.records import Done, Position, Record, header
from stream.stages.base import Stage
from stream.worker import loop as batch_loop
from stream.worker.loop import BatchLoop
from stream.worker.outputs import Outputs
from stream.worker.source import Delivery

# The loop, with fakes for its source and its producers that only record their calls.


class Ended(BaseException):
    """Stands for the end of the process."""


class Batch(list):
    def append(self, *, timestamp, key, value, headers):
        super().append((key, value, headers))
        return len(self)


class Producer:
    def __init__(self):
        self.sent, self.limit, self.full = [], None, 0

    async def partitions_for(self, topic):
        return {0}

    def create_batch(self):
        return Batch()

    async def send_batch(self, batch, topic, *, partition):
        if self.full:
            self.full -= 1
            raise KafkaTimeoutError
        self.sent += [(topic, *one) for one in batch]
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def send(self, topic, *, value, key, headers):
        batch = self.create_batch()
        batch.append(timestamp=None, key=key, value=value, headers=headers)
        return await self.send_batch(batch, topic, partition=0)

    async def send_and_wait(self, topic, *, value, key, headers):
        if self.limit is not None and len(value or b"") + sum(len(v) for _, v in headers) > self.limit:
            raise MessageSizeTooLargeError
        await self.send(topic, value=value, key=key, headers=headers)


CURRENT = 1  # the generation of the group


class Source:
    """A fake source that keeps the offsets in the order of their acknowledgement."""

    def __init__(self):
        self.acknowledged, self.committed, self.heartbeat_answered, self.stuck = [], [], 0.0, False

    def connect(self, *listeners):
        pass

    def current(self, deliveries):
        return [delivery for delivery in deliveries if delivery.generation == CURRENT]

    @property
    def has_more(self):
        return self.stuck

    def acknowledge(self, deliveries):
        self.acknowledged += [delivery.record.offset for delivery in deliveries]

    async def commit(self):
        self.committed = list(self.acknowledged)


class Run:
    """A loop on one stage; `take` hands it a batch."""

    def __init__(self, process, letters=(), **settings):
        """`letters` are the records that have a dead letter; an exception among them is raised once instead."""
        self.failed, self.letters, self.producer, self.source = [], Producer(), Producer(), Source()
        stage, told = Stage("embed", "chunk", process), Settings(_env_file=None, **settings)
        outputs = Outputs("embed", self.producer, self.letters, told)
        self.earlier = list(letters)
        self.loop = BatchLoop(stage, self.source, outputs, told, self.fail, earlier=self.read_letters)
        self.loop._assignments.append(time.monotonic())
        for task in (self.loop._finisher, self.loop._watchdog):
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # `failed` has what matters

    @property
    def acknowledged(self):
        return self.source.acknowledged

    async def read_letters(self):
        if self.earlier and isinstance(self.earlier[0], Exception):
            raise self.earlier.pop(0)
        return self.earlier

    def fail(self, error):
        self.failed.append(error)
        raise Ended

    def event(self, offset, value=None, current=True, headers=()):
        key = f"c{offset}"
        data = json.dumps(chunk(key)).encode() if value is None else value
        record = Record("chunks", 0, offset, key.encode(), data, 1000, tuple(headers))
        return Delivery(record, None, CURRENT if current else CURRENT - 1)

    async def take(self, *events):
        await self.loop._room.acquire()
        self.loop._start(events)

    async def acknowledges(self, *offsets):
        async def done():
            return self.acknowledged == list(offsets)

        await until(done, every=0.01)


async def test_a_stage_that_writes_stores_gets_each_chunk_with_the_place_of_its_record():
    """Else nobody can tell from which record a stored chunk comes."""
    got = []

    async def process(chunks):
        got.extend(chunk.get("position") for chunk in chunks)
        return [Done()] * len(chunks)

    for writes_stores in (True, False):
        run = Run(process)
        run.loop.stage = Stage("embed", "chunk", process, writes_stores=writes_stores)
        await run.take(run.event(7), run.event(8))
        await run.acknowledges(7, 8)
    assert got == [Position("chunks", 0, 7), Position("chunks", 0, 8), None, None]


async def test_a_batch_that_is_done_first_waits_for_those_ahead_of_it():
    gates = {"c1": asyncio.Event(), "c2": asyncio.Event()}

    async def process(chunks):
        await gates[chunks[0]["chunk_id"]].wait()
        return [Done(dict(c)) for c in chunks]

    run = Run(process)
    await run.take(run.event(1))
    await run.take(run.event(2))
    gates["c2"].set()
    second = run.loop._started
    await until(lambda: asyncio.sleep(0, second.qsize() <= 1), every=0.01)
    assert (run.acknowledged, run.producer.sent) == ([], [])
    gates["c1"].set()
    await run.acknowledges(1, 2)
    assert [key for _, key, *_ in run.producer.sent] == [b"c1", b"c2"]


async def test_an_outage_is_retried_says_what_it_waits_for_and_ends_the_process_at_its_bound(monkeypatch):
    seen = []

    async def down(chunks):
        seen.append(run.loop.unready())
        raise Outage("the model is away")

    run = Run(down, outage_bound=0.5)
    await run.take(run.event(1))
    with pytest.raises(Ended):
        await run.loop._finisher
    assert str(run.failed[0]) == "the model is away"
    assert (seen[0], seen[-1]) == (None, "the model is away")
    assert (run.acknowledged, run.letters.sent) == ([], [])


async def test_an_outage_that_ends_costs_nothing():
    answers = [Outage("away"), Outage("away"), None]

    async def process(chunks):
        if error := answers.pop(0):
            raise error
        return [Done(dict(c)) for c in chunks]

    run = Run(process)
    await run.take(run.event(1), run.event(2))
    await run.acknowledges(1, 2)
    assert run.loop._waiting == {}


async def everything(chunks):
    return [Done(dict(c)) for c in chunks]


async def test_records_of_a_generation_that_has_passed_are_left_to_come_again():
    run = Run(everything)
    await run.take(run.event(1, current=False), run.event(2))
    await run.acknowledges(2)


async def test_nothing_is_started_after_a_drain_and_what_is_never_done_ends_the_process():
    run = Run(lambda chunks: asyncio.Event().wait(), drain_timeout=0.1)
    await run.loop.drain()
    await run.take(run.event(1))
    assert run.loop._in_flight == 0
    run.loop._taking = True
    await run.take(run.event(2))
    with pytest.raises(Ended):
        await run.loop.drain()


def stand_still(run):
    run.loop._last_check -= 7


def be_cut_off(run):
    run.loop._assignments[-1] -= 5


@pytest.mark.parametrize(
    ("happens", "said"), [(stand_still, "did not run for 7 s"), (be_cut_off, "not answered a heartbeat for 5 s")]
)
async def test_a_process_that_kafka_may_have_given_up_publishes_nothing(happens, said):
    """Other workers may own its partitions: an output that it publishes now could follow a newer one."""
    gate = asyncio.Event()

    async def process(chunks):
        await gate.wait()
        return await everything(chunks)

    run = Run(process, session_timeout=6)
    await run.take(run.event(1))
    happens(run)
    gate.set()
    with pytest.raises(Ended):
        await run.loop._finisher
    assert said in str(run.failed[0])
    assert (run.producer.sent, run.acknowledged) == ([], [])


async def test_a_heartbeat_that_is_answered_lets_the_process_go_on():
    run = Run(everything, session_timeout=6)
    be_cut_off(run)
    run.source.heartbeat_answered = time.monotonic()
    await run.take(run.event(1))
    await run.acknowledges(1)


@pytest.mark.parametrize("own", [b"kept", b"x" * 2000])
async def test_what_kafka_takes_no_second_time_leaves_a_dead_letter_without_it(own):
    """Nor the record's own headers if they alone are too large. Otherwise the worker ends here after every restart."""
    run = Run(everything)
    run.letters.limit = 1000
    await run.take(run.event(1, value=b"not json" + b" " * 992, headers=[("own", own)]))
    await run.acknowledges(1)
    ((_, key, value, headers),) = run.letters.sent
    assert (key, value, header(headers, LEFT_OUT_HEADER)) == (b"c1", None, b"1000")
    assert header(headers, "own") == (own if own == b"kept" else None)
    assert header(headers, "dlq.reason") == b"not-json"


async def test_a_dead_letter_that_kafka_does_not_take_at_all_ends_the_process_with_nothing_acknowledged():
    run = Run(everything)
    run.letters.limit = 0
    await run.take(run.event(1, value=b"not json"))
    with pytest.raises(Ended):
        await run.loop._finisher
    assert isinstance(run.failed[0], Outage)
    assert run.acknowledged == []


@pytest.mark.parametrize("headers", [[("字" * 400_000, None)], [("h", None)] * 500_000, [("h", b"x" * 2**20)]])
async def test_headers_count_when_an_output_is_too_large(headers):
    """Otherwise Kafka rejects the output, and the worker ends here after every restart."""
    run = Run(everything, max_message_bytes=2**20)
    await run.take(run.event(1, headers=headers))
    await run.acknowledges(1)
    assert run.producer.sent == []
    ((_, _, _, found),) = run.letters.sent
    assert header(found, "dlq.reason") == b"too-large"


async def test_outputs_and_letters_that_kafka_has_no_room_for_are_sent_again_in_order():
    run = Run(everything)
    run.producer.full = run.letters.full = 3
    await run.take(run.event(1), run.event(2, value=b"not json"), run.event(3))
    await run.acknowledges(1, 2, 3)
    assert [key for _, key, *_ in run.producer.sent] == [b"c1", b"c3"]
    assert [key for _, key, *_ in run.letters.sent] == [b"c2"]


async def test_a_worker_whose_outputs_kafka_does_not_take_says_so(monkeypatch):
    monkeypatch.setattr(batch_loop, "SLOW_PUBLISH", 0)
    run = Run(everything)
    assert run.loop.unready() is None
    taken = asyncio.Event()

    async def send(*_, **__):
        await taken.wait()
        return asyncio.sleep(0)

    run.producer.send_batch = send
    await run.take(run.event(1))
    await until(lambda: asyncio.sleep(0, "Kafka has not acknowledged" in (run.loop.unready() or "")), every=0.01)
    taken.set()
    await run.acknowledges(1)
    assert run.loop.unready() is None


async def test_when_kafka_never_has_room_the_process_ends_with_nothing_acknowledged():
    run = Run(everything, outage_bound=0.1)
    run.producer.full = sys.maxsize
    await run.take(run.event(1))
    with pytest.raises(Ended):
        await run.loop._finisher
    assert isinstance(run.failed[0], Outage)
    assert run.acknowledged == []


async def test_records_that_were_read_but_never_reach_the_loop_are_noticed(monkeypatch):
    monkeypatch.setattr(batch_loop, "PATIENCE", -Settings(_env_file=None).drain_timeout)
    run = Run(everything)
    assert run.loop.unhealthy() is None
    run.source.stuck = True
    assert "have not been taken" in run.loop.unhealthy()


# Nearly all records are rejected

FEW = {"reject_share": 0.5, "reject_count": 10}


def bad(run, *offsets, **more):
    return [run.event(offset, value=b"not json", **more) for offset in offsets]


async def test_the_batch_that_completes_a_flood_is_not_published_and_those_before_it_are_committed():
    """Otherwise its records are lost, or their letters are written again at each start."""
    run = Run(everything, **FEW)
    await run.take(run.event(0), *bad(run, 1, 2, 3))
    await run.acknowledges(0, 1, 2, 3)
    await run.take(run.event(4), *bad(run, 5, 6), run.event(7, value=b"[]"))
    with pytest.raises(Ended):
        await run.loop._finisher
    assert len(run.failed) == 1
    assert isinstance(run.failed[0], TooManyRejected)
    said = str(run.failed[0])
    assert said.startswith("6 of 10 consecutive records of chunks/0 are rejected: not-json (chunks/0@5): ")
    assert "schema (chunks/0@7): " in said
    assert [key for _, key, *_ in run.letters.sent] == [b"c1", b"c2", b"c3"]
    assert [key for _, key, *_ in run.producer.sent] == [b"c0"]
    assert run.acknowledged == run.source.committed == [0, 1, 2, 3]


async def test_a_worker_that_is_started_again_in_a_flood_writes_no_more_letters():
    """Otherwise a supervisor that restarts it makes a dead letter of every record in the end."""
    run = Run(everything, letters=[Position("chunks", 0, offset) for offset in range(5)], **FEW)
    await run.take(*bad(run, 5))
    with pytest.raises(Ended):
        await run.loop._finisher
    assert (run.letters.sent, run.acknowledged) == ([], [])


async def test_a_flood_that_has_ended_does_not_stop_a_worker():
    run = Run(everything, letters=[Position("chunks", 0, offset) for offset in range(5)], **FEW)
    await run.take(*(run.event(offset) for offset in range(5, 13)), *bad(run, 13))
    await run.acknowledges(*range(5, 14))


async def test_letters_of_another_worker_count_after_its_partitions_have_moved():
    run = Run(everything, **FEW)
    await run.take(*bad(run, 0))
    await run.acknowledges(0)
    run.earlier = [Position("chunks", 0, offset) for offset in range(1, 6)]
    run.loop._on_assigned(1)
    await run.take(*bad(run, 6))
    with pytest.raises(Ended):
        await run.loop._finisher


async def test_a_redrive_of_records_that_are_still_bad_does_not_stop_a_worker():
    run = Run(everything, **FEW)
    await run.take(*bad(run, *range(20), headers=[(ATTEMPTS_HEADER, b"1")]))
    await run.acknowledges(*range(20))
    assert len(run.letters.sent) == 20


async def test_a_share_of_one_makes_a_dead_letter_of_every_record():
    run = Run(everything, letters=[AssertionError("nobody needs the letters")], reject_share=1, reject_count=10)
    await run.take(*bad(run, *range(30)))
    await run.acknowledges(*range(30))


async def test_an_outage_of_kafka_while_the_letters_are_read_is_waited_for():
    run = Run(everything, letters=[Outage("Kafka is away")], **FEW)
    await run.take(*bad(run, 0))
    await run.acknowledges(0)


# A batch that hangs: the tests set the loop's last progress back in time.


def nothing_happened_for(run, seconds):
    run.loop._last_progress -= seconds


async def never(chunks):
    await asyncio.Event().wait()


LIMITS = {"outage_bound": 100, "embed_timeout": 30, "store_timeout": 40}


async def test_a_process_that_never_returns_is_unhealthy_after_the_longest_outage_and_call_and_not_before():
    run = Run(never, **LIMITS)
    await run.take(run.event(1))
    (port,) = free_ports(1)
    async with web.serve("127.0.0.1", port, run.loop.unhealthy, run.loop.unready), aiohttp.ClientSession() as http:

        async def healthz():
            async with http.get(f"http://127.0.0.1:{port}/healthz") as answer:
                return answer.status, await answer.text()

        nothing_happened_for(run, 100 + 40 - 20)  # this machine may be slow
        assert await healthz() == (200, "ok\n")
        nothing_happened_for(run, 25)
        status, said = await healthz()
        assert (status, "has made no progress for" in said) == (503, True)


async def test_a_worker_that_hangs_ends_by_itself_where_nobody_asks_for_its_health():
    run = Run(never, **LIMITS)
    await run.take(run.event(1))
    nothing_happened_for(run, 100 + 40 + batch_loop.PATIENCE + 1)
    with pytest.raises(Ended):
        await run.loop._watchdog
    assert isinstance(run.failed[0], Outage)
    assert run.acknowledged == []


async def test_a_batch_that_takes_long_is_healthy_while_its_calls_return():
    """For example one text after the other on a slow model server, or windows of long texts on a CPU."""
    steps: asyncio.Queue[None] = asyncio.Queue()

    async def process(chunks):
        for _ in range(3):
            await steps.get()
            await asyncio.to_thread(progress.made)
            steps.task_done()
        return await everything(chunks)

    run = Run(process, **LIMITS)
    await run.take(run.event(1))
    for _ in range(3):
        nothing_happened_for(run, 141)
        assert run.loop.unhealthy() is not None
        steps.put_nowait(None)
        await steps.join()
        assert run.loop.unhealthy() is None
    await run.acknowledges(1)


async def test_what_others_are_asked_meanwhile_does_not_make_a_batch_look_alive():
    """A worker checks its servers every five seconds, also while a batch hangs."""
    run = Run(never, **LIMITS)
    await run.take(run.event(1))
    nothing_happened_for(run, 141)
    progress.made()
    assert run.loop.unhealthy() is not None


async def test_an_outage_that_is_waited_for_is_no_hang():
    tries = asyncio.Queue()

    async def down(chunks):
        tries.put_nowait(None)
        raise Outage("away")

    run = Run(down, **LIMITS)
    await run.take(run.event(1))
    await tries.get()
    nothing_happened_for(run, 141)
    await tries.get()
    await until(lambda: asyncio.sleep(0, run.loop.unhealthy() is None), every=0.01)


async def test_a_rate_limit_that_holds_a_batch_for_minutes_is_no_hang():
    run = Run(everything, rate_limit=0.5, batch_size=200)
    run.source.stuck = True
    nothing_happened_for(run, batch_loop.PATIENCE + run.loop.settings.drain_timeout + 200 / 0.5 - 20)
    assert run.loop.unhealthy() is None
    nothing_happened_for(run, 21)
    assert "have not been taken" in run.loop.unhealthy()


async def test_a_worker_waits_for_its_partitions_as_long_as_another_may_drain():
    run = Run(everything, drain_timeout=600)
    run.loop._assignments.clear()
    nothing_happened_for(run, 600)
    assert run.loop.unhealthy() is None
    nothing_happened_for(run, batch_loop.PATIENCE)
    assert "assigned nothing" in run.loop.unhealthy()


async def test_a_worker_that_is_assigned_its_partitions_again_and_again_is_not_ready():
    run = Run(everything)
    for _ in range(batch_loop.MOST_ASSIGNMENTS - 1):
        assert run.loop.unready() is None
        run.loop._on_assigned(1)
    assert "STREAM_INSTANCE" in run.loop.unready()
