"""The batch loop, which loses no chunk. It runs every stage, and only the loop acknowledges records.

Faust delivers records and commits acknowledged offsets; the loop decides when to acknowledge. For each batch:

    1. take what has arrived, up to `batch_size` records and `batch_bytes`;
    2. decode them and pass those that satisfy the contract to the stage, which returns one outcome a record;
    3. publish every output and dead letter, and wait until Kafka acknowledges all of them; but end the process instead
       if nearly all records of a partition are rejected;
    4. acknowledge the batch's offsets.

Step 2 runs for up to `in_flight` batches at once. Steps 3 and 4 run for one batch at a time, oldest first: a chunk's
records stay in order, and no offset is committed before an earlier one. The loop takes a batch when it can start it at
once: a lone record does not wait for others, and under load batches are full.

Delivery is at least once: after a crash Kafka delivers the batches in flight again, and every effect is idempotent. An
exception ends the process before any record of its batch is acknowledged (`Outage` only after `outage_bound` seconds of
retries). If a partition is revoked, its batches that were taken but not started are dropped: Kafka delivers them again.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, NoReturn, TypeVar

from aiokafka.errors import KafkaError
from opentelemetry import trace
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_random_exponential

from stream import metrics, progress
from stream.config import Settings
from stream.errors import Outage, TooManyRejected
from stream.kafka.deadletters import ATTEMPTS_HEADER
from stream.ratelimit import RateLimiter
from stream.records import (
    PUBLISHED_HEADER,
    Decoder,
    Done,
    Outcome,
    Position,
    Record,
    Rejected,
    Tombstone,
    header,
    number,
)
from stream.stages.base import Stage
from stream.worker import traces
from stream.worker.outputs import Outputs
from stream.worker.rejections import Flood, Rejections
from stream.worker.source import Delivery, Source

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

PATIENCE = 120.0  # seconds without progress, added to what the settings allow, after which a worker is unhealthy
MOST_ASSIGNMENTS = 20  # within a minute; two static members with one name fence each other at every heartbeat
LONGEST_PAUSE = 30.0  # seconds between two retries during an outage
CHECK_INTERVAL = 0.5  # seconds
SLOW_PUBLISH = 10.0  # seconds until Kafka acknowledges a batch's outputs, after which a worker is not ready
RESET_ATTEMPTS = 10  # one each `CHECK_INTERVAL`: a rebalance may be in progress
# Fraction of the session timeout, counted from the last acknowledged heartbeat, during which publishing is safe.
LEASE = 0.8
NAMED_REASONS = 3  # of a flood of rejected records
REASON_LENGTH = 200  # characters; a reason may quote the record


@dataclass(frozen=True)
class _Batch:
    deliveries: Sequence[Delivery]
    outcomes: "asyncio.Task[list[tuple[Record, Outcome]]]"
    started: float  # as `time.monotonic`
    began: int  # nanoseconds since 1970
    span: trace.Span


class BatchLoop:
    """Runs one stage on its source. Drains when partitions are revoked and when the worker stops.

    `fail` must end the process. `earlier` returns the records of the newest dead letters.
    """

    def __init__(
        self,
        stage: Stage,
        source: Source,
        outputs: Outputs,
        settings: Settings,
        fail: Callable[[BaseException], NoReturn],
        *,
        earlier: Callable[[], Awaitable[Iterable[Position]]],
    ) -> None:
        self.stage = stage
        self._source = source
        self.settings = settings
        self._decode = Decoder.of(stage.contract, settings)
        self._waiting: dict[int, str] = {}  # the outage that each waiting batch waits for
        self._assignments: deque[float] = deque(maxlen=MOST_ASSIGNMENTS)
        self._last_progress = time.monotonic()
        self._last_check = time.monotonic()
        self._publishing: float | None = None  # start of the publication in progress
        self._outputs = outputs
        self._fail = fail
        self._earlier = earlier
        self._rejections: Rejections | None = None  # None until a record is rejected
        self._limiter = RateLimiter(settings.rate_limit)
        self._room = asyncio.Semaphore(1 if stage.writes_stores else settings.in_flight)
        self._started: asyncio.Queue[_Batch] = asyncio.Queue()
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._taking = True
        self._ending = False
        source.connect(self._take, self._on_assigned, self.drain, self._on_stopping)
        self._finisher = asyncio.create_task(self._finish())
        self._watchdog = asyncio.create_task(self._watch())
        metrics.outage.labels(self.stage.name).set_function(lambda: self._down() is not None)
        metrics.in_flight.labels(self.stage.name).set(0)
        for outcome in ("done", "rejected"):
            metrics.records.labels(self.stage.name, outcome)

    def unhealthy(self) -> str | None:
        """Why the worker needs a restart; None if it does not.

        A batch in progress may wait for `outage_bound` seconds and then for one call; it hangs if it makes no progress
        for longer. Records are read ahead of the loop. If some have arrived long ago and no batch is in progress, then
        the loop does not take them; only a rate limit may delay them that long.
        """
        if self._finisher.done():
            return "the batch loop has ended"
        still = time.monotonic() - self._last_progress
        if self._in_flight:
            if still > self._longest_step:
                return f"a batch has made no progress for {still:.0f} s, the limit is {self._longest_step:g} s"
            return None
        patience = PATIENCE + self.settings.drain_timeout  # other workers drain before Kafka assigns partitions
        if self.settings.rate_limit:
            patience += self.settings.batch_size / self.settings.rate_limit
        if still < patience:
            return None
        if not self._assignments:
            return f"Kafka has assigned nothing for {patience:g} s"
        if self._source.has_more:
            return f"records that were read have not been taken for {patience:g} s"
        return None

    @property
    def _longest_step(self) -> float:
        """The most seconds between two steps of a batch that does not hang: each call of a stage has a timeout."""
        settings = self.settings
        return settings.outage_bound + max(settings.embed_timeout, settings.store_timeout)

    @property
    def assigned(self) -> bool:
        """Whether Kafka has sent an assignment since the start, even one without partitions."""
        return bool(self._assignments)

    def unready(self) -> str | None:
        """Why the worker takes no records now; None if it takes records."""
        if not self._assignments:
            return "Kafka has assigned nothing yet"
        if len(self._assignments) == MOST_ASSIGNMENTS and time.monotonic() - self._assignments[0] < 60:
            return (
                f"Kafka has assigned partitions {MOST_ASSIGNMENTS} times within a minute: "
                f"does another {self.stage.name} worker use the same STREAM_INSTANCE?"
            )
        return self._down()

    def _down(self) -> str | None:
        """The outage that a batch waits for; None if there is none."""
        if self._publishing and (seconds := time.monotonic() - self._publishing) > SLOW_PUBLISH:
            return f"Kafka has not acknowledged the outputs of a batch for {seconds:.0f} s"
        return next(iter(self._waiting.values()), None)

    # Step 1: take

    async def _take(self) -> None:
        try:
            while True:
                await self._room.acquire()
                deliveries = await self._source.take()
                await self._limiter.acquire(len(deliveries))
                self._start(deliveries)
        except Exception as error:
            self._fail(error)
        finally:
            if not self._ending:
                self._fail(Outage("Faust has ended the agent"))

    def _start(self, deliveries: Sequence[Delivery]) -> None:
        current = self._source.current(deliveries) if self._taking else []
        if not current:
            self._room.release()
            return
        began = time.time_ns()
        span = traces.begin(self.stage.name, began)
        with trace.use_span(span):
            work = asyncio.create_task(self._process([delivery.record for delivery in current]))
        self._count(+1)
        self._started.put_nowait(_Batch(current, work, time.monotonic(), began, span))

    # Step 2: process

    async def _process(self, records: list[Record]) -> list[tuple[Record, Outcome]]:
        progress.tell(self._progressed)
        outcomes: dict[int, Outcome] = {}
        work: dict[int, Any] = {}
        for i, record in enumerate(records):
            match self._decode(record):
                case Rejected() as rejected:
                    outcomes[i] = rejected
                case Tombstone() as tombstone if not self.stage.writes_stores:
                    outcomes[i] = Done(tombstone)
                case dict() as chunk if self.stage.writes_stores:
                    work[i] = chunk | {"position": record.position}
                case decoded:
                    work[i] = decoded
        if work:
            items = list(work.values())
            done = await self._until_up(lambda: self.stage.process(items))
            outcomes |= dict(zip(work, done, strict=True))
        return [(record, outcomes[i]) for i, record in enumerate(records)]

    async def _until_up(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """The call's answer; repeats the call after an `Outage`, for at most `outage_bound` seconds."""

        def wait_for(state: RetryCallState) -> None:
            assert state.outcome and state.next_action
            outage = state.outcome.exception()
            assert isinstance(outage, Outage)
            self._waiting[id(call)] = str(outage)
            self._progressed()
            metrics.retries.labels(self.stage.name, outage.cause).inc()
            log.warning("%s; retrying in %.1f s", outage, state.next_action.sleep)

        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(Outage),
                wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE),
                stop=stop_after_delay(self.settings.outage_bound),
                before_sleep=wait_for,
                reraise=True,
            ):
                with attempt:
                    answer = await call()
        finally:
            self._waiting.pop(id(call), None)
        return answer

    # Steps 3 and 4: publish and acknowledge, oldest batch first

    async def _finish(self) -> None:
        try:
            while True:
                batch = await self._started.get()
                outcomes = await batch.outcomes
                await self._end_before_a_flood(outcomes)
                await self._publish(outcomes)
                self._source.acknowledge(batch.deliveries)
                self._room.release()
                self._count(-1)
                self._measure(batch, outcomes)
        except Exception as error:
            self._fail(error)

    async def _end_before_a_flood(self, outcomes: list[tuple[Record, Outcome]]) -> None:
        """Ends the process before it publishes a batch with which nearly all records of a partition are rejected.

        Neither outputs nor dead letters of that batch are published, and it is not acknowledged: Kafka delivers it
        again. So nothing is lost, the order stays, and a flood leaves at most `reject_share` of `reject_count` dead
        letters for each partition, however often the worker is started again.

        A redriven copy that is rejected again does not count: there are only as many as a person has redriven.
        """
        settings = self.settings
        rejected = {
            record.position: outcome
            for record, outcome in outcomes
            if isinstance(outcome, Rejected) and not number(header(record.headers, ATTEMPTS_HEADER))
        }
        if not rejected or settings.reject_share == 1:
            return
        if self._rejections is None:
            known = await self._until_up(self._earlier)
            self._rejections = Rejections(settings.reject_share, settings.reject_count, known)
        if flood := self._rejections.flood(rejected):
            await self._source.commit()  # or the letters before this batch would be written again at each start
            raise TooManyRejected(self._said(flood, rejected))

    def _said(self, flood: Flood, rejected: dict[Position, Rejected]) -> str:
        """One sentence about a flood, with the first of each reason in the batch."""
        topic, partition, _ = astuple(flood.batch[0])
        reasons: dict[str, str] = {}
        for position in flood.batch:
            one = rejected[position]
            where = f"{topic}/{partition}@{position.offset}"
            reasons.setdefault(one.reason, f"{one.reason} ({where}): {one.detail[:REASON_LENGTH]}")
        return (
            f"{flood.rejected:,} of {self.settings.reject_count:,} consecutive records of {topic}/{partition} "
            f"are rejected: {'; '.join([*reasons.values()][:NAMED_REASONS])}; correct their producer and see "
            f"`stream dlq ls --stage {self.stage.name}`, or set STREAM_REJECT_SHARE=1 to make a dead letter of each"
        )

    async def _publish(self, outcomes: list[tuple[Record, Outcome]]) -> None:
        self._end_if_session_lost()
        self._publishing = time.monotonic()
        self._progressed()
        try:
            async with asyncio.timeout(self.settings.outage_bound):
                await self._outputs.publish(outcomes)
        except (KafkaError, TimeoutError) as error:
            raise Outage(f"Kafka did not acknowledge the outputs of a batch: {error!r}") from error
        finally:
            self._publishing = None

    # Draining

    async def drain(self) -> None:
        """Waits until no batch is in flight; ends the process if that takes longer than `drain_timeout` seconds.

        The process must end: if it published after its partition has moved, its record could follow a newer record of
        the new owner. Then a compacted topic would keep the older record.
        """
        self._taking = False
        try:
            async with asyncio.timeout(self.settings.drain_timeout):
                await self._idle.wait()
        except TimeoutError:
            seconds = self.settings.drain_timeout
            self._fail(
                Outage(f"{self._in_flight} batches were not done within {seconds:g} s; Kafka delivers them again")
            )

    async def read_again(self) -> None:
        """Resets the group's offsets of this worker's partitions, because the topic was deleted and created again.

        Kafka removes a group's offsets when a topic is deleted, but a batch in progress may have been committed since.
        This worker acknowledges nothing more; the process must end.
        """
        self._taking = False
        self._finisher.cancel()
        for _ in range(RESET_ATTEMPTS):
            if await self._source.commit_the_beginning():
                return
            await asyncio.sleep(CHECK_INTERVAL)

    async def _watch(self) -> None:
        while True:
            self._end_if_session_lost()
            self._end_if_hung()
            self._last_check = time.monotonic()
            await asyncio.sleep(CHECK_INTERVAL)

    def _end_if_session_lost(self) -> None:
        """Ends a process that Kafka has removed from the group, or may soon remove, because heartbeats are missing.

        Otherwise its outputs could follow newer records of the partitions' new owner, as after a failed drain. A frozen
        process detects this by its own clock, a process without a network by its unanswered heartbeats.
        """
        now, session = time.monotonic(), self.settings.session_timeout
        if now - self._last_check > session:
            seconds = now - self._last_check
            self._fail(Outage(f"this process did not run for {seconds:.0f} s, longer than STREAM_SESSION_TIMEOUT"))
        if self._in_flight:
            seconds = now - max(self._source.heartbeat_answered, self._assignments[-1])
            if seconds > LEASE * session:
                self._fail(
                    Outage(
                        f"Kafka has not answered a heartbeat for {seconds:.0f} s "
                        "and may have removed this worker from its group"
                    )
                )

    def _end_if_hung(self) -> None:
        """Ends a process that hangs, unless a probe of /healthz has ended it before."""
        still = time.monotonic() - self._last_progress
        if self._in_flight and still > self._longest_step + PATIENCE:
            self._fail(Outage(f"a batch has made no progress for {still:.0f} s; Kafka delivers it again"))

    def _on_assigned(self, partitions: int) -> None:
        log.info("assigned %d partitions", partitions)
        self._assignments.append(time.monotonic())
        self._last_progress = time.monotonic()
        self._taking = True
        self._rejections = None  # other workers may have rejected records of these partitions

    async def _on_stopping(self) -> None:
        self._ending = True
        await self.drain()

    # Counting

    def _progressed(self) -> None:
        self._last_progress = time.monotonic()

    def _count(self, change: int) -> None:
        self._in_flight += change
        self._progressed()
        metrics.in_flight.labels(self.stage.name).set(self._in_flight)
        if self._in_flight:
            self._idle.clear()
        else:
            self._idle.set()

    def _measure(self, batch: _Batch, outcomes: list[tuple[Record, Outcome]]) -> None:
        stage = self.stage.name
        seconds = time.monotonic() - batch.started
        left: dict[str, list[Record]] = {"done": [], "rejected": []}
        for record, outcome in outcomes:
            left["rejected" if isinstance(outcome, Rejected) else "done"].append(record)
        metrics.batch_size.labels(stage).observe(len(outcomes))
        metrics.batch_seconds.labels(stage).observe(seconds)
        for how, records in left.items():
            metrics.records.labels(stage, how).inc(len(records))
            metrics.record_bytes.labels(stage, how).inc(sum(record.size for record in records))
        if self.stage.writes_stores and self.settings.generation is None:
            for record in left["done"]:
                metrics.end_to_end_seconds.observe(age(record))
        with trace.use_span(batch.span):
            log.info("batch of %d in %.3f s, %d rejected", len(outcomes), seconds, len(left["rejected"]))
        traces.end(batch.span, stage, batch.began, outcomes)


def age(record: Record) -> float:
    """Seconds since the chunk was published; 0 if the producer's clock is ahead."""
    published = number(header(record.headers, PUBLISHED_HEADER))
    return max(time.time() - (record.timestamp if published is None else published) / 1000, 0)
