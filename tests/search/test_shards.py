"""If these fail, an index of several shards finds other chunks than one of a single shard."""

import pytest
from conftest import isolated
from searchable import COUNT, Encoder, searchable

from stream import config
from stream.models import splade
from stream.models.embeddings import EmbeddingClient
from stream.search.request import Request
from stream.search.searcher import Searcher
from stream.stores import open_stores

pytestmark = pytest.mark.servers

MODES = ("bm25", "splade", "lexical", "hybrid")
QUERY = "a socket and a thread"
SHARDS = {"STREAM_OPENSEARCH_SHARDS": "3", "STREAM_OPENSEARCH_REPLICAS": "0"}


@pytest.fixture(autouse=True)
def _splade(monkeypatch):
    monkeypatch.setattr(splade, "SparseEncoder", Encoder)


async def found(settings):
    """By mode, the hits of all pages; where one hit comes, and why; the facets; the origins."""
    async with EmbeddingClient(settings) as embedder, open_stores(settings) as stores:
        searcher = Searcher(settings, stores, embedder)
        hits, reasons = {}, {}
        for mode in MODES:
            asked = Request(query=QUERY, mode=mode, k=25, strict=True, deadline=60, explain=True)
            answer = await searcher.search(asked)
            pages = [*answer.hits]
            while answer.cursor:
                answer = await searcher.search(asked.model_copy(update={"cursor": answer.cursor}))
                pages += answer.hits
            # A leg ends among chunks of one score; which of them it returns is left to OpenSearch.
            hits[mode] = [hit for hit in pages if hit.score > pages[-1].score]
            reasons[mode] = await searcher.why(asked, pages[10].chunk_id)
        return hits, reasons, await searcher.choices(None), await stores.opensearch.origins()


async def test_three_shards_find_what_one_finds_with_the_same_scores(environment):
    """Each shard counts words for itself unless it is told not to."""
    async with searchable(config.only(isolated(environment))) as one:
        expected, reasons, *counts = await found(one)
    async with searchable(config.only(isolated(environment) | SHARDS)) as three:
        hits, other_reasons, *other_counts = await found(three)
    for mode in MODES:
        assert [hit.chunk_id for hit in hits[mode]] == [hit.chunk_id for hit in expected[mode]]
        assert len(hits[mode]) > 25
        for one_hit, hit in zip(expected[mode], hits[mode], strict=True):
            assert hit.score == pytest.approx(one_hit.score, rel=1e-5)
            assert {leg: pytest.approx(parts, rel=1e-5) for leg, parts in one_hit.terms.items()} == hit.terms
        assert {leg: standing.rank for leg, standing in reasons[mode].legs.items()} == {
            leg: standing.rank for leg, standing in other_reasons[mode].legs.items()
        }
    assert counts == other_counts
    assert sum(counts[1].values()) == COUNT
