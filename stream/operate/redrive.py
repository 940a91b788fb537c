"""Redriving: dead letters go back into the topic that their stage consumes, with the bytes that they had.

A copy has the original key, value, headers, partition and timestamp (which is the version of a chunk that has none),
and `dlq.attempts`, so that a second rejection counts on. Once Kafka has the copy, and no newer record lies before it, a
marker in the topic of dead letters says so.

A letter whose key has a newer record in the stage's topic stays: the topic is compacted, and Kafka would keep the copy
in place of the newer record. What is published while letters go is guarded by `copies`. Where a redrive ended between
copy and marker, the next one finds the copy and adds the marker.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError

from stream.config import Settings, StageName
from stream.kafka import clients, deadletters, reader, topics
from stream.kafka.deadletters import ATTEMPTS_HEADER, DeadLetter, Filter, redriven_headers, without_letter
from stream.operate.copies import Copies, Name, Twin, name_of, twin_of
from stream.records import Record

TOGETHER = 500  # letters that share one look for newer records


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to become of a letter (its value is not kept here): it goes, or a sentence says why it stays.

    `copy` is the offset of a copy that an earlier redrive has sent without a marker. From the offset `since` on there
    may be records of the letter's key that are newer than the letter.
    """

    letter: DeadLetter
    stays: str | None = None
    copy: int | None = None
    since: int = 0


async def plan(
    settings: Settings, stage: StageName, wanted: Filter, *, limit: int | None = None, again: bool = False
) -> list[Verdict]:
    """Says of every letter of a stage that is wanted whether it would go, oldest first; changes nothing.

    It ends with the letter that is the `limit`-th to go. With `again` those letters too would go that were redriven or
    whose key has a newer record. Memory grows with the number of letters wanted, not with their values.
    """
    letters, twins = [], []
    async for letter in deadletters.read(settings, stage):
        if wanted.takes(letter) and (again or letter.redriven is None):
            letters.append(letter.without_value)
            twins.append(twin_of(_original(settings, stage, letter)))
    found = await _behind(settings, stage, letters, twins)
    verdicts: list[Verdict] = []
    going = 0
    for letter, twin in zip(letters, twins, strict=True):
        if going == limit:
            break
        verdicts.append(_verdict(letter, twin, found, settings.dlq_max_attempts, again))
        going += verdicts[-1].stays is None
    return verdicts


async def redrive(
    settings: Settings, stage: StageName, verdicts: Iterable[Verdict], progress: Callable[[], None] = lambda: None
) -> list[Verdict]:
    """Sends the letters that are to go, each acknowledged before the next; returns the verdicts on those letters.

    A copy that Kafka finds too large stays a letter. Raises `KafkaError` if Kafka fails: run again, it goes on where it
    was. `progress` is called after each letter.
    """
    going = {verdict.letter.place: verdict for verdict in verdicts if verdict.stays is None}
    done: list[Verdict] = []
    if not going:
        return done
    source = topics.source(settings, stage)
    await topics.check(settings, [source])
    async with clients.letter_producer(settings) as producer:
        copies = Copies(settings, producer, source)
        sent: list[Verdict] = []
        async for letter in deadletters.read(settings, stage):
            if (verdict := going.get(letter.place)) is None:
                continue
            if stays := await _send(copies, _original(settings, stage, letter), verdict.copy):
                done.append(Verdict(verdict.letter, stays))
                progress()
                continue
            sent.append(verdict)
            if len(sent) == TOGETHER:
                done += await _mark(copies, producer, sent, progress)
                sent.clear()
        done += await _mark(copies, producer, sent, progress)
    return done


def _original(settings: Settings, stage: StageName, letter: DeadLetter) -> Record:
    """The record that was rejected, as its copy is sent."""
    headers = [*without_letter(letter.record.headers), (ATTEMPTS_HEADER, str(letter.attempts).encode())]
    source, record = topics.source(settings, stage), letter.record
    return Record(source, letter.partition, letter.offset, record.key, record.value, letter.timestamp, headers)


async def _send(copies: Copies, original: Record, copy: int | None) -> str | None:
    """Sends a copy unless there is one; says why the letter stays if Kafka refuses it."""
    if copy is not None:
        copies.lies(original, original.partition, copy)
        return None
    try:
        await copies.send(original)
        await copies.acknowledged()
    except MessageSizeTooLargeError:
        return f"it is larger than the topic {original.topic} carries"
    return None


async def _mark(
    copies: Copies, producer: AIOKafkaProducer, sent: Sequence[Verdict], progress: Callable[[], None]
) -> list[Verdict]:
    """Puts newer records behind the copies of these letters, then a marker behind each letter."""
    since: dict[int, int] = {}
    for verdict in sent:
        partition = verdict.letter.partition
        since[partition] = min(verdict.since, since.get(partition, verdict.since))
    await copies.restore(since)
    for verdict in sent:
        letter = verdict.letter
        await producer.send_and_wait(
            letter.record.topic,
            key=letter.record.key,
            value=b"",
            partition=letter.record.partition,
            headers=redriven_headers(letter),
        )
        progress()
    return [Verdict(verdict.letter) for verdict in sent]


@dataclass
class _Behind:
    """What lies in the stage's topic: the newest record of others by key, copies of letters, where partitions end."""

    newest: dict[Name, int]
    copies: dict[tuple[int, Twin], int]
    ends: dict[int, int]


async def _behind(
    settings: Settings, stage: StageName, letters: Sequence[DeadLetter], twins: Sequence[Twin]
) -> _Behind:
    """Reads the stage's topic on from the oldest of the letters' records."""
    found = _Behind({}, {}, {})
    names = {_name(letter) for letter in letters}
    known = {(letter.partition, twin) for letter, twin in zip(letters, twins, strict=True)}
    since: dict[int, int] = {}
    for letter in letters:
        since[letter.partition] = min(letter.offset, since.get(letter.partition, letter.offset))
    if since:
        async for record in reader.read_to_end(settings, topics.source(settings, stage), since, only=since):
            found.ends[record.partition] = record.offset + 1
            name = name_of(record)
            if name not in names:
                continue
            twin = record.partition, twin_of(record)
            if twin in known:
                found.copies[twin] = record.offset
            else:
                found.newest[name] = record.offset
    return found


def _verdict(letter: DeadLetter, twin: Twin, found: _Behind, max_attempts: int, again: bool) -> Verdict:
    newest = found.newest.get(_name(letter), -1)
    newer = newest > letter.offset
    copy = None if again else found.copies.get((letter.partition, twin))
    stays = _why_it_stays(letter, max_attempts, overtaken=newer and copy is None and not again)
    return Verdict(letter, stays, copy, newest if newer else found.ends.get(letter.partition, 0))


def _name(letter: DeadLetter) -> Name:
    return letter.partition, name_of(letter.record)[1]


def _why_it_stays(letter: DeadLetter, max_attempts: int, *, overtaken: bool) -> str | None:
    if letter.left_out:
        return "its value was left out"
    if letter.record.key is None:
        return "it has no key, and its topic is compacted"
    if letter.attempts >= max_attempts:
        return f"it was rejected {letter.attempts} times, STREAM_DLQ_MAX_ATTEMPTS is {max_attempts}"
    if overtaken:
        return "its key has a newer record"
    return None
