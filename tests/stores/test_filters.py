"""If these fail, a filter finds other chunks in one store than in the other, or a chunk's fields break a store."""

from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from typing import Any

import pytest
from filtered import chunks, filters
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from pydantic import TypeAdapter
from support import expanded, forget_facets

from stream import facets
from stream.errors import ConfigurationError
from stream.health import doctor
from stream.records import Expanded, Tombstone
from stream.search.filters import Filter, cypher, lucene, matches, opensearch
from stream.stores import Stores
from stream.stores.base import Put
from stream.stores.neo4j import Neo4jStore
from stream.vectors import unpack

pytestmark = pytest.mark.servers

FILTER: TypeAdapter[Filter] = TypeAdapter(Filter)
CHUNKS, KEYS = 500, 20  # keys of a chunk: no chunk has those of another
VALUES: list[Callable[[int], Any]] = [
    str,
    int,
    float,
    bool,
    lambda n: [n, str(n), None],
    lambda n: f"2024-01-{n % 28 + 1:02}",
]
NOTHING = {"not": {"field": "metadata.none", "equal": 1}}  # true of every chunk

Known = dict[str, frozenset[str]]  # by chunk_id: the tokens


def put(chunk: Expanded) -> Put:
    return Put(chunk, unpack(chunk["embedding_qwen"]))


async def fields(stores: Stores) -> Any:
    """The mapping of OpenSearch's index."""
    ((mapping),) = (await stores.opensearch._call("GET", f"/{stores.opensearch._target}/_mapping")).values()
    return mapping


async def write(stores: Stores, written: list[Expanded]) -> Known:
    for store in stores.both:
        assert await store.write([put(chunk) for chunk in written]) == {}
        await store.count()  # refreshes
    return {chunk["chunk_id"]: frozenset(facets.tokens(chunk)) for chunk in written}


@pytest.fixture
async def many_keys(stores: Stores) -> Known:
    """Chunks with 10,000 keys, and a key of several types. Also a deleted chunk, and one of an earlier release."""
    known: Known = {}
    for first in range(0, CHUNKS, 100):
        numbers = range(first, first + 100)
        known |= await write(stores, [_with_many_keys(n) for n in numbers])
    await write(stores, [expanded("deleted", metadata={"mixed": 1}), expanded("old", metadata={"mixed": 1})])
    for store in stores.both:
        await store.write([Tombstone("deleted", 2)])
    await forget_facets(stores, "old")
    return known


def _with_many_keys(n: int) -> Expanded:
    keys = {f"key{n * KEYS + i}": VALUES[i % len(VALUES)](n) for i in range(KEYS)}
    return expanded(f"many-{n}", metadata=keys, facet_json={"mixed": VALUES[n % len(VALUES)](n), **keys})


async def in_opensearch(stores: Stores, condition: Filter) -> set[str]:
    body = {
        "size": 10_000,
        "query": {"bool": {"filter": [opensearch(condition)]}},
        "docvalue_fields": ["chunk_id"],
        "_source": False,
    }
    answer = await stores.opensearch._call("POST", f"/{stores.opensearch._target}/_search", body=body)
    return {hit["fields"]["chunk_id"][0] for hit in answer["hits"]["hits"]}


async def in_full_text_index(stores: Stores, condition: Filter) -> set[str]:
    rows = await stores.neo4j._run(
        "CALL db.index.fulltext.queryNodes('chunk_facets', $wanted) YIELD node RETURN node.chunk_id AS chunk_id",
        wanted=lucene(condition),
    )
    return {row["chunk_id"] for row in rows}


async def in_nodes(stores: Stores, condition: Filter) -> set[str]:
    expression, parameters = cypher(condition, "chunk")
    rows = await stores.neo4j._run(
        f"MATCH (chunk:Chunk) WHERE {expression} RETURN chunk.chunk_id AS chunk_id", **parameters
    )
    return {row["chunk_id"] for row in rows}


FOUND: list[Callable[[Stores, Filter], Awaitable[set[str]]]] = [in_opensearch, in_full_text_index, in_nodes]


async def test_ten_thousand_keys_make_no_field_and_reject_nothing(stores, many_keys):
    """A field for each key would stop OpenSearch at 1,000, and a key with two types would reject documents."""
    before = await fields(stores)
    assert await write(stores, [_with_many_keys(CHUNKS)])
    assert await fields(stores) == before
    assert set(before["mappings"]["properties"]).isdisjoint(["key0", "mixed"])
    assert len({token for tokens in many_keys.values() for token in tokens if token.startswith("metadata.")}) > 10_000
    for n in (0, CHUNKS - 1):
        condition = FILTER.validate_python({"field": f"metadata.key{n * KEYS}", "equal": str(n)})
        for found in FOUND:
            assert await found(stores, condition) == {f"many-{n}"}


numbers = count()


@profile(
    max_examples=profile().max_examples // 5,  # Neo4j plans each filter
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
async def test_a_filter_finds_the_same_chunks_everywhere(stores, many_keys, data):
    some = data.draw(st.lists(chunks(), min_size=1, max_size=5))
    some = [chunk | {"chunk_id": f"drawn-{next(numbers)}"} for chunk in some]
    many_keys |= await write(stores, some)
    for _ in range(5):
        condition = FILTER.validate_python(data.draw(filters([*some, _with_many_keys(7)])))
        expected = {chunk_id for chunk_id, tokens in many_keys.items() if matches(condition, tokens)}
        for found in FOUND:
            assert await found(stores, condition) == expected, found.__name__


async def test_the_largest_filter_is_answered(stores):
    """Both stores limit the clauses of a query."""
    known = await write(stores, [expanded("a", metadata={"n": 1})])
    leaf: Any = {"field": "metadata.n", "in": list(range(500))}
    for _ in range(6):
        leaf = {"not": leaf}
    rest = [{"field": "metadata.n", "exists": False} for _ in range(46)]
    condition = FILTER.validate_python({"any": [leaf, *rest]})
    assert all(matches(condition, tokens) for tokens in known.values())
    for found in FOUND:
        assert await found(stores, condition) == {"a"}


@pytest.fixture
async def old(stores: Stores) -> AsyncIterator[Stores]:
    await write(stores, [expanded(name) for name in ("new", "old", "older")])
    for name in ("old", "older"):
        await forget_facets(stores, name)
    return stores


async def test_the_doctor_tells_of_chunks_that_filters_do_not_find(old, settings):
    every = FILTER.validate_python(NOTHING)
    assert [await found(old, every) for found in FOUND] == [{"new"}] * 3
    assert [await store.unfiltered() for store in old.both] == [2, 2]
    found = [finding async for finding in doctor.stores(settings)]
    assert [(each.check, each.ok, each.warning) for each in found] == [
        *(("Neo4j", True, False), ("Neo4j", True, True)),
        *(("OpenSearch", True, False), ("OpenSearch", True, True)),
    ]
    assert found[1].said.startswith("2 chunks were stored by an earlier release, so filters do not find them: `stream")
    await write(old, [expanded("old"), expanded("older")])
    assert [await store.unfiltered() for store in old.both] == [0, 0]
    assert [finding.warning async for finding in doctor.stores(settings)] == [False, False]


async def test_an_index_of_an_earlier_release_takes_tokens_when_a_worker_starts(old):
    await old.neo4j._run("DROP INDEX chunk_facets")
    await old.neo4j._run("DROP INDEX chunk_filterable")
    assert await old.neo4j.unfiltered() == 3  # no worker of this release has started yet
    await old.neo4j.set_up()
    assert await old.neo4j.unfiltered() == 2
    assert await in_full_text_index(old, FILTER.validate_python(NOTHING)) == {"new"}


async def test_a_generation_has_its_own_count_of_chunks_that_filters_do_not_find(old, settings):
    second = settings.model_copy(update={"generation": 2})
    async with Neo4jStore(second) as store:
        await store.set_up()
        await store.write([put(expanded("old")), put(expanded("another"))])
        assert await store.unfiltered() == await old.neo4j.unfiltered(2) == 0
        assert await old.neo4j.unfiltered() == 2
        await store.drop(2)
        assert await store._run("SHOW INDEXES YIELD name WHERE name =~ 'chunk_.*_2' RETURN name") == []


async def test_a_full_text_index_of_somebody_else_is_a_matter_of_settings(stores, settings):
    """Neo4j then skips ours without an error; without it no filter works."""
    run = stores.neo4j._run
    await run("CREATE FULLTEXT INDEX held_facets IF NOT EXISTS FOR (n:Stranger) ON EACH [n.text]")
    await run("CREATE FULLTEXT INDEX theirs IF NOT EXISTS FOR (n:Kept) ON EACH [n.facets]")
    for label in ("Held", "Kept"):
        mine = settings.model_copy(update={"neo4j_label": label, "neo4j_index": f"{label.lower()}_idx"})
        async with Neo4jStore(mine) as store:
            with pytest.raises(ConfigurationError, match=r"facets.*STREAM_NEO4J_LABEL"):
                await store.set_up()
