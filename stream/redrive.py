"""Redriving: dead letters go back into the topic that their stage consumes, with the bytes that they had.

A copy has the original key, value, headers, partition and timestamp (which is the version of a chunk that has none),
and `dlq.attempts`, so that a second rejection counts on. Once Kafka has the copy, a marker in the topic of dead letters
says so.

A letter whose key has a newer record in the stage's topic stays: the topic is compacted, and Kafka would keep the copy
in place of the newer record. So does one whose redrive died before the marker, because its copy is such a record.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError

from stream import deadletters, kafka, topics
from stream.config import Settings, StageName
from stream.deadletters import ATTEMPTS_HEADER, DeadLetter, Filter, redriven_headers, without_letter


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to become of a letter (its value is not kept here): it goes, or a sentence says why it stays."""

    letter: DeadLetter
    stays: str | None = None


async def plan(
    settings: Settings, stage: StageName, wanted: Filter, *, limit: int | None = None, again: bool = False
) -> list[Verdict]:
    """Says of every letter of a stage that is wanted whether it would go, oldest first; changes nothing.

    It ends with the letter that is the `limit`-th to go. With `again` those letters too would go that were redriven or
    whose key has a newer record. Memory grows with the number of letters wanted, not with their values.
    """
    letters = [
        letter.without_value
        async for letter in deadletters.read(settings, stage)
        if wanted.takes(letter) and (again or letter.redriven is None)
    ]
    newest = {} if again else await _newest(settings, stage, letters)
    verdicts: list[Verdict] = []
    going = 0
    for letter in letters:
        if going == limit:
            break
        verdicts.append(Verdict(letter, _why_it_stays(letter, newest, settings.dlq_max_attempts)))
        going += verdicts[-1].stays is None
    return verdicts


async def redrive(
    settings: Settings, stage: StageName, verdicts: Iterable[Verdict], progress: Callable[[], None] = lambda: None
) -> list[Verdict]:
    """Sends the letters that are to go, each acknowledged before the next; returns the verdicts on those letters.

    A copy that Kafka finds too large stays a letter. Raises `KafkaError` if Kafka fails: what went until then has its
    marker. `progress` is called after each letter.
    """
    going = {verdict.letter.place for verdict in verdicts if verdict.stays is None}
    done: list[Verdict] = []
    if not going:
        return done
    source = topics.source(settings, stage)
    await topics.check(settings, [source])
    async with kafka.letter_producer(settings) as producer:
        partitions = await producer.partitions_for(source)
        async for letter in deadletters.read(settings, stage):
            if letter.place in going:
                done.append(Verdict(letter.without_value, await _send(producer, source, partitions, letter)))
                progress()
    return done


async def _send(producer: AIOKafkaProducer, source: str, partitions: Collection[int], letter: DeadLetter) -> str | None:
    try:
        await producer.send_and_wait(
            source,
            key=letter.record.key,
            value=letter.record.value,
            partition=letter.partition if letter.partition in partitions else None,
            timestamp_ms=letter.timestamp if letter.timestamp >= 0 else None,
            headers=[*without_letter(letter.record.headers), (ATTEMPTS_HEADER, str(letter.attempts).encode())],
        )
    except MessageSizeTooLargeError:
        return f"it is larger than the topic {source} carries"
    await producer.send_and_wait(
        letter.record.topic,
        key=letter.record.key,
        value=b"",
        partition=letter.record.partition,
        headers=redriven_headers(letter),
    )
    return None


def _why_it_stays(letter: DeadLetter, newest: dict[tuple[int, bytes], int], max_attempts: int) -> str | None:
    if letter.left_out:
        return "its value was left out"
    if letter.record.key is None:
        return "it has no key, and its topic is compacted"
    if letter.attempts >= max_attempts:
        return f"it was rejected {letter.attempts} times, STREAM_DLQ_MAX_ATTEMPTS is {max_attempts}"
    if newest.get((letter.partition, letter.record.key), -1) > letter.offset:
        return "its key has a newer record"
    return None


async def _newest(settings: Settings, stage: StageName, letters: list[DeadLetter]) -> dict[tuple[int, bytes], int]:
    """The newest offset of each letter's key in the stage's topic; reads on from the oldest of their records."""
    keys = {(letter.partition, letter.record.key) for letter in letters}
    since: dict[int, int] = {}
    for letter in letters:
        since[letter.partition] = min(letter.offset, since.get(letter.partition, letter.offset))
    newest = {}
    if since:
        async for record in kafka.read_to_end(settings, topics.source(settings, stage), since, only=since):
            if record.key is not None and (record.partition, record.key) in keys:
                newest[record.partition, record.key] = record.offset
    return newest
