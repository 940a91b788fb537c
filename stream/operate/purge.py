"""Purges dead letters: Kafka permanently deletes a stage's oldest ones."""

from dataclasses import dataclass, field

from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from stream.config import Settings, StageName
from stream.kafka import clients, reader, topics
from stream.kafka.deadletters import AT_HEADER, Place, letter_of, redriven_place
from stream.records import Record, header, number


@dataclass
class Cut:
    """What would be deleted: all records before these offsets, by partition; the letters, and those never redriven."""

    offsets: dict[int, int] = field(default_factory=dict)
    letters: int = 0
    waiting: int = 0


async def plan(
    settings: Settings,
    stage: StageName,
    *,
    until: int | None = None,
    before: Place | None = None,
    limit: int | None = None,
) -> Cut:
    """Finds what would be deleted; changes nothing.

    Kafka deletes records only from the beginning of a partition. With `until` (ms since the epoch), each partition is
    deleted up to its first record that was written then or later. With `before`, only the partition of that place is
    deleted, up to that place. Without either, all current records are deleted. `limit` is the maximum number of
    letters; the oldest of a partition are deleted first.
    """
    cut = Cut()
    waiting: set[Place] = set()
    closed: set[int] = set()
    async for record in reader.read_to_end(settings, topics.dead_letters(settings, stage)):
        redriven = redriven_place(record)
        if redriven:
            waiting.discard(redriven)
        if record.partition in closed or _stays(record, until, before):
            closed.add(record.partition)
            continue
        if not redriven and (letter := letter_of(record)):
            if cut.letters == limit:
                closed.add(record.partition)
                continue
            cut.letters += 1
            waiting.add(letter.place)
        cut.offsets[record.partition] = record.offset + 1
    cut.waiting = len(waiting)
    return cut


async def purge(settings: Settings, stage: StageName, cut: Cut) -> None:
    """Deletes what `plan` found; newer letters stay. Raises `KafkaError` if Kafka rejects the request."""
    topic = topics.dead_letters(settings, stage)
    records = {TopicPartition(topic, number): RecordsToDelete(offset) for number, offset in cut.offsets.items()}
    if records:
        async with clients.admin(settings) as admin:
            await admin.delete_records(records)


def _stays(record: Record, until: int | None, before: Place | None) -> bool:
    if before and (record.partition != before.partition or record.offset >= before.offset):
        return True
    at = number(header(record.headers, AT_HEADER))
    return until is not None and (record.timestamp if at is None else at) >= until
