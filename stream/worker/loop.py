"""The batch loop: where no chunk is lost. Every stage runs on it, and only here is Kafka told that a record is done.

Faust hands out records and commits what is acknowledged; the loop decides when that is. For each batch:

    1. take up to `batch_size` records, or what came within `batch_within` seconds, at most `batch_bytes`;
    2. decode them and hand those that keep the contract to the stage, which answers with one outcome a record;
    3. publish every output and dead letter, and wait until Kafka has them all;
    4. acknowledge the batch's offsets.

Step 2 runs for up to `in_flight` batches at once; steps 3 and 4 run for one batch at a time, oldest first, so that a
chunk's records stay in order and an offset is never committed before those ahead of it. The agent only starts
batches: it never holds the outcome of one, because Faust acknowledges what an agent's body drops.

At-least-once: after a crash the batches that were in flight come again, and every effect is idempotent. Whatever is not
an outcome ends the process before anything of its batch is acknowledged (`Outage` after `outage_bound` seconds of
retrying). A batch taken before its partition was revoked and not yet started is dropped: it will be delivered again.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from aiokafka.errors import KafkaError
from opentelemetry import trace
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_random_exponential

from stream import metrics, progress
from stream.batches import split
from stream.config import Settings
from stream.errors import Outage
from stream.ratelimit import RateLimiter
from stream.records import PUBLISHED_HEADER, Done, Outcome, Record, Rejected, Tombstone, decode, header, number
from stream.stages.base import Stage
from stream.worker import traces
from stream.worker.outputs import Outputs
from stream.worker.source import Batches, Delivery, Source

log = logging.getLogger(__name__)

PATIENCE = 120.0  # seconds without any sign of life, beyond what the settings allow, until a worker counts as hung
MOST_ASSIGNMENTS = 20  # within a minute; two static members of one name throw each other out at every heartbeat
LONGEST_PAUSE = 30.0  # seconds between two tries during an outage
PULSE = 0.5  # seconds
SLOW = 10.0  # seconds for Kafka to take a batch's outputs; more means that something is wrong with it
TRIES_TO_FORGET = 10  # a pulse apart: Kafka may be assigning the partitions just now
LEASE = 0.8  # of the session: how long an answered heartbeat allows to publish


@dataclass(frozen=True)
class _Batch:
    deliveries: Sequence[Delivery]
    outcomes: "asyncio.Task[list[tuple[Record, Outcome]]]"
    started: float
    span: trace.Span


class BatchLoop:
    """Runs one stage on its source; drains when partitions are revoked and when the worker stops.

    `fail` must end the process.
    """

    def __init__(
        self,
        stage: Stage,
        source: Source,
        outputs: Outputs,
        settings: Settings,
        fail: Callable[[BaseException], NoReturn],
    ) -> None:
        self.stage = stage
        self._source = source
        self.settings = settings
        self._waiting: dict[int, str] = {}  # what is down, by batch that waits for it
        self._assignments: deque[float] = deque(maxlen=MOST_ASSIGNMENTS)
        self._last_progress = time.monotonic()
        self._last_beat = time.monotonic()
        self._publishing: float | None = None  # since when
        self._outputs = outputs
        self._fail = fail
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
        self._pulse = asyncio.create_task(self._beat())
        metrics.outage.labels(self.stage.name).set_function(lambda: self._down() is not None)
        metrics.in_flight.labels(self.stage.name).set(0)
        for outcome in ("done", "rejected"):
            metrics.records.labels(self.stage.name, outcome)

    def unhealthy(self) -> str | None:
        """Why only a restart can help; None while the loop turns.

        A batch in the works may wait for `outage_bound` seconds and for one call after that; it hangs if it has shown
        no progress for longer. Faust reads ahead of the loop, so records that were read long ago, with no batch in the
        works, mean that the way from Faust to the loop is broken; only a rate limit may hold them for so long.
        """
        if self._finisher.done():
            return "the batch loop has ended"
        still = time.monotonic() - self._last_progress
        if self._in_flight:
            if still > self._longest_step:
                return f"a batch has made no progress for {still:.0f} s, longer than any outage or call may take"
            return None
        patience = PATIENCE + self.settings.drain_timeout  # others may drain for so long before Kafka assigns anything
        if self.settings.rate_limit:
            patience += self.settings.batch_size / self.settings.rate_limit
        if still < patience:
            return None
        if not self._assignments:
            return f"Kafka has assigned nothing for {patience:g} s"
        if self._source.read_more_than_taken():
            return f"records that were read have not reached the batch loop for {patience:g} s"
        return None

    @property
    def _longest_step(self) -> float:
        """Seconds that a batch which does not hang may be without progress: each call of a stage has a time-out."""
        settings = self.settings
        return settings.outage_bound + max(settings.embed_timeout, settings.store_timeout)

    @property
    def assigned(self) -> bool:
        """Whether Kafka has assigned partitions, or the lack of any, since the start."""
        return bool(self._assignments)

    def unready(self) -> str | None:
        """Why no record is taken just now; None if one would be."""
        if not self._assignments:
            return "Kafka has assigned nothing yet"
        if len(self._assignments) == MOST_ASSIGNMENTS and time.monotonic() - self._assignments[0] < 60:
            return (
                f"Kafka has assigned partitions {MOST_ASSIGNMENTS} times within a minute: "
                f"does another {self.stage.name} worker use the same STREAM_INSTANCE?"
            )
        return self._down()

    def _down(self) -> str | None:
        """What a batch waits for; None if nothing is down."""
        if self._publishing and (seconds := time.monotonic() - self._publishing) > SLOW:
            return f"Kafka has not taken the outputs of a batch for {seconds:.0f} s"
        return next(iter(self._waiting.values()), None)

    # Step 1: take

    async def _take(self, batches: Batches) -> None:
        try:
            async for deliveries in batches:
                for part in split(deliveries, _bytes, self.settings.batch_bytes):
                    await self._limiter.acquire(len(part))
                    await self._room.acquire()
                    self._start(part)
        except Exception as error:
            self._fail(error)
        finally:
            if not self._ending:  # a stream that nobody takes from any more acknowledges what it still gets
                self._fail(Outage("Faust has ended the stream"))

    def _start(self, deliveries: Sequence[Delivery]) -> None:
        current = self._source.current(deliveries) if self._taking else []
        if not current:
            self._room.release()
            return
        span = traces.begin(self.stage.name)
        with trace.use_span(span):
            work = asyncio.create_task(self._process([delivery.record for delivery in current]))
        self._count(+1)
        self._source.note_taken(current)
        self._started.put_nowait(_Batch(current, work, time.monotonic(), span))

    # Step 2: process

    async def _process(self, records: list[Record]) -> list[tuple[Record, Outcome]]:
        progress.tell(self._progressed)
        outcomes: dict[int, Outcome] = {}
        work: dict[int, Any] = {}
        limit = self.settings.max_record_bytes if self.stage.contract == "chunk" else self.settings.max_message_bytes
        for i, record in enumerate(records):
            match decode(record, self.stage.contract, limit):
                case Rejected() as rejected:
                    outcomes[i] = rejected
                case Tombstone() as tombstone if not self.stage.writes_stores:
                    outcomes[i] = Done(tombstone)
                case decoded:
                    work[i] = decoded
        if work:
            done = await self._patiently(list(work.values()))
            outcomes |= dict(zip(work, done, strict=True))
        return [(record, outcomes[i]) for i, record in enumerate(records)]

    async def _patiently(self, items: list[Any]) -> Sequence[Outcome]:
        """Runs the stage's `process`, again and again while it raises `Outage`, for at most `outage_bound` seconds."""

        def wait_for(state: RetryCallState) -> None:
            assert state.outcome and state.next_action
            outage = state.outcome.exception()
            assert isinstance(outage, Outage)
            self._waiting[id(items)] = str(outage)
            self._progressed()
            metrics.retries.labels(self.stage.name, outage.cause).inc()
            log.warning("%s; trying again in %.1f s", outage, state.next_action.sleep)

        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(Outage),
                wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE),
                stop=stop_after_delay(self.settings.outage_bound),
                before_sleep=wait_for,
                reraise=True,
            ):
                with attempt:
                    outcomes = await self.stage.process(items)
        finally:
            self._waiting.pop(id(items), None)
        return outcomes

    # Steps 3 and 4: publish and acknowledge, oldest batch first

    async def _finish(self) -> None:
        try:
            while True:
                batch = await self._started.get()
                outcomes = await batch.outcomes
                await self._publish(outcomes)
                await self._source.acknowledge(batch.deliveries)
                self._room.release()
                self._count(-1)
                self._measure(batch, outcomes)
        except Exception as error:
            self._fail(error)

    async def _publish(self, outcomes: list[tuple[Record, Outcome]]) -> None:
        self._end_if_given_up()
        self._publishing = time.monotonic()
        self._progressed()
        try:
            async with asyncio.timeout(self.settings.outage_bound):
                await self._outputs.publish(outcomes)
        except (KafkaError, TimeoutError) as error:
            raise Outage(f"Kafka did not take the outputs of a batch: {error!r}") from error
        finally:
            self._publishing = None

    # Draining

    async def drain(self) -> None:
        """Waits until nothing is in flight, at most `drain_timeout` seconds; then the process ends.

        It must: what a worker publishes after its partition has moved could follow what the new owner publishes, and
        leave an older record as the newest of a compacted topic.
        """
        self._taking = False
        try:
            async with asyncio.timeout(self.settings.drain_timeout):
                await self._idle.wait()
        except TimeoutError:
            seconds = self.settings.drain_timeout
            self._fail(Outage(f"{self._in_flight} batches were not done within {seconds:g} s; they will come again"))

    async def read_again(self) -> None:
        """Makes the group forget how far this worker has read, because its source was deleted and made again.

        Kafka forgets that too when a topic is deleted, but a batch that was in the works may have been committed since.
        Nothing more is acknowledged; the process must end.
        """
        self._taking = False
        self._finisher.cancel()
        for _ in range(TRIES_TO_FORGET):
            if await self._source.commit_the_beginning():
                return
            await asyncio.sleep(PULSE)

    async def _beat(self) -> None:
        while True:
            self._end_if_given_up()
            self._end_if_hung()
            self._last_beat = time.monotonic()
            await asyncio.sleep(PULSE)

    def _end_if_given_up(self) -> None:
        """Ends a process whose partitions Kafka has given to others, or is about to, for want of a sign of life.

        Like what is published after a drain has failed, what it has on its way could follow what the new owner has
        published. A frozen process learns of it by its own clock, one that the network cuts off by its heartbeats.
        """
        now, session = time.monotonic(), self.settings.session_timeout
        if now - self._last_beat > session:
            seconds = now - self._last_beat
            self._fail(Outage(f"this process stood still for {seconds:.0f} s, longer than STREAM_SESSION_TIMEOUT"))
        if self._in_flight:
            seconds = now - max(self._source.heartbeat_answered, self._assignments[-1])
            if seconds > LEASE * session:
                self._fail(
                    Outage(f"Kafka has not answered a heartbeat for {seconds:.0f} s and may give this worker up")
                )

    def _end_if_hung(self) -> None:
        """Ends a process that a supervisor with a probe of /healthz would have ended by now."""
        still = time.monotonic() - self._last_progress
        if self._in_flight and still > self._longest_step + PATIENCE:
            self._fail(Outage(f"a batch has made no progress for {still:.0f} s; it will come again"))

    def _on_assigned(self, partitions: int) -> None:
        log.info("assigned %d partitions", partitions)
        self._assignments.append(time.monotonic())
        self._last_progress = time.monotonic()
        self._taking = True

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
        traces.end(batch.span, stage, seconds, outcomes)


def age(record: Record) -> float:
    """Seconds since the chunk was published; 0 for a producer whose clock is ahead."""
    published = number(header(record.headers, PUBLISHED_HEADER))
    return max(time.time() - (record.timestamp if published is None else published) / 1000, 0)


def _bytes(delivery: Delivery) -> int:
    return len(delivery.record.value or b"")
