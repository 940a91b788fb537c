"""Publishes a batch's outputs to the next topic and its rejected records to the stage's dead-letter queue."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, get_args

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from stream import metrics, wire
from stream.config import Settings, StageName
from stream.kafka import clients
from stream.kafka.deadletters import LEFT_OUT_HEADER, PREFIX, letter_headers, without_letter
from stream.kafka.topics import dead_letters, target
from stream.records import (
    PUBLISHED_HEADER,
    VECTOR_HEADER,
    VERSION_HEADER,
    Headers,
    Outcome,
    Reason,
    Record,
    Rejected,
    Tombstone,
    encode,
    header,
    number,
)

log = logging.getLogger(__name__)

OF_THE_VALUE = {VECTOR_HEADER, wire.SCHEMA_HEADER}  # headers that are not true of a stage's output
_partition = DefaultPartitioner()  # as Kafka's own producers: murmur2 of the key


async def until_taken(send: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
    """Sends again after each request timeout of aiokafka, without a limit: the caller must set a timeout.

    The order stays, because an output that timed out was not yet in aiokafka's buffer. A dead letter may be sent twice;
    each copy accounts for its record.
    """
    while True:
        try:
            return await send(*args, **kwargs)
        except KafkaTimeoutError:
            await asyncio.sleep(0)  # gives control to the event loop, for the caller's timeout


class Outputs:
    """Publishes the outcomes of one stage."""

    def __init__(
        self, stage: StageName, producer: AIOKafkaProducer, letters: AIOKafkaProducer, settings: Settings
    ) -> None:
        self._stage: StageName = stage
        self._producer = producer
        self._letters = letters
        self._settings = settings
        for reason in get_args(Reason):  # so that the first event is an increase from 0
            metrics.dead_letters.labels(stage, reason)

    async def publish(self, outcomes: Iterable[tuple[Record, Outcome]]) -> None:
        """Sends all outcomes in order and waits until Kafka acknowledges them; raises `KafkaError`."""
        letters, outputs = [], []
        for record, outcome in outcomes:
            if isinstance(outcome, Rejected):
                letters.append(self._send_letter(record, outcome))
            elif outcome.output is not None:
                value, headers = encoded(record, outcome.output)
                size = DefaultRecordBatchBuilder.estimate_size_in_bytes(record.key, value, headers)
                if size > self._settings.max_message_bytes:
                    sentence = f"the output of {self._stage} has {size:,} bytes, more than STREAM_MAX_MESSAGE_BYTES"
                    letters.append(self._send_letter(record, Rejected("too-large", sentence)))
                else:
                    outputs.append((record.key, value, headers))
        await asyncio.gather(*letters, *await self._send(outputs))

    async def _send(self, outputs: Sequence[tuple[bytes | None, bytes | None, Headers]]) -> list[Awaitable[Any]]:
        """Hands the outputs to the producer, a batch for each partition; returns what to wait for.

        The producer's own batches would cost a coroutine and a future for every record.
        """
        if not outputs:
            return []
        topic = target(self._settings, self._stage)
        partitions = sorted(await self._producer.partitions_for(topic))
        batches: list[tuple[int, BatchBuilder]] = []
        last: dict[int, BatchBuilder] = {}  # by partition; those before it are full
        for key, value, headers in outputs:
            partition = _partition(key, partitions, partitions)
            batch = last.get(partition)
            if batch is None or not batch.append(timestamp=None, key=key, value=value, headers=headers):
                batch = last[partition] = self._producer.create_batch()
                batch.append(timestamp=None, key=key, value=value, headers=headers)
                batches.append((partition, batch))
        return [
            await until_taken(self._producer.send_batch, batch, topic, partition=partition)
            for partition, batch in batches
        ]

    def _send_letter(self, record: Record, rejected: Rejected) -> Awaitable[None]:
        log.warning(
            "%s/%d@%d rejected: %s: %s",
            record.topic, record.partition, record.offset, rejected.reason, rejected.detail,
        )  # fmt: skip
        metrics.dead_letters.labels(self._stage, rejected.reason).inc()
        return asyncio.create_task(self._deliver(record, letter_headers(record, self._stage, rejected)))

    async def _deliver(self, record: Record, headers: Headers) -> None:
        send = partial(
            until_taken, clients.send_letter, self._letters, dead_letters(self._settings, self._stage), record.key
        )
        left_out = (LEFT_OUT_HEADER, str(len(record.value or b"")).encode())
        described = [one for one in headers if one[0].startswith(PREFIX)]
        try:
            await send(record.value, headers)
        except MessageSizeTooLargeError:  # the producer's compression was better than ours
            try:
                await send(None, [*headers, left_out])
            except MessageSizeTooLargeError:  # the record's own headers are too large as well
                await send(None, [*described, left_out])


def encoded(record: Record, output: dict[str, Any] | Tombstone) -> tuple[bytes | None, Headers]:
    """The value and headers of an output for the next topic."""
    headers = [one for one in without_letter(record.headers) if one[0] not in OF_THE_VALUE]
    if number(header(headers, PUBLISHED_HEADER)) is None and record.timestamp >= 0:
        headers.append((PUBLISHED_HEADER, str(record.timestamp).encode()))
    if isinstance(output, Tombstone):
        others = [(name, value) for name, value in headers if name != VERSION_HEADER]
        return None, [*others, (VERSION_HEADER, str(output.version).encode())]
    value, vector = encode(output)
    return value, headers + vector
