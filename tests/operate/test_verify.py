"""If these fail, a lost or wrong chunk is not reported, or a good one is reported as lost."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support import LONGEST, chunk, read, record, send

from stream.config import Settings, StageName
from stream.errors import ConfigurationError, Outage
from stream.kafka import clients, topics
from stream.kafka.deadletters import Filter, letter_headers
from stream.operate import verify as checking
from stream.operate.redrive import plan, redrive
from stream.operate.verify import Report, verify
from stream.records import Headers, Record, Rejected, sha256
from stream.stores.base import Stored

pytestmark = pytest.mark.servers


class Store:
    """What a store holds, by chunk_id."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.held: dict[str, Stored] = {}
        self.looked: Callable[[], object] = lambda: None

    async def stored(self, chunk_ids: list[str]) -> dict[str, Stored]:
        self.looked()
        return {chunk_id: self.held[chunk_id] for chunk_id in chunk_ids if chunk_id in self.held}

    async def count(self) -> int:
        return sum(stored.text_sha256 is not None for stored in self.held.values())


class Stores(SimpleNamespace):
    """Two stores with the same content unless a test changes one of them."""

    def __init__(self) -> None:
        self.both = Store("Neo4j"), Store("OpenSearch")

    def hold(self, chunk_id: str, text: str = "a text about sockets", version: int = 1, complete: bool = True) -> None:
        for store in self.both:
            store.held[chunk_id] = Stored(version, sha256(text), complete)

    def remember_delete(self, chunk_id: str, version: int) -> None:
        for store in self.both:
            store.held[chunk_id] = Stored(version, None, complete=False)


@pytest.fixture
def both() -> Stores:
    return Stores()


def line(*arguments: Any, **fields: Any) -> tuple[bytes, bytes]:
    value = chunk(*arguments, **fields)
    return value["chunk_id"].encode(), json.dumps(value).encode()


async def delete(settings: Settings, chunk_id: str, headers: Headers = ()) -> None:
    async with clients.producer(settings) as producer:
        await producer.send_and_wait(settings.topic, key=chunk_id.encode(), headers=headers)


async def reject(settings: Settings, original: Record, stage: StageName = "embed") -> None:
    """The record's dead letter."""
    async with clients.producer(settings) as producer:
        await producer.send_and_wait(
            topics.dead_letters(settings, stage),
            key=original.key,
            value=original.value,
            headers=letter_headers(original, stage, Rejected("schema", "it is wrong")),
        )


def counts(report: Report) -> tuple[int, int, int, int, int]:
    return report.published, report.indexed, report.deleted, report.dead_lettered, report.different


# What the topic says


async def test_nothing_published_is_nothing_lost(flow, both):
    assert counts(await verify(flow, both)) == (0, 0, 0, 0, 0)


async def test_the_highest_version_is_the_truth_whatever_its_place(flow, both):
    await send(flow, [line("a", "first", 1), line("a", "third", 3), line("a", "second", 2)])
    both.hold("a", "third", 3)
    assert counts(await verify(flow, both)) == (1, 1, 0, 0, 0)


async def test_of_equal_versions_the_later_is_the_truth(flow, both):
    await send(flow, [line("a", "old", 1), line("a", "new", 1)])
    both.hold("a", "old", 1)
    assert (await verify(flow, both)).differences == ["a: Neo4j has another text, OpenSearch has another text"]


async def test_a_chunk_without_version_has_the_timestamp_of_its_record(flow, both):
    await send(flow, [(b"a", b'{"chunk_id": "a", "doc_id": "d", "text": "t"}')])
    (published,) = await read(flow, flow.topic)
    both.hold("a", "t", published.timestamp)
    assert (await verify(flow, both)).clean


async def test_a_tombstone_counts_by_its_version(flow, both):
    await send(flow, [line("kept", version=5), line("gone", version=5)])
    await delete(flow, "kept", [("version", b"4")])
    await delete(flow, "gone", [("version", b"6")])
    both.hold("kept", version=5)
    assert counts(await verify(flow, both)) == (2, 1, 1, 0, 0)


# What a store gets wrong


@pytest.mark.parametrize("store", [0, 1], ids=["Neo4j", "OpenSearch"])
@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        (None, "does not have it"),
        (Stored(2, None, False), "does not have it"),
        (Stored(1, sha256("t"), True), "has version 1, the topic 2"),
        (Stored(2, sha256("another"), True), "has another text"),
        (Stored(2, sha256("t"), False), "has it without its vector or terms"),
    ],
)
async def test_what_one_store_has_wrong_is_said_of_it_alone(flow, both, store, held, sentence):
    await send(flow, [line("a", "t", 2)])
    both.hold("a", "t", 2)
    if held:
        both.both[store].held["a"] = held
    else:
        del both.both[store].held["a"]
    report = await verify(flow, both)
    assert report.differences == [f"a: {both.both[store].name} {sentence}"]
    assert counts(report) == (1, 0, 0, 0, 1)


async def test_a_deleted_chunk_that_is_still_there_is_named(flow, both):
    await send(flow, [line("a")])
    await delete(flow, "a")
    both.hold("a")
    (difference,) = (await verify(flow, both)).differences
    assert difference.count("still has it, although it was deleted") == 2


EXTRA = [
    "Neo4j holds 1 chunks more than the topic knows",
    "OpenSearch holds 1 chunks more than the topic knows",
]


async def test_a_chunk_that_was_never_published_is_noticed(flow, both):
    await send(flow, [line("a")])
    both.hold("a")
    both.hold("extra")
    assert (await verify(flow, both)).differences == EXTRA


async def test_a_chunk_that_is_missing_does_not_hide_one_too_many(flow, both):
    await send(flow, [line("a")])
    both.hold("extra")
    _, *others = (await verify(flow, both)).differences
    assert others == EXTRA


async def test_a_dead_letter_does_not_hide_a_chunk_too_many(flow, both):
    await send(flow, [(b"broken", b"{")])
    await reject(flow, (await read(flow, flow.topic))[0])
    both.hold("extra")
    assert (await verify(flow, both)).differences == EXTRA


async def test_the_first_differences_are_named_and_all_are_counted(flow, both, monkeypatch):
    monkeypatch.setattr(checking, "NAMED", 3)
    await send(flow, [line(f"c{n}") for n in range(7)])
    report = await verify(flow, both)
    assert (len(report.differences), report.different) == (3, 7)


async def test_more_chunks_than_a_page_are_all_compared(flow, both, monkeypatch):
    monkeypatch.setattr(checking, "PAGE", 3)
    names = [f"c{n}" for n in range(7)]
    await send(flow, [line(name) for name in names])
    for name in names[:-1]:
        both.hold(name)
    told: list[tuple[int, int]] = []
    report = await verify(flow, both, progress=lambda *now: told.append(now))
    assert counts(report) == (7, 6, 0, 0, 1)
    assert told == [(3, 7), (6, 7), (7, 7)]


async def test_reading_says_how_much_of_the_topic_lies_behind(flow, both):
    await send(flow, [line(f"c{n}") for n in range(7)])
    told: list[tuple[int, int]] = []
    await verify(flow, both, reading=lambda *now: told.append(now))
    assert (told[0], told[-1]) == ((0, 7), (7, 7))


async def test_a_disk_without_room_is_a_sentence_that_says_what_to_do(flow, both, monkeypatch):
    monkeypatch.setattr(checking, "SCHEMA", f"PRAGMA max_page_count = 10; {checking.SCHEMA}")
    await send(flow, [line(f"c{n}") for n in range(1000)])
    with pytest.raises(ConfigurationError, match=r"full.*SQLITE_TMPDIR"):
        await verify(flow, both)


async def test_pages_are_asked_for_together_but_never_more_than_a_few(flow, both, monkeypatch):
    """With one page at a time, a store is idle while the other answers; with all at once, memory grows."""
    monkeypatch.setattr(checking, "PAGE", 1)
    names = [f"c{n}" for n in range(20)]
    await send(flow, [line(name) for name in names])
    for name in names:
        both.hold(name)
    asked, most = 0, 0

    async def stored(chunk_ids: list[str], store: Store = both.both[1]) -> dict[str, Stored]:
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        await asyncio.sleep(0)
        asked -= 1
        return await Store.stored(store, chunk_ids)

    both.both[1].stored = stored
    assert counts(await verify(flow, both)) == (20, 20, 0, 0, 0)
    assert most == checking.PAGES > 1


async def test_a_store_that_goes_down_on_the_way_ends_it(flow, both, monkeypatch):
    monkeypatch.setattr(checking, "PAGE", 1)
    await send(flow, [line(f"c{n}") for n in range(20)])
    looks = iter(range(20))

    def looked() -> None:
        if next(looks) == 5:
            raise Outage("it is down", "opensearch")

    both.both[1].looked = looked
    with pytest.raises(Outage, match="it is down"):
        await verify(flow, both)
    asking = [task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == "Store.stored"]
    assert asking == [], "it asks for nothing any more"


# A store that is ahead of the topic


@pytest.mark.parametrize("ahead", [(0,), (1,), (0, 1)], ids=["Neo4j", "OpenSearch", "both"])
async def test_a_store_with_a_higher_version_is_ahead_and_nothing_is_lost(flow, both, ahead):
    await send(flow, [line("a", "t", 2), line("b", "t", 2)])
    both.hold("a", "t", 2)
    both.hold("b", "t", 2)
    for n in ahead:
        both.both[n].held["a"] = Stored(3, sha256("newer"), True)
    report = await verify(flow, both)
    assert (report.clean, report.ahead, counts(report)) == (True, 1, (2, 1, 0, 0, 0))
    assert report.ahead_chunks == [f"a: {', '.join(f'{both.both[n].name} has version 3, the topic 2' for n in ahead)}"]


async def test_a_store_that_remembers_a_later_delete_is_ahead_and_an_earlier_one_has_lost_it(flow, both):
    await send(flow, [line(name, version=5) for name in ("earlier", "same", "later")])
    for name, version in {"earlier": 4, "same": 5, "later": 6}.items():
        both.remember_delete(name, version)
    report = await verify(flow, both)
    assert (report.ahead, report.different) == (1, 2)
    (ahead,) = report.ahead_chunks
    assert ahead.startswith("later: Neo4j deleted it at version 6, the topic has 5")
    assert [difference.partition(":")[0] for difference in report.differences] == ["earlier", "same"]


async def test_a_chunk_with_a_higher_version_than_its_tombstone_is_ahead(flow, both):
    await send(flow, [line("shown", version=7), line("gone", version=5)])
    await delete(flow, "shown", [("version", b"6")])
    await delete(flow, "gone", [("version", b"6")])
    await delete(flow, "shown again", [("version", b"6")])
    both.hold("shown", version=7)
    both.remember_delete("gone", 9)
    both.hold("shown again", version=7)
    report = await verify(flow, both)
    assert (report.indexed, report.deleted, report.ahead, report.different) == (1, 1, 1, 0)
    assert "shown again: Neo4j has version 7, the topic deletes version 6" in report.ahead_chunks[0]


@pytest.mark.parametrize("other", [None, Stored(1, sha256("t"), True), Stored(2, sha256("t"), False)])
async def test_one_store_that_is_ahead_does_not_excuse_the_other(flow, both, other):
    await send(flow, [line("a", "t", 2)])
    both.hold("a", "newer", 3)
    del both.both[1].held["a"]
    if other:
        both.both[1].held["a"] = other
    report = await verify(flow, both)
    assert (report.ahead, report.different) == (0, 1)


async def test_what_is_published_and_stored_while_the_stores_are_asked_is_not_ahead(flow, both):
    await send(flow, [line("a"), line("b")])
    both.hold("a")
    both.hold("b")

    async def stored(chunk_ids: list[str], store: Store = both.both[0]) -> dict[str, Stored]:
        await send(flow, [line("a", version=2)])
        both.hold("a", version=2)
        return await Store.stored(store, chunk_ids)

    both.both[0].stored = stored
    report = await verify(flow, both)
    assert (report.clean, report.ahead, report.indexed, report.on_their_way) == (True, 0, 1, 1)


async def test_chunks_whose_versions_fall_are_named_before_compaction_makes_the_stores_ahead(flow, both):
    falls, mended, grows = (7, 6), (7, 6, 7), (6, 7)
    for name, versions in {"falls": falls, "mended": mended, "grows": grows}.items():
        await send(flow, [line(name, version=version) for version in versions])
        both.hold(name, version=7)
    await send(flow, [line("deleted too low", version=7)])
    await delete(flow, "deleted too low", [("version", b"3")])
    both.hold("deleted too low", version=7)
    report = await verify(flow, both)
    assert (report.clean, report.indexed, report.versions_fall) == (True, 4, 2)
    assert report.falling_chunks == [
        "deleted too low: its last record has version 3, an earlier one 7",
        "falls: its last record has version 6, an earlier one 7",
    ]


async def test_versions_in_another_partition_do_not_fall(flow, both):
    """Compaction keeps the last record of each partition, so the highest version stays."""
    async with clients.producer(flow) as producer:
        for partition, version in [(0, 7), (1, 6), (1, 7), (0, 8), (1, 5)]:
            key, value = line("a", version=version)
            await producer.send_and_wait(flow.topic, key=key, value=value, partition=partition)
    both.hold("a", version=8)
    report = await verify(flow, both)
    assert (report.indexed, report.versions_fall) == (1, 0)


async def test_a_chunk_whose_last_record_is_broken_is_no_stranger(flow, both):
    """Compaction removes the valid record and keeps the broken one; the stores have the valid one."""
    await send(flow, [line("a", typo=1), (b"never good", b"{")])
    for broken in await read(flow, flow.topic):
        await reject(flow, broken)
    both.hold("a", version=3)
    report = await verify(flow, both)
    assert (report.clean, report.ahead, report.dead_lettered) == (True, 1, 2)
    assert "a: Neo4j has version 3, the topic has only a record that breaks the contract" in report.ahead_chunks[0]


# Dead letters that are gone


async def publish_at(settings: Settings, days_ago: float, *records: tuple[bytes, bytes]) -> None:
    async with clients.producer(settings) as producer:
        for key, value in records:
            at = int((time.time() - days_ago * 86_400) * 1000)
            await producer.send_and_wait(settings.topic, key=key, value=value, timestamp_ms=at)


async def test_a_broken_record_older_than_dead_letters_are_kept_is_judged_again(flow, both):
    """Otherwise one expired letter makes every reindex impossible for as long as the record is in the topic."""
    flow = flow.model_copy(update={"dlq_retention_days": 10})
    await publish_at(flow, 11, line("old", typo=1))
    await publish_at(flow, 9, line("young", typo=1))
    report = await verify(flow, both)
    assert (report.rejected, report.different) == (1, 1)
    young = next(record for record in await read(flow, flow.topic) if record.key == b"young")
    assert report.differences[0].startswith(f"partition {young.partition}, offset {young.offset}: has no dead letter")


async def test_a_record_without_a_timestamp_counts_as_old(flow, both):
    async with clients.producer(flow) as producer:
        batch = producer.create_batch()
        batch.append(key=b"undated", value=b"{", timestamp=-1)
        await (await producer.send_batch(batch, flow.topic, partition=0))
    assert [found.timestamp for found in await read(flow, flow.topic)] == [-1]
    report = await verify(flow, both)
    assert (report.clean, report.rejected) == (True, 1)


async def test_a_good_record_is_not_excused_by_its_age(flow, both):
    await publish_at(flow, 1000, line("a"))
    assert counts(await verify(flow, both)) == (1, 0, 0, 0, 1)


async def test_a_broken_record_that_a_later_good_one_mends_needs_no_letter(flow, both):
    await send(flow, [line("mended", typo=1), line("deleted", typo=1), line("mended")])
    await delete(flow, "deleted")
    both.hold("mended")
    report = await verify(flow, both)
    assert (report.clean, report.indexed, report.deleted, report.rejected) == (True, 1, 1, 2)


async def test_an_earlier_good_record_does_not_excuse_a_broken_one(flow, both):
    await send(flow, [line("a"), line("a", typo=1)])
    both.hold("a")
    assert counts(await verify(flow, both)) == (2, 1, 0, 0, 1)


async def test_what_a_model_or_a_store_refused_can_be_accepted_by_name(flow, both):
    await send(flow, [line("refused", version=2), line("lost"), line("a"), line("purged", typo=1)])
    both.hold("refused", version=1)
    both.hold("a")
    report = await verify(flow, both, accept=["refused", "purged", "a", "unknown"])
    assert (report.published, report.indexed, report.accepted, report.different) == (4, 1, 2, 1)
    assert report.differences == ["lost: Neo4j does not have it, OpenSearch does not have it"]
    accepted = sorted(report.accepted_chunks)
    assert accepted[0].startswith("partition ")
    assert accepted[1:] == ["refused: Neo4j has version 1, the topic 2, OpenSearch has version 1, the topic 2"]
    assert (await verify(flow, both, accept=["refused", "purged", "lost"])).clean


# Dead letters


async def test_a_broken_record_without_a_dead_letter_is_named_by_its_place(flow, both):
    await send(flow, [(b"broken", b"{")])
    (broken,) = await read(flow, flow.topic)
    (difference,) = (await verify(flow, both)).differences
    assert difference.startswith(f"partition {broken.partition}, offset {broken.offset}: has no dead letter")


async def test_a_broken_record_is_accounted_for_by_its_own_dead_letter_only(flow, both):
    await send(flow, [(b"same key", b"{"), (b"same key", b"{")])
    first, second = await read(flow, flow.topic)
    await reject(flow, first)
    assert counts(await verify(flow, both)) == (2, 0, 0, 1, 1)
    await reject(flow, second)
    assert counts(await verify(flow, both)) == (2, 0, 0, 2, 0)


@pytest.mark.parametrize("stage", ["expand", "index"])
async def test_a_chunk_that_a_later_stage_rejected_is_accounted_for(flow, both, stage):
    await send(flow, [line("a")])
    value = json.dumps(chunk("a") | {"embedding_qwen": "AAAA"})
    await reject(flow, record(value.encode(), "a"), stage)
    assert counts(await verify(flow, both)) == (1, 0, 0, 1, 0)


async def test_the_dead_letter_of_an_old_version_does_not_excuse_the_new_one(flow, both):
    await send(flow, [line("a", version=1), line("a", version=2)])
    await reject(flow, (await read(flow, flow.topic))[0])
    assert counts(await verify(flow, both)) == (1, 0, 0, 0, 1)


async def test_the_dead_letter_of_a_broken_record_does_not_excuse_the_one_that_mends_it(flow, both):
    await send(flow, [line("a", typo=1), line("a")])
    await reject(flow, (await read(flow, flow.topic))[0])
    assert counts(await verify(flow, both)) == (2, 0, 0, 1, 1)
    both.hold("a")
    assert counts(await verify(flow, both)) == (2, 1, 0, 1, 0)


async def test_a_letter_that_was_redriven_excuses_nothing_any_more(flow, both):
    await send(flow, [line("a"), (b"broken", b"{")])
    for original in await read(flow, flow.topic):
        await reject(flow, original)
    assert counts(await verify(flow, both)) == (2, 0, 0, 2, 0)
    await redrive(flow, "embed", await plan(flow, "embed", Filter()))
    assert counts(await verify(flow, both)) == (2, 0, 0, 0, 2)
    both.hold("a")
    newest = {found.key: found for found in await read(flow, flow.topic)}
    await reject(flow, newest[b"broken"])
    assert counts(await verify(flow, both)) == (2, 1, 0, 1, 0)


async def test_letters_with_numbers_that_no_record_has_excuse_nothing(flow, both):
    await send(flow, [line("a")])
    too_large = record(json.dumps(chunk("a", version=2**63)).encode(), "a")
    await reject(flow, too_large, "index")
    await reject(flow, replace(too_large, topic=flow.topic, offset=2**63))
    assert counts(await verify(flow, both)) == (1, 0, 0, 0, 1)


# Waiting


async def test_a_chunk_that_arrives_while_it_waits_is_not_lost(flow, both):
    await send(flow, [line("a"), line("b")])
    both.hold("a")
    looks = iter(range(100))
    both.both[0].looked = lambda: both.hold("b") if next(looks) == 2 else None
    async with asyncio.timeout(LONGEST):
        assert counts(await verify(flow, both, wait=1000)) == (2, 2, 0, 0, 0)


async def test_stores_that_are_slow_do_not_use_the_wait_up(flow, both):
    await send(flow, [line("a")])
    looks = iter(range(2))
    both.both[0].looked = lambda: both.hold("a") if next(looks) else time.sleep(0.2)
    assert counts(await verify(flow, both, wait=0.1)) == (1, 1, 0, 0, 0)


async def test_a_dead_letter_that_arrives_while_it_waits_is_seen(flow, both):
    await send(flow, [line("a")])
    (original,) = await read(flow, flow.topic)
    looked = asyncio.Event()
    both.both[0].looked = looked.set
    async with asyncio.timeout(LONGEST):
        waiting = asyncio.create_task(verify(flow, both, wait=1000))
        await looked.wait()
        await reject(flow, original)
        assert counts(await waiting) == (1, 0, 0, 1, 0)


async def test_it_does_not_wait_for_ever(flow, both):
    await send(flow, [line("a")])
    assert counts(await verify(flow, both, wait=0.1)) == (1, 0, 0, 0, 1)


async def test_who_goes_on_writing_does_not_keep_it_from_an_answer(flow, both):
    await send(flow, [line("a"), line("b"), line("gone")])
    for chunk_id in ("a", "gone"):
        both.hold(chunk_id)
    rounds = iter(range(1000))

    async def count(store=both.both[0]) -> int:
        """Before each comparison new records are published, and earlier ones have reached the stores."""
        n = next(rounds)
        await send(flow, [line(f"new {n}"), line("a", version=2 + n)])
        await delete(flow, "gone", [("version", b"2")])
        if n == 2:
            both.hold("b")
        if n:
            both.hold(f"new {n - 1}")
        return await Store.count(store)

    both.both[0].count = count
    async with asyncio.timeout(LONGEST):
        report = await verify(flow, both, wait=1000)
    assert (report.clean, report.on_their_way) == (True, 3), "a new chunk, a version, a tombstone"
    assert next(rounds) == 3


async def test_what_was_lost_before_it_began_is_not_on_its_way(flow, both):
    await send(flow, [line("lost"), line("a")])
    both.hold("a")
    both.both[0].looked = lambda: both.hold("stranger")
    report = await verify(flow, both, wait=1)
    assert (report.on_their_way, report.different) == (0, 3)
    assert report.differences[0].startswith("lost: Neo4j does not have it")
