"""If these fail, a stage loses a record of its batch or gives one the wrong outcome."""

from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from support import DIMENSIONS, chunk, expanded, sparse_vector

from stream.errors import Outage, Refused
from stream.records import Done, Rejected, Tombstone, encode, sha256
from stream.stages.embed import embed
from stream.stages.expand import expand, parts
from stream.stages.index import index
from stream.vectors import pack

PROVENANCE = {"model": "m", "revision": "r", "parameters": {}}


async def test_embed_adds_the_vector_its_origin_and_the_hash_of_the_text():
    async def vectors(texts):
        if "bad" in texts:
            raise Refused("too long")
        return [f"vector of {text}" for text in texts]

    client = SimpleNamespace(embed=vectors, provenance=PROVENANCE)
    a, bad, b = chunk("a", "one"), chunk("b", "bad"), chunk("c", "two", metadata={"k": 1})
    first, second, third = await embed([a, bad, b], client=client, request_tokens=100)
    added = {"text_sha256": sha256("one"), "embedding_qwen": "vector of one", "embedding_provenance": PROVENANCE}
    assert first == Done(a | added)
    assert second == Rejected("refused-by-model", "too long")
    assert third.output["metadata"] == {"k": 1}
    assert third.output["embedding_qwen"] == "vector of two"


async def test_only_what_is_not_known_is_embedded():
    async def vectors(texts):
        if "bad" in texts:
            raise Refused("too long")
        return [f"vector of {text}" for text in texts]

    async def known(chunks):
        return ["known" if each["text"] == "old" else None for each in chunks]

    client = SimpleNamespace(embed=vectors, provenance=PROVENANCE)
    chunks = [chunk(str(n), text) for n, text in enumerate(["old", "new", "bad", "old", "last"])]
    outcomes = await embed(chunks, client=client, request_tokens=100, known=known)
    found = [o.output["embedding_qwen"] if isinstance(o, Done) else o.reason for o in outcomes]
    assert found == ["known", "vector of new", "refused-by-model", "known", "vector of last"]


async def test_a_request_carries_no_more_tokens_than_it_may():
    requests = []

    async def vectors(texts):
        requests.append([len(text) for text in texts])
        return list(texts)

    client = SimpleNamespace(embed=vectors, provenance=PROVENANCE)
    chunks = [chunk(f"c{n}", "x" * size) for n, size in enumerate([3, 6, 300, 3, 3])]
    outcomes = await embed(chunks, client=client, request_tokens=6)
    assert requests == [[3, 6], [300], [3, 3]]
    assert [o.output["embedding_qwen"] for o in outcomes] == [each["text"] for each in chunks]


def test_what_is_expanded_is_text_facets_and_table_lines():
    facets = {"z": 1, "a": {"c": [1, "x"], "b": True}, "none": None}
    assert parts(chunk(text="t", facet_json=facets, table_lines=["l1", "l2"])) == [
        "t",
        "a.b: True\na.c: 1, x\nz: 1",
        "l1\nl2",
    ]
    assert parts(chunk(text="t")) == ["t", "", ""]


async def test_expand_adds_terms_also_none_and_their_norm():
    vectors = [sparse_vector({"socket": 0.6, "port": 0.8}, 5.0), sparse_vector({}, 0.0)]
    vocabulary = vectors[0].vocabulary
    encoder = SimpleNamespace(
        join=" | ".join, encode=lambda texts: vectors, provenance=PROVENANCE, vocabulary=vocabulary
    )
    records = [expanded("a"), expanded("b")]
    outcomes = await expand(records, encoder=encoder)
    written = [orjson.loads(encode(outcome.output)[0]) for outcome in outcomes]
    assert [value["splade_terms"] for value in written] == [{"socket": 0.6, "port": 0.8}, {}]
    assert [o.output["splade_norm"] for o in outcomes] == [5.0, 0.0]


class FakeStore:
    """A store that accepts all chunks except those in `refuses`, or that is down."""

    def __init__(self, refuses=(), down=False):
        self.name, self.refuses, self.down, self.written = "fake", refuses, down, []

    async def write(self, writes):
        if self.down:
            raise Outage("down")
        self.written += writes
        return {w.chunk_id: Rejected("refused-by-neo4j", "no") for w in writes if w.chunk_id in self.refuses}


class PickyStore(FakeStore):
    """A store that refuses chunks with the text "bad"."""

    async def write(self, writes):
        good = [w for w in writes if w.chunk["text"] != "bad"]
        self.written += good
        return {w.chunk_id: Rejected("refused-by-neo4j", "no") for w in writes if w not in good}


async def run(records, *stores):
    return await index(records, stores=stores, dimensions=DIMENSIONS)


async def test_index_writes_to_all_stores_and_rejects_what_one_refuses():
    one, other = FakeStore(refuses={"b"}), FakeStore()
    outcomes = await run([expanded("a"), expanded("b"), Tombstone("c", 1)], one, other)
    assert [type(o) for o in outcomes] == [Done, Rejected, Done]
    assert [w.chunk_id for w in one.written] == [w.chunk_id for w in other.written] == ["a", "b", "c"]


async def test_of_one_chunk_only_the_newest_is_written_and_ties_go_to_the_later():
    store = FakeStore()
    records = [expanded("a", "1", 1), expanded("a", "3", 3), expanded("a", "2", 2), expanded("a", "3b", 3)]
    outcomes = await run([*records, expanded("b", version=1), Tombstone("b", 1)], store)
    assert [w.version for w in store.written] == [3, 1]
    assert store.written[0].chunk["text"] == "3b"
    assert store.written[1] == Tombstone("b", 1)
    assert outcomes == [Done()] * 6


async def test_what_a_refused_record_would_have_overtaken_is_written():
    """The stored chunk must not depend on which of its records are in one batch."""
    picky = PickyStore()
    records = [expanded("a", "1", 1), expanded("a", "bad", 2), expanded("a", "bad", 3), expanded("b")]
    outcomes = await run(records, picky, other := FakeStore())
    assert [type(o) for o in outcomes] == [Done, Rejected, Rejected, Done]
    assert {w.chunk_id: w.version for w in picky.written} == {"a": 1, "b": 1}
    assert [w.version for w in other.written if w.chunk_id == "a"] == [3, 2, 1]


async def test_an_outage_of_one_store_is_an_outage_but_the_other_is_waited_for():
    other = FakeStore()
    with pytest.raises(Outage):
        await run([expanded("a")], FakeStore(down=True), other)
    assert len(other.written) == 1


def packed(*numbers):
    return pack(np.array(numbers))


@pytest.mark.parametrize(
    "broken",
    [
        b"AAA",
        packed(np.nan),
        packed(*[np.nan] * DIMENSIONS),
        packed(1),
        packed(*[0] * DIMENSIONS),
        packed(*[1] * DIMENSIONS),
    ],
    ids=["no float32", "one NaN", "NaN", "too short", "zero", "not of unit norm"],
)
async def test_a_vector_that_could_not_be_found_is_rejected_alone(broken):
    store = FakeStore()
    outcomes = await run([expanded("a", embedding_qwen=broken), expanded("b")], store)
    assert outcomes[0].reason == "embedding"
    assert [w.chunk_id for w in store.written] == ["b"]
