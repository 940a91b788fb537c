"""Faust's consumer, changed to deliver whole fetches and to commit by position. Uses private interfaces.

Faust passes each record through a conductor, a channel and a stream, which takes longer than all else that a stage does
beside its model. This consumer delivers all records of a fetch at once.

Faust keeps a list of acknowledged offsets for each partition, looks for gaps in it, and commits the end of the first
contiguous run. This module uses an `OffsetTracker` for each partition instead. It holds the fetched records that are
not acknowledged, oldest first, and the position after the last fetched record. The committed offset is the offset of
the oldest of these records, or the position if there are none. Therefore:

- A commit never passes a record that is not acknowledged. If a record is dropped between the fetch and the batch loop,
  it stays the oldest one until the partition is assigned again and Kafka delivers the record again.
- Transaction markers, aborted records and offsets that compaction has removed count as done when all records before
  them are done. No tool shows a remaining lag for them.
- A gap of any size costs nothing. A committed offset may decrease when a topic was deleted and created again.

The consumer reads only committed records (`isolation.level=read_committed`, KIP-98). It starts a partition at the
group's committed offset, or at the oldest record if there is none. If Kafka has deleted the next offset, the consumer
logs a warning and continues at the oldest record.

The private names used here, by upstream file; `tests/worker/test_upstream.py` fails if one of them changes:

- faust/transport/drivers/aiokafka.py: `AIOKafkaConsumerThread._create_worker_consumer`, `._fetch_records`,
  `._ensure_consumer`; `Consumer._new_consumer_thread`, `.verify_event_path`
- faust/transport/consumer.py: `Consumer._drain_messages`, `._wait_next_records`, `._buffered_partitions`, `.scheduler`,
  `.suspend_flow`, `.flow_active`, `.consumer_stopped_errors`, `._filter_tps_with_pending_acks`, `._commit`,
  `._new_offset`, `._should_commit`, `._committed_offset`, `._read_offset`
- aiokafka/consumer/consumer.py: `AIOKafkaConsumer._isolation_level`, `._auto_offset_reset`, `._client_rack`,
  `._subscription`
- aiokafka/consumer/subscription_state.py: `Subscription.assignment`, `Assignment.state_value`,
  `TopicPartitionState.has_valid_position`, `.position`
- aiokafka/consumer/group_coordinator.py: `GroupCoordinator._do_heartbeat`
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from threading import Lock
from typing import Any

import faust
from aiokafka import TopicPartition
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from faust.transport.drivers import aiokafka as driver

from stream.kafka import record_batches

record_batches.read_every_batch()

log = logging.getLogger(__name__)

FETCH_SECONDS = 1.0  # until a fetch without records ends
Deliver = Callable[[Sequence[Any], int], Awaitable[None]]  # gets aiokafka's records and the group's generation


class OffsetTracker:
    """The position of an assigned partition, and its fetched records that are not acknowledged.

    Faust's consumer thread adds records; the main thread acknowledges them in the same order.
    """

    def __init__(self, position: int) -> None:
        self._lock = Lock()
        self._position = position
        self._waiting: deque[Any] = deque()

    def read(self, records: Iterable[Any], position: int) -> None:
        """Adds the records of one fetch and sets the offset of the next fetch."""
        with self._lock:
            self._waiting.extend(records)
            self._position = position

    def acknowledge(self, record: Any) -> None:
        """Removes the oldest record; ignores any other, for instance a record of an earlier assignment."""
        with self._lock:
            if self._waiting and self._waiting[0] is record:
                self._waiting.popleft()

    @property
    def committable(self) -> int:
        """All records before this offset are done."""
        with self._lock:
            return self._waiting[0].offset if self._waiting else self._position


class _Thread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust's consumer thread. Other threads use only `progress`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.progress: dict[TopicPartition, OffsetTracker] = {}
        self._assignment: Any = None  # the assignment that `progress` describes

    def _create_worker_consumer(self, transport: "Transport") -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"  # Faust sets this only for its own transactions
        consumer._auto_offset_reset = "none"  # an automatic reset would be silent; `_reset` logs it
        consumer._client_rack = self.transport.rack
        return consumer

    async def seek_to_committed(self) -> Mapping[TopicPartition, int]:
        """Seeks each assigned partition to its committed offset, or to its oldest record if there is none."""
        return await self.call_thread(self._seek_to_committed)  # type: ignore[no-any-return]

    async def _seek_to_committed(self) -> Mapping[TopicPartition, int]:
        consumer = self._ensure_consumer()
        assignment = consumer._subscription.subscription.assignment
        committed = {tp: await consumer.committed(tp) for tp in assignment.tps}
        fresh = [tp for tp, offset in committed.items() if offset is None]
        starts = committed | (await consumer.beginning_offsets(fresh) if fresh else {})
        if consumer._subscription.subscription.assignment is not assignment:
            return {}  # the assignment has changed, and Faust will call this again
        for tp, offset in starts.items():
            consumer.seek(tp, offset)
        self.progress = {tp: OffsetTracker(offset) for tp, offset in starts.items()}
        self._assignment = assignment
        return starts

    async def _fetch_records(self, consumer: Any, *args: Any, **kwargs: Any) -> Mapping[TopicPartition, list[Any]]:
        try:
            records: Mapping[TopicPartition, list[Any]] = await super()._fetch_records(consumer, *args, **kwargs)
        except NoOffsetForPartitionError:  # before `_seek_to_committed`
            return {}
        except OffsetOutOfRangeError as error:
            await self._reset(consumer, *error.args)
            return {}
        except Exception:
            self.progress = {}  # fetched records may be lost: commit nothing after them
            raise
        # No await since the positions changed: a commit sees both the new records and the new positions, or neither.
        assignment = consumer._subscription.subscription.assignment
        if assignment is self._assignment:
            for tp, progress in list(self.progress.items()):  # the main thread may remove some
                state = assignment.state_value(tp)
                if state.has_valid_position:
                    progress.read(records.get(tp, ()), state.position)
        return records

    async def _reset(self, consumer: Any, missing: Mapping[TopicPartition, int]) -> None:
        """Continues at the oldest record of partitions whose next offset does not exist."""
        try:
            starts = await consumer.beginning_offsets(list(missing))
            ends = await consumer.end_offsets(list(missing)) if self.transport.rack else {}
        except KafkaError as error:
            log.warning("cannot read the first offsets of %s from Kafka: %r", [*missing], error)
            return  # the next fetch tries again
        assignment = consumer._subscription.subscription.assignment
        for tp, offset in missing.items():
            progress, start = self.progress.get(tp), starts[tp]
            if assignment is not self._assignment or progress is None or assignment.state_value(tp).position != offset:
                continue
            if start <= offset <= ends.get(tp, -1):
                continue  # a follower that is behind has refused it (KIP-392); the next fetch asks the leader
            consumer.seek(tp, start)
            if start > offset:
                lost = start - offset
                log.warning(
                    "Kafka has deleted %d offsets of %s/%d, %d to %d, before they were read",
                    *(lost, tp.topic, tp.partition, offset, start - 1),
                )
                self.transport.expired(lost)
                progress.read((), start)
            else:
                log.warning(
                    "%s/%d ends before offset %d, the position of this group: the topic was created again, or Kafka "
                    "has lost records; reading again from offset %d",
                    *(tp.topic, tp.partition, offset, start),
                )
                self.progress[tp] = OffsetTracker(start)
                self.consumer._read_offset[tp] = None  # or Faust drops the records before it


class Consumer(driver.Consumer):  # type: ignore[misc]
    """Faust's consumer, which commits the offset of each `OffsetTracker`."""

    _thread: _Thread
    _may_seek = False

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def _drain_messages(self, fetcher: Any) -> None:
        """Fetches and delivers until the worker stops. Faust cancels it in a rebalance and calls it again after it."""
        try:
            while not (self.should_stop or fetcher.should_stop):
                await asyncio.sleep(0)  # a fetch may return at once, again and again
                records, active = await self._wait_next_records(FETCH_SECONDS)
                if not records or self.should_stop:
                    continue
                if not self.flow_active:  # a rebalance has begun since the fetch
                    await self.perform_seek()
                    continue
                fetched = self._fresh(records, active)
                delivering = self.transport.deliver(fetched, self.app.consumer_generation_id)
                await self.wait_first(delivering, self.suspend_flow.wait())
        except (asyncio.CancelledError, *self.consumer_stopped_errors):
            if not self.app.should_stop:
                raise

    def _fresh(self, records: Mapping[Any, list[Any]], active: set[Any]) -> list[Any]:
        """The records of active partitions from the offset on that was sought, the partitions by turns."""
        fresh = []
        for tp, record in self.scheduler.iterate(records):
            start = self._read_offset[tp]
            if (tp in active or tp in self._buffered_partitions) and (start is None or record.offset >= start):
                self._read_offset[tp] = record.offset
                fresh.append(record)
        return fresh

    def acknowledge(self, records: Iterable[Any]) -> None:
        """Marks records of aiokafka as done, in the order of their partitions."""
        for record in records:
            if progress := self._thread.progress.get(TopicPartition(record.topic, record.partition)):
                progress.acknowledge(record)

    def verify_event_path(self, now: float, tp: Any) -> None:
        """Faust would warn of a stream without records. The batch loop itself watches its progress."""

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> list[TopicPartition]:
        return list(self._thread.progress)

    def _new_offset(self, tp: TopicPartition) -> int | None:
        progress = self._thread.progress.get(tp)
        return progress.committable if progress else None

    def _should_commit(self, tp: TopicPartition, offset: int) -> bool:
        return bool(offset != self._committed_offset[tp])

    async def commit_the_beginning(self) -> bool:
        """Commits offset 0 of all assigned partitions, and nothing later; returns whether Kafka accepted the commit."""
        self._thread.progress = {}
        assigned = self.assignment()
        return bool(assigned) and bool(await self._commit(dict.fromkeys(assigned, 0)))

    async def perform_seek(self) -> None:
        """Seeks each partition of a new assignment.

        Faust also calls this when it discards a fetch because partitions are being revoked or the worker stops. Then
        batches in flight are still to be committed, so their trackers must stay.
        """
        if self._may_seek and not self.app.should_stop:
            await super().perform_seek()

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Drains the loop, which commits, then removes the trackers of the partitions."""
        self._may_seek = False
        await super().on_partitions_revoked(revoked)
        for tp in revoked:
            self._thread.progress.pop(tp, None)

    async def on_partitions_assigned(self, assigned: Any, generation_id: int = 0) -> None:
        """Allows the seek of the new partitions."""
        self._may_seek = True
        await super().on_partitions_assigned(assigned, generation_id)


class Transport(driver.Transport):  # type: ignore[misc]
    """Makes an app use this module's consumer.

    `deliver` gets the records of each fetch, `expired` the number of offsets that were deleted before they were read.
    With a `rack` records are read from a replica in that rack, if the brokers name one (KIP-392).
    """

    Consumer = Consumer

    def __init__(
        self, app: faust.App, deliver: Deliver, expired: Callable[[int], object], rack: str | None = None
    ) -> None:
        super().__init__(app.conf.broker_consumer, app)
        self.deliver = deliver
        self.expired = expired
        self.rack = rack


class Heartbeats:
    """The last acknowledged heartbeat of this process, which has one consumer in a group."""

    answered = 0.0  # time.monotonic() at which the newest acknowledged heartbeat was sent


_do_heartbeat = GroupCoordinator._do_heartbeat


async def _note_heartbeat(coordinator: GroupCoordinator) -> bool:
    sent = time.monotonic()
    if success := await _do_heartbeat(coordinator):
        Heartbeats.answered = sent
    return bool(success)


GroupCoordinator._do_heartbeat = _note_heartbeat
_Thread.logger = Consumer.logger = driver.logger  # these classes log under Faust's logger, like its services
