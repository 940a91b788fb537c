"""Groups fused hits by document."""

from collections.abc import Mapping, Sequence

from stream.search.fusion import Fused
from stream.search.request import Group


def grouped(hits: Sequence[Fused], doc_ids: Mapping[str, str], group: Group) -> list[list[Fused]]:
    """The best `group.size` hits of each document, in the order of the documents' best hits.

    A page of k documents is a slice of k. `hits` are sorted, the best first; `doc_ids` has the document of each chunk.
    """
    documents: dict[str, list[Fused]] = {}
    for hit in hits:
        chunks = documents.setdefault(doc_ids[hit.chunk_id], [])
        if len(chunks) < group.size:
            chunks.append(hit)
    return list(documents.values())
