"""The checker: is every chunk of the topic in both stores, or accounted for by its dead letter?

The topic is the truth: of each chunk the record with the highest version, tombstones included (of equal versions the
later one). A store agrees if it has that version, with that text, and its vector or terms. What was published since the
check began may still be on its way, and is not waited for: others go on writing.

What was read lies in a database of SQLite's that nobody else sees: a temporary file of some 60 bytes a chunk and its
chunk_id, in the folder that SQLITE_TMPDIR or TMPDIR names, else /var/tmp. So memory is the same however many chunks
there are. The stores are read in pages.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

import orjson

from stream import deadletters
from stream.config import STAGES, Settings
from stream.deadletters import DeadLetter
from stream.errors import ConfigurationError
from stream.kafka import read_to_end
from stream.records import Record, Rejected, Tombstone, decode, sha256
from stream.stores import Stores
from stream.stores.base import Store, Stored

PAGE = 500  # chunks asked of the stores at once
RECHECK_PAUSE = 0.5  # seconds
NAMED = 20  # differences that a report names

Progress = Callable[[int, int], None]  # how many, of how many

SCHEMA = """
-- The newest record of each chunk and where it is; no hash means deleted; `late` if it was published since the check
-- began. What the stores have of it: `held` is one bit a store, `wrong` a sentence, empty if they agree and NULL until
-- they were compared.
CREATE TABLE chunks (
    chunk_id TEXT PRIMARY KEY, version INTEGER, sha256 BLOB, partition INTEGER, offset INTEGER, late INTEGER,
    held INTEGER DEFAULT 0, wrong TEXT
) WITHOUT ROWID;

-- The records that are no chunks.
CREATE TABLE broken (
    partition INTEGER, offset INTEGER, late INTEGER, detail TEXT, PRIMARY KEY (partition, offset)
) WITHOUT ROWID;

-- Dead letters that were not redriven: of records of the topic, and of what a stage had made of one.
CREATE TABLE dead_records (partition INTEGER, offset INTEGER, PRIMARY KEY (partition, offset)) WITHOUT ROWID;
CREATE TABLE dead_chunks (
    chunk_id TEXT, version INTEGER, sha256 BLOB, PRIMARY KEY (chunk_id, version, sha256)
) WITHOUT ROWID;

CREATE VIEW accounts AS
SELECT
    format('partition %d, offset %d: has no dead letter (%s)', partition, offset, detail) AS difference,
    CASE
        WHEN (partition, offset) IN (SELECT partition, offset FROM dead_records) THEN 'dead_lettered'
        WHEN late THEN 'on_their_way'
        ELSE 'different'
    END AS account
FROM broken
UNION ALL
SELECT
    chunk_id || ': ' || wrong,
    CASE
        WHEN wrong = '' AND sha256 IS NULL THEN 'deleted'
        WHEN wrong = '' THEN 'indexed'
        WHEN (partition, offset) IN (SELECT partition, offset FROM dead_records) THEN 'dead_lettered'
        WHEN (chunk_id, version, sha256) IN (SELECT chunk_id, version, sha256 FROM dead_chunks) THEN 'dead_lettered'
        WHEN late THEN 'on_their_way'
        ELSE 'different'
    END
FROM chunks
"""

NOTE = """
INSERT INTO chunks (chunk_id, version, sha256, partition, offset, late) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
    version = excluded.version, sha256 = excluded.sha256, partition = excluded.partition, offset = excluded.offset,
    late = excluded.late, wrong = NULL
WHERE excluded.version >= version
"""

UNSETTLED = """
SELECT chunk_id, version, sha256 FROM chunks WHERE wrong IS NOT '' AND chunk_id > ? ORDER BY chunk_id LIMIT ?
"""


@dataclass
class Report:
    """What was found. `differences` names the first; `different` counts them all.

    `on_their_way` are those that were published since the check began and are not in the stores yet.
    """

    published: int = 0
    indexed: int = 0
    deleted: int = 0
    dead_lettered: int = 0
    on_their_way: int = 0
    different: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing is lost and nothing is wrong."""
        return not self.different


def _silent(*_: int) -> None:
    pass


async def verify(
    settings: Settings, stores: Stores, *, wait: float = 0, reading: Progress = _silent, progress: Progress = _silent
) -> Report:
    """Compares both stores with the topic.

    While anything differs, what was published since is read too and what differs is looked at again, for `wait`
    seconds: it may be on its way. `reading` is told how many of the topic's offsets lie behind, `progress` how many
    chunks were compared. Raises `ConfigurationError` if the temporary file finds no room.
    """
    with _database() as db:
        topic = _Topic(settings, db)
        deadline = None  # counts from the end of the first look, which may take longer than the wait
        while True:
            counts = [
                await store.count() for store in stores.both
            ]  # before reading: so the topic knows what they count
            await topic.read_on(reading)
            await _compare(db, stores.both, progress)
            report = _report(db, stores.both, counts)
            now = asyncio.get_running_loop().time()
            deadline = now + wait if deadline is None else deadline
            if report.clean or now >= deadline:
                return report
            await asyncio.sleep(RECHECK_PAUSE)


@contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect("")) as db:  # "" is a temporary file, made when the cache of 2 MB is full
        try:
            db.executescript(SCHEMA)
            yield db
        except sqlite3.OperationalError as error:
            raise ConfigurationError(
                f"the temporary file cannot be written ({error}): free some disk, "
                "or name a folder that has more with SQLITE_TMPDIR"
            ) from error


class _Topic:
    """Reads what the topics say into the database."""

    def __init__(self, settings: Settings, db: sqlite3.Connection) -> None:
        self._settings = settings
        self._db = db
        self._read: dict[int, int] = {}  # the next offset, by partition
        self._late = False

    async def read_on(self, progress: Progress = _silent) -> None:
        """Reads the records that are new, and all dead letters: one accounts for its record until it is redriven."""
        async for record in read_to_end(self._settings, self._settings.topic, self._read, progress=progress):
            self._read[record.partition] = record.offset + 1
            self._note(record)
        self._late = True
        self._db.execute("DELETE FROM dead_records")
        self._db.execute("DELETE FROM dead_chunks")
        for stage in STAGES:
            async for letter in deadletters.read(self._settings, stage):
                self._note_letter(letter)

    def _note(self, record: Record) -> None:
        place = record.partition, record.offset
        match decode(record, "chunk", self._settings.max_record_bytes):
            case Rejected(detail=detail):
                self._db.execute("INSERT INTO broken VALUES (?, ?, ?, ?)", (*place, self._late, detail))
            case Tombstone(chunk_id, version):
                self._db.execute(NOTE, (chunk_id, version, None, *place, self._late))
            case chunk:
                self._db.execute(
                    NOTE, (chunk["chunk_id"], chunk["version"], _digest(chunk["text"]), *place, self._late)
                )

    def _note_letter(self, letter: DeadLetter) -> None:
        place = letter.partition, letter.offset
        with suppress(OverflowError):  # a letter that somebody else wrote, of numbers that no record has
            if letter.redriven is not None:
                if letter.topic == self._settings.topic:  # its copy at the end of the topic stands for it
                    self._db.execute("DELETE FROM broken WHERE (partition, offset) = (?, ?)", place)
            elif letter.topic == self._settings.topic:
                self._db.execute("INSERT OR IGNORE INTO dead_records VALUES (?, ?)", place)
            elif chunk := _made_of(letter):
                self._db.execute("INSERT OR IGNORE INTO dead_chunks VALUES (?, ?, ?)", chunk)


def _made_of(letter: DeadLetter) -> tuple[str, int, bytes] | None:
    """Which chunk a later stage's letter accounts for; None if it is not what a stage publishes."""
    try:
        chunk = orjson.loads(letter.record.value or b"")
        chunk_id, version, digest = chunk["chunk_id"], chunk["version"], _digest(chunk["text"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return (chunk_id, version, digest) if isinstance(chunk_id, str) and isinstance(version, int) else None


async def _compare(db: sqlite3.Connection, stores: Sequence[Store], progress: Progress = _silent) -> None:
    """Asks the stores for every chunk of which they are not known to agree with the topic."""
    (total,) = db.execute("SELECT count(*) FROM chunks WHERE wrong IS NOT ''").fetchone()
    done, last = 0, ""
    while page := db.execute(UNSETTLED, (last, PAGE)).fetchall():
        found = await asyncio.gather(*(store.stored([chunk_id for chunk_id, *_ in page]) for store in stores))
        for chunk_id, version, digest in page:
            held = [stored.get(chunk_id) for stored in found]
            bits = sum(1 << i for i, stored in enumerate(held) if stored and stored.text_sha256)
            wrongs = [_difference(version, digest, stored) for stored in held]
            wrong = ", ".join(f"{store.name} {what}" for store, what in zip(stores, wrongs, strict=True) if what)
            db.execute("UPDATE chunks SET held = ?, wrong = ? WHERE chunk_id = ?", (bits, wrong, chunk_id))
        done, last = done + len(page), page[-1][0]
        progress(done, total)


def _difference(version: int, digest: bytes | None, stored: Stored | None) -> str | None:
    if digest is None:
        return "still has it, although it was deleted" if stored and stored.text_sha256 else None
    if stored is None or stored.text_sha256 is None:
        return "does not have it"
    if stored.version != version:
        return f"has version {stored.version}, the topic {version}"
    if stored.text_sha256 != digest.hex():
        return "has another text"
    return None if stored.complete else "has it without its vector or terms"


def _report(db: sqlite3.Connection, stores: Sequence[Store], store_counts: Sequence[int]) -> Report:
    counts = dict(db.execute("SELECT account, count(*) FROM accounts GROUP BY account").fetchall())
    named = db.execute("SELECT difference FROM accounts WHERE account = 'different' LIMIT ?", (NAMED,))
    report = Report(published=sum(counts.values()), **counts, differences=[difference for (difference,) in named])
    for i, (store, holds) in enumerate(zip(stores, store_counts, strict=True)):
        # What is late may have come or gone since the store counted.
        (known,) = db.execute("SELECT count(*) FROM chunks WHERE held & ? OR late", (1 << i,)).fetchone()
        if (strangers := holds - known) > 0:
            report.different += 1
            report.differences.append(f"{store.name} holds {strangers} chunks more than the topic knows")
    return report


def _digest(text: str) -> bytes:
    return bytes.fromhex(sha256(text))
