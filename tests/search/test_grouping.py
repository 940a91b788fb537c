"""If these fail, one long document fills the answer, or a document is shown twice."""

from hypothesis import given
from hypothesis import strategies as st

from stream.search.fusion import Fused
from stream.search.grouping import grouped
from stream.search.request import Group

DOCUMENTS = {f"c{n}": f"d{n % 5}" for n in range(40)}
rankings = st.lists(st.sampled_from(list(DOCUMENTS)), unique=True).map(
    lambda chunks: [Fused(chunk, -float(place), {}) for place, chunk in enumerate(chunks)]
)


def test_documents_are_in_the_order_of_their_best_chunk():
    hits = [Fused(chunk, 1.0, {}) for chunk in ("a1", "b1", "a2", "c1", "a3", "b2")]
    doc_ids = {hit.chunk_id: hit.chunk_id[0] for hit in hits}
    documents = grouped(hits, doc_ids, Group(size=2))
    assert [[hit.chunk_id for hit in document] for document in documents] == [["a1", "a2"], ["b1", "b2"], ["c1"]]


@given(rankings, st.integers(1, 10))
def test_each_document_is_there_once_with_its_best_chunks(hits, size):
    documents = grouped(hits, DOCUMENTS, Group(size=size))
    best = list(dict.fromkeys(DOCUMENTS[hit.chunk_id] for hit in hits))
    assert [DOCUMENTS[document[0].chunk_id] for document in documents] == best
    for doc_id, document in zip(best, documents, strict=True):
        assert document == [hit for hit in hits if DOCUMENTS[hit.chunk_id] == doc_id][:size]
