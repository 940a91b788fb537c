"""Purging: Kafka deletes the beginning of a stage's dead letters for good."""

from dataclasses import dataclass, field

from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from stream.config import Settings, StageName
from stream.kafka import clients, reader, topics
from stream.kafka.deadletters import AT_HEADER, Place, letter_of, redriven_place
from stream.records import Record, header, number


@dataclass
class Cut:
    """What would be deleted: all ahead of these offsets, by partition; how many letters, and how many not redriven."""

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

    A topic is only ever cut at its beginning. A partition is deleted up to its first record that was written at `until`
    (ms since the epoch) or later; with `before`, only that place's partition is, up to that place. Without either, all
    that is there now goes. `limit` bounds the letters, the oldest of a partition first.
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
    """Deletes what the plan found; what was rejected meanwhile stays. Raises `KafkaError` if Kafka refuses."""
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
