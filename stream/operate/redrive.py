"""Redrives dead letters: publishes them unchanged to the topic that their stage consumes.

A copy has the original key, value, headers, partition and timestamp (which is the version of a chunk without a
version), and `dlq.attempts`, so that a second rejection increases the count. When Kafka has acknowledged the copy, and
no newer record lies before it, a marker is published to the dead-letter topic.

A letter is not redriven if its key has a newer record in the stage's topic: the topic is compacted, and Kafka would
keep the copy instead of the newer record. `copies` handles records that are published during a redrive. If a redrive
ended after the copy and before the marker, the next one finds the copy and adds the marker.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError

from stream.config import Settings, StageName
from stream.kafka import clients, deadletters, reader, topics
from stream.kafka.deadletters import ATTEMPTS_HEADER, DeadLetter, Filter, redriven_headers, without_letter
from stream.operate.copies import Copies, Fingerprint, KeyId, fingerprint_of, key_id_of
from stream.records import Record

TOGETHER = 500  # letters between two checks for newer records


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a letter is redriven: `stays` is the reason if it is not. The letter's value is not kept here.

    `copy` is the offset of a copy without a marker that an earlier redrive sent. If the letter's key has newer records,
    the newest one is at the offset `since` or after it.
    """

    letter: DeadLetter
    stays: str | None = None
    copy: int | None = None
    since: int = 0


async def plan(
    settings: Settings, stage: StageName, wanted: Filter, *, limit: int | None = None, again: bool = False
) -> list[Verdict]:
    """Says whether each wanted letter of a stage would be redriven, oldest first; changes nothing.

    It ends after `limit` letters that would be redriven. With `again` this includes letters that were redriven before
    or whose key has a newer record. Memory grows with the number of wanted letters, not with their values.
    """
    letters, fingerprints = [], []
    async for letter in deadletters.read(settings, stage):
        if wanted.takes(letter) and (again or letter.redriven is None):
            letters.append(letter.without_value)
            fingerprints.append(fingerprint_of(_original(settings, stage, letter)))
    found = await _later(settings, stage, letters, fingerprints)
    verdicts: list[Verdict] = []
    going = 0
    for letter, fingerprint in zip(letters, fingerprints, strict=True):
        if going == limit:
            break
        verdicts.append(_verdict(letter, fingerprint, found, settings.dlq_max_attempts, again))
        going += verdicts[-1].stays is None
    return verdicts


async def redrive(
    settings: Settings, stage: StageName, verdicts: Iterable[Verdict], progress: Callable[[], None] = lambda: None
) -> list[Verdict]:
    """Sends the letters that `plan` chose, each acknowledged before the next; returns the verdicts on those letters.

    A letter stays if Kafka rejects its copy as too large. Raises `KafkaError` if Kafka fails; the next run continues
    there. `progress` is called after each letter.
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
    """The rejected record, with the headers of its copy."""
    headers = [*without_letter(letter.record.headers), (ATTEMPTS_HEADER, str(letter.attempts).encode())]
    source, record = topics.source(settings, stage), letter.record
    return Record(source, letter.partition, letter.offset, record.key, record.value, letter.timestamp, headers)


async def _send(copies: Copies, original: Record, copy: int | None) -> str | None:
    """Sends a copy unless one exists; returns why the letter stays if Kafka rejects the copy."""
    if copy is not None:
        copies.note(original, original.partition, copy)
        return None
    try:
        await copies.send(original)
        await copies.acknowledged()
    except MessageSizeTooLargeError:
        return f"it is larger than the topic {original.topic} accepts"
    return None


async def _mark(
    copies: Copies, producer: AIOKafkaProducer, sent: Sequence[Verdict], progress: Callable[[], None]
) -> list[Verdict]:
    """Publishes newer records again after the copies of these letters, then a marker for each letter."""
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
class _Later:
    """Offsets in the stage's topic, from the letters' records on.

    `newest` are those of each key's newest record that is not a copy, `copies` those of copies, `ends` those after the
    last records of partitions.
    """

    newest: dict[KeyId, int]
    copies: dict[tuple[int, Fingerprint], int]
    ends: dict[int, int]


async def _later(
    settings: Settings, stage: StageName, letters: Sequence[DeadLetter], fingerprints: Sequence[Fingerprint]
) -> _Later:
    """Reads the stage's topic, starting with the oldest of the letters' records."""
    found = _Later({}, {}, {})
    keys = {_key_id(letter) for letter in letters}
    known = {(letter.partition, fingerprint) for letter, fingerprint in zip(letters, fingerprints, strict=True)}
    since: dict[int, int] = {}
    for letter in letters:
        since[letter.partition] = min(letter.offset, since.get(letter.partition, letter.offset))
    if since:
        async for record in reader.read_to_end(settings, topics.source(settings, stage), since, only=since):
            found.ends[record.partition] = record.offset + 1
            key = key_id_of(record)
            if key not in keys:
                continue
            copy = record.partition, fingerprint_of(record)
            if copy in known:
                found.copies[copy] = record.offset
            else:
                found.newest[key] = record.offset
    return found


def _verdict(letter: DeadLetter, fingerprint: Fingerprint, found: _Later, max_attempts: int, again: bool) -> Verdict:
    newest = found.newest.get(_key_id(letter), -1)
    newer = newest > letter.offset
    copy = None if again else found.copies.get((letter.partition, fingerprint))
    stays = _why_it_stays(letter, max_attempts, overtaken=newer and copy is None and not again)
    return Verdict(letter, stays, copy, newest if newer else found.ends.get(letter.partition, 0))


def _key_id(letter: DeadLetter) -> KeyId:
    return letter.partition, key_id_of(letter.record)[1]


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
