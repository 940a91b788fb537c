"""Checks the outputs of a stage for generated records, whether the stage runs in this process or in a worker."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import get_args

import orjson
from strategies import CASE_HEADER, Case
from support import CONTRACTS, names

from stream.config import Settings, StageName
from stream.contracts import problem
from stream.kafka.deadletters import ATTEMPTS_HEADER, PREFIX, DeadLetter, without_letter
from stream.records import PUBLISHED_HEADER, VECTOR_HEADER, Decoder, Headers, Reason, Record, Tombstone, header, number
from stream.stores import Stores
from stream.stores.base import Stored

AFTER: dict[StageName, StageName] = {"embed": "expand", "expand": "index"}


def number_of(record: Record) -> int:
    """The number of the case that a record comes from."""
    return int(header(record.headers, CASE_HEADER) or b"-1")


def check(
    stage: StageName, settings: Settings, cases: Sequence[Case], outputs: Sequence[Record], letters: Sequence[Record]
) -> list[Case]:
    """Checks outputs and letters, each in the order of its topic; returns the cases that came through."""
    published, rejected = by_case(outputs), by_case(letters)
    assert published.keys() | rejected.keys() <= set(range(len(cases)))
    through = []
    for n, case in enumerate(cases):
        made, dead = published[n], rejected[n]
        assert len(dead) <= 1, f"rejected {len(dead)} times: {case}"
        assert len(made) == (0 if dead or stage == "index" else 1), f"{len(made)} outputs, {len(dead)} letters: {case}"
        if dead:
            check_letter(stage, case, dead[0])
        else:
            assert None in case.outcomes, f"came through, expected {set(case.outcomes)}: {case}"
            through.append(case)
        for output in made:
            check_output(stage, settings, case, output)
    check_order(outputs)
    return through


def by_case(records: Iterable[Record]) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        found[number_of(record)].append(record)
    return found


def check_letter(stage: StageName, case: Case, record: Record) -> None:
    original = case.record
    letter = DeadLetter.of(record)
    assert letter.reason in case.outcomes, f"{letter.reason}, {letter.detail}; expected {set(case.outcomes)}: {case}"
    assert letter.reason in get_args(Reason)
    assert letter.detail.strip()
    assert letter.stage == stage
    assert (record.key, record.value) == (original.key, original.value), case
    assert same(without_letter(record.headers), without_letter(original.headers)), case
    assert letter.timestamp == original.timestamp, case
    assert letter.attempts == (number(header(original.headers, ATTEMPTS_HEADER)) or 0) + 1
    described = {name: (value or b"").decode() for name, value in record.headers if name.startswith(PREFIX)}
    assert problem(described, "dead-letter") is None, f"{problem(described, 'dead-letter')}: {case}"


def check_output(stage: StageName, settings: Settings, case: Case, output: Record) -> None:
    original = case.record
    after = AFTER[stage]
    wanted = Decoder.of(CONTRACTS[stage], settings)(original)
    found = Decoder.of(CONTRACTS[after], settings)(output)
    assert output.key == original.key, case
    if isinstance(wanted, Tombstone):
        assert found == wanted, case
        own = [one for one in travelling(original) if one[0] != "version"]
        assert same([one for one in output.headers if one[0] != "version"], own), case
        return
    assert isinstance(wanted, dict), case
    assert isinstance(found, dict), f"{found}: {case}"
    written = orjson.loads(original.value or b"")
    if stage != "embed":
        written.pop(VECTOR_HEADER, None)  # in the JSON of earlier releases
        assert found[VECTOR_HEADER] == wanted[VECTOR_HEADER], case
    assert {name: found[name] for name in written} == written, case
    assert found["version"] == wanted["version"], case
    assert problem(orjson.loads(output.value or b""), CONTRACTS[after]) is None, case
    assert same([one for one in output.headers if one[0] != VECTOR_HEADER], travelling(original)), case


def travelling(record: Record) -> Headers:
    """The headers of a record's output: its own without a dead letter's, and the time of publishing."""
    own = [one for one in without_letter(record.headers) if one[0] != VECTOR_HEADER]
    if number(header(own, PUBLISHED_HEADER)) is None and record.timestamp >= 0:
        own.append((PUBLISHED_HEADER, str(record.timestamp).encode()))
    return own


def check_order(outputs: Sequence[Record]) -> None:
    last: dict[bytes | None, int] = {}
    for output in outputs:
        assert number_of(output) > last.get(output.key, -1), f"out of order: {output.key!r}"
        last[output.key] = number_of(output)


def same(one: Headers, other: Headers) -> bool:
    return [tuple(header) for header in one] == [tuple(header) for header in other]


async def check_stores(stores: Stores, cases: Sequence[Case], through: Sequence[Case], settings: Settings) -> None:
    """Both stores hold each chunk in its highest version that came through; of equal versions, the later one.

    A record that one store rejected may be in the other.
    """
    newest: dict[str, Tombstone | dict] = {}
    refused: dict[str, list[Stored]] = defaultdict(list)
    for case in cases:
        write = Decoder.of("expanded", settings)(case.record)
        if case in through:
            chunk_id, version = names(write)
            if chunk_id not in newest or version >= names(newest[chunk_id])[1]:
                newest[chunk_id] = write
        elif "refused-by-opensearch" in case.outcomes and isinstance(write, dict):
            refused[write["chunk_id"]].append(Stored(write["version"], write["text_sha256"], complete=True))
    for store in stores.both:
        held = {name: found for name, found in (await store.stored(list(newest))).items() if found.text_sha256}
        for chunk_id, write in newest.items():
            wanted = None if isinstance(write, Tombstone) else Stored(write["version"], write["text_sha256"], True)
            others = refused[chunk_id] if store.name == "Neo4j" else []
            assert held.get(chunk_id) in [wanted, *others], f"{store.name} {chunk_id!r}: {held.get(chunk_id)}, {wanted}"
