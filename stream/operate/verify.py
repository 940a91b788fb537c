"""Verifies that every chunk of the topic is in both stores or has a dead letter.

The reference is the topic: for each chunk the record with the highest version, tombstones included (of equal versions
the later one). A store agrees if it has that version, with that text, and its vector or terms. A record that was
published after the check began may not be in the stores yet. The check does not wait for it, because producers go on.

A store may be ahead: it has a higher version than the topic. The cause is a chunk whose versions fall: compaction keeps
the last record, the stores keep the highest version. No data is lost, but a new generation gets the topic's version.

What was read is in a private SQLite database: a temporary file of about 60 bytes a chunk plus its chunk_id, in the
folder that SQLITE_TMPDIR or TMPDIR names, else /var/tmp. So memory does not grow with the number of chunks. The stores
are read in pages, a few of them concurrently.
"""

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

import orjson

from stream.config import STAGES, Settings
from stream.contracts import problem
from stream.errors import ConfigurationError
from stream.kafka import deadletters
from stream.kafka.deadletters import DeadLetter
from stream.kafka.reader import read_to_end
from stream.kafka.topics import DAY_MS
from stream.records import Decoder, Record, Rejected, Tombstone, sha256
from stream.stores import Stores
from stream.stores.base import Store, Stored

PAGE = 500  # chunks in one request to the stores
PAGES = 4  # pages requested concurrently
RECHECK_PAUSE = 0.5  # seconds
NAMED = 20  # chunks of each kind that a report names
NO_VERSION = -1  # lower than any version: the topic's only records of the chunk break the contract

Progress = Callable[[int, int], None]  # done, total

SCHEMA = """
-- The newest record of each chunk, its partition and offset. No hash: deleted. `late`: published after the check began.
-- `falls_to`: the version of a later record in its partition, if that is lower. `held`: one bit for each store that has
-- the chunk. `wrong`: the difference as a sentence, empty if the stores agree, NULL before they were compared. `ahead`:
-- all stores that do not agree have a higher version.
CREATE TABLE chunks (
    chunk_id TEXT PRIMARY KEY, version INTEGER, sha256 BLOB, partition INTEGER, offset INTEGER, late INTEGER,
    falls_to INTEGER, held INTEGER DEFAULT 0, wrong TEXT, ahead INTEGER DEFAULT 0
) WITHOUT ROWID;

-- The records that are no chunks, and the chunk that their key names. `old`: older than dead letters are kept.
CREATE TABLE broken (
    partition INTEGER, offset INTEGER, late INTEGER, detail TEXT, chunk_id TEXT, old INTEGER,
    PRIMARY KEY (partition, offset)
) WITHOUT ROWID;

-- Dead letters that were not redriven: of the topic's records, and of records that a stage made from them.
CREATE TABLE dead_records (partition INTEGER, offset INTEGER, PRIMARY KEY (partition, offset)) WITHOUT ROWID;
CREATE TABLE dead_chunks (
    chunk_id TEXT, version INTEGER, sha256 BLOB, PRIMARY KEY (chunk_id, version, sha256)
) WITHOUT ROWID;

CREATE TABLE accepted (chunk_id TEXT PRIMARY KEY) WITHOUT ROWID;

CREATE VIEW accounts AS
SELECT
    format('partition %d, offset %d: has no dead letter (%s)', partition, offset, detail) AS said,
    CASE
        WHEN (partition, offset) IN (SELECT partition, offset FROM dead_records) THEN 'dead_lettered'
        WHEN old THEN 'rejected'
        WHEN EXISTS (
            SELECT * FROM chunks AS good
            WHERE good.chunk_id = broken.chunk_id AND version >= 0
            AND good.partition = broken.partition AND good.offset > broken.offset
        ) THEN 'rejected'
        WHEN chunk_id IN (SELECT chunk_id FROM accepted) THEN 'accepted'
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
        WHEN (partition, offset) IN (SELECT partition, offset FROM dead_records) AND version >= 0 THEN 'dead_lettered'
        WHEN (chunk_id, version, sha256) IN (SELECT chunk_id, version, sha256 FROM dead_chunks) THEN 'dead_lettered'
        WHEN late THEN 'on_their_way'
        WHEN ahead THEN 'ahead'
        WHEN chunk_id IN (SELECT chunk_id FROM accepted) THEN 'accepted'
        ELSE 'different'
    END
FROM chunks WHERE version >= 0 OR wrong <> ''
"""

NOTE = """
INSERT INTO chunks (chunk_id, version, sha256, partition, offset, late) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
    version = excluded.version, sha256 = excluded.sha256, partition = excluded.partition, offset = excluded.offset,
    late = excluded.late, falls_to = NULL, wrong = NULL
WHERE excluded.version >= version
"""

NOTE_FALL = "UPDATE chunks SET falls_to = ? WHERE (chunk_id, partition) = (?, ?)"

UNSETTLED = """
SELECT chunk_id, version, sha256 FROM chunks WHERE wrong IS NOT '' AND chunk_id > ? ORDER BY chunk_id LIMIT ?
"""


@dataclass
class Report:
    """The result of a check. `published` is the sum of the eight counts after it. Each list has the first `NAMED`
    entries of its kind, with the reason.

    - `rejected`: records that break the contract and have no dead letter any more, because they are older than dead
      letters are kept or because a later record has replaced them.
    - `on_their_way`: published after the check began and not in the stores yet.
    - `ahead`: a store has a higher version than the topic, or has recorded the deletion of a higher version.
    - `accepted`: different, but accepted by the caller.
    - `different`: lost or wrong.
    - `versions_fall`: chunks whose last record has a lower version than an earlier one: after compaction the stores
      will be ahead of the topic. They are also counted above.
    """

    published: int = 0
    indexed: int = 0
    deleted: int = 0
    dead_lettered: int = 0
    rejected: int = 0
    on_their_way: int = 0
    ahead: int = 0
    accepted: int = 0
    different: int = 0
    versions_fall: int = 0
    differences: list[str] = field(default_factory=list)
    ahead_chunks: list[str] = field(default_factory=list)
    accepted_chunks: list[str] = field(default_factory=list)
    falling_chunks: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing is lost and nothing is wrong."""
        return not self.different


def _silent(*_: int) -> None:
    pass


async def verify(
    settings: Settings,
    stores: Stores,
    *,
    wait: float = 0,
    accept: Collection[str] = (),
    reading: Progress = _silent,
    progress: Progress = _silent,
) -> Report:
    """Compares both stores with the topic.

    While chunks differ, this reads new records and compares these chunks again, for up to `wait` seconds, because
    workers may still write them. `accept` names chunks that may differ. `reading` gets the topic's offsets read and in
    total, `progress` the chunks compared and in total. Raises `ConfigurationError` if the temporary file cannot be
    written.
    """
    with _database() as db:
        db.executemany("INSERT OR IGNORE INTO accepted VALUES (?)", ((chunk_id,) for chunk_id in accept))
        topic = _Topic(settings, db)
        deadline = None  # counts from the end of the first comparison, which may take longer than `wait`
        while True:
            # Count before reading the topic, so that the topic has every chunk that was counted.
            counts = [await store.count() for store in stores.both]
            await topic.read_on(reading)
            await _compare(db, stores.both, progress)
            report = _report(db, stores.both, counts)
            if report.different or report.ahead:
                await topic.read_on()  # a store may already have records that were published after the last read
                report = _report(db, stores.both, counts)
            now = asyncio.get_running_loop().time()
            deadline = now + wait if deadline is None else deadline
            if report.clean or now >= deadline:
                return report
            await asyncio.sleep(RECHECK_PAUSE)


@contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect("")) as db:  # "" means a temporary file, created when the cache of 2 MB is full
        try:
            db.executescript(SCHEMA)
            yield db
        except sqlite3.OperationalError as error:
            raise ConfigurationError(
                f"the temporary file cannot be written ({error}): free disk space, "
                "or set SQLITE_TMPDIR to a folder with more space"
            ) from error


class _Topic:
    """Reads the topic and the dead letters into the database."""

    def __init__(self, settings: Settings, db: sqlite3.Connection) -> None:
        self._settings = settings
        self._decode = Decoder.of("chunk", settings)
        self._db = db
        self._read: dict[int, int] = {}  # the next offset, by partition
        self._late = False
        self._old = time.time() * 1000 - settings.dlq_retention_days * DAY_MS  # older letters may be gone

    async def read_on(self, progress: Progress = _silent) -> None:
        """Reads new records, and all dead letters again: a letter no longer counts once it is redriven."""
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
        match self._decode(record):
            case Rejected(detail=detail):
                chunk_id, old = _chunk_id(record.key), record.timestamp < self._old
                self._db.execute(
                    "INSERT INTO broken VALUES (?, ?, ?, ?, ?, ?)", (*place, self._late, detail, chunk_id, old)
                )
                if chunk_id:  # compaction may have removed the valid record that the stores have
                    self._db.execute(NOTE, (chunk_id, NO_VERSION, None, *place, self._late))
            case Tombstone(chunk_id, version):
                self._note_chunk(chunk_id, version, None, place)
            case chunk:
                self._note_chunk(chunk["chunk_id"], chunk["version"], _digest(chunk["text"]), place)

    def _note_chunk(self, chunk_id: str, version: int, digest: bytes | None, place: tuple[int, int]) -> None:
        if not self._db.execute(NOTE, (chunk_id, version, digest, *place, self._late)).rowcount:
            self._db.execute(NOTE_FALL, (version, chunk_id, place[0]))  # each partition is compacted on its own

    def _note_letter(self, letter: DeadLetter) -> None:
        place = letter.partition, letter.offset
        with suppress(OverflowError):  # a letter that another program wrote may have numbers too large for SQLite
            if letter.redriven is not None:
                if letter.topic == self._settings.topic:  # its copy at the end of the topic is checked instead
                    self._db.execute("DELETE FROM broken WHERE (partition, offset) = (?, ?)", place)
            elif letter.topic == self._settings.topic:
                self._db.execute("INSERT OR IGNORE INTO dead_records VALUES (?, ?)", place)
            elif chunk := _made_of(letter):
                self._db.execute("INSERT OR IGNORE INTO dead_chunks VALUES (?, ?, ?)", chunk)


def _made_of(letter: DeadLetter) -> tuple[str, int, bytes] | None:
    """The chunk that a later stage's letter accounts for; None if the letter has no chunk."""
    try:
        chunk = orjson.loads(letter.record.value or b"")
        chunk_id, version, digest = chunk["chunk_id"], chunk["version"], _digest(chunk["text"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return (chunk_id, version, digest) if isinstance(chunk_id, str) and isinstance(version, int) else None


def _chunk_id(key: bytes | None) -> str | None:
    """The chunk_id that a key names; None if the key is not a valid chunk_id."""
    try:
        chunk_id = (key or b"").decode()
    except UnicodeDecodeError:
        return None
    return None if problem({"chunk_id": chunk_id, "doc_id": "-", "text": "-"}, "chunk") else chunk_id


Page = list[tuple[str, int, bytes | None]]  # chunk_id, version, hash of the text


async def _compare(db: sqlite3.Connection, stores: Sequence[Store], progress: Progress = _silent) -> None:
    """Compares every chunk on which the stores are not yet known to agree with the topic."""
    (total,) = db.execute("SELECT count(*) FROM chunks WHERE wrong IS NOT ''").fetchone()
    done, pages = 0, _pages(db)
    asked: deque[tuple[Page, asyncio.Future[list[dict[str, Stored]]]]] = deque()

    def ask_on() -> None:
        while len(asked) < PAGES and (page := next(pages, None)):
            chunk_ids = [chunk_id for chunk_id, *_ in page]
            asked.append((page, asyncio.gather(*(store.stored(chunk_ids) for store in stores))))

    try:
        ask_on()
        while asked:
            page, answers = asked[0]
            found = await answers
            asked.popleft()
            ask_on()
            db.executemany(
                "UPDATE chunks SET held = ?, wrong = ?, ahead = ? WHERE chunk_id = ?",
                [(*_compared(stores, [held.get(one[0]) for held in found], *one[1:]), one[0]) for one in page],
            )
            done += len(page)
            progress(done, total)
    finally:
        for _, answers in asked:
            answers.cancel()
        await asyncio.gather(*(answers for _, answers in asked), return_exceptions=True)


def _pages(db: sqlite3.Connection) -> Iterator[Page]:
    last = ""
    while page := db.execute(UNSETTLED, (last, PAGE)).fetchall():
        yield page
        last = page[-1][0]


def _compared(
    stores: Sequence[Store], held: Sequence[Stored | None], version: int, digest: bytes | None
) -> tuple[int, str, bool]:
    """The columns `held`, `wrong` and `ahead` of a chunk."""
    bits = sum(1 << i for i, stored in enumerate(held) if stored and stored.text_sha256)
    wrongs = [_difference(version, digest, stored) for stored in held]
    wrong = ", ".join(f"{store.name} {what}" for store, what in zip(stores, wrongs, strict=True) if what)
    ahead = all(stored and stored.version > version for stored, what in zip(held, wrongs, strict=True) if what)
    return bits, wrong, ahead


def _difference(version: int, digest: bytes | None, stored: Stored | None) -> str | None:
    if digest is None:
        return _undeleted(version, stored) if stored and stored.text_sha256 else None
    if stored is None:
        return "does not have it"
    if stored.text_sha256 is None:
        newer = stored.version > version
        return f"deleted it at version {stored.version}, the topic has {version}" if newer else "does not have it"
    if stored.version != version:
        return f"has version {stored.version}, the topic {version}"
    if stored.text_sha256 != digest.hex():
        return "has another text"
    return None if stored.complete else "has it without its vector or terms"


def _undeleted(version: int, stored: Stored) -> str:
    if version == NO_VERSION:
        return f"has version {stored.version}, the topic has only a record that breaks the contract"
    if stored.version > version:
        return f"has version {stored.version}, the topic deletes version {version}"
    return "still has it, although it was deleted"


def _report(db: sqlite3.Connection, stores: Sequence[Store], store_counts: Sequence[int]) -> Report:
    counts = dict(db.execute("SELECT account, count(*) FROM accounts GROUP BY account").fetchall())
    (falling,) = db.execute("SELECT count(*) FROM chunks WHERE falls_to IS NOT NULL").fetchone()

    def named(query: str) -> list[str]:
        return [said for (said,) in db.execute(f"{query} LIMIT ?", (NAMED,))]

    report = Report(
        published=sum(counts.values()),
        **counts,
        versions_fall=falling,
        differences=named("SELECT said FROM accounts WHERE account = 'different'"),
        ahead_chunks=named("SELECT said FROM accounts WHERE account = 'ahead'"),
        accepted_chunks=named("SELECT said FROM accounts WHERE account = 'accepted'"),
        falling_chunks=named(
            "SELECT format('%s: its last record has version %d, an earlier one %d', chunk_id, falls_to, version) "
            "FROM chunks WHERE falls_to IS NOT NULL"
        ),
    )
    for i, (store, holds) in enumerate(zip(stores, store_counts, strict=True)):
        # Late chunks may have been added or deleted after the store was counted.
        (known,) = db.execute("SELECT count(*) FROM chunks WHERE held & ? OR late", (1 << i,)).fetchone()
        if (strangers := holds - known) > 0:
            report.different += 1
            report.differences.append(f"{store.name} holds {strangers} chunks more than the topic knows")
    return report


def _digest(text: str) -> bytes:
    return bytes.fromhex(sha256(text))
