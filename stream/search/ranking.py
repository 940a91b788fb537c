"""All hits of a request, fused: what an answer is a page of."""

from collections.abc import Sequence
from dataclasses import dataclass

from stream.errors import StreamError
from stream.search import fusion
from stream.search.fusion import Fused
from stream.search.grouping import grouped
from stream.search.legs import Found, Outcome
from stream.search.request import Leg, Request


@dataclass(frozen=True, slots=True)
class Ranking:
    """The fused hits, the best first, and what they were made of. `failed` has the reason of each missing leg."""

    request: Request
    generation: int
    fused: list[Fused]
    found: dict[Leg, Found]
    failed: dict[Leg, StreamError]

    @classmethod
    def of(cls, request: Request, generation: int, outcomes: Sequence[Outcome]) -> "Ranking":
        """Fuses what the legs found."""
        found = {leg: found for outcome in outcomes for leg, found in outcome.found.items()}
        failed = {leg: error for outcome in outcomes for leg, error in outcome.failed.items()}
        ranked = fusion.at_least({leg: found[leg].hits for leg in found}, request.min_score)
        weights = {leg: request.weight(leg) for leg in request.legs}
        if request.mode == "lexical":
            return cls(request, generation, fusion.summed(ranked, weights), found, failed)
        return cls(request, generation, fusion.fuse(ranked, weights, request.fusion), found, failed)

    @property
    def groups(self) -> list[list[Fused]]:
        """The hits as pages count them: each alone, or by document."""
        if not self.request.group:
            return [[hit] for hit in self.fused]
        documents = {chunk_id: doc_id for found in self.found.values() for chunk_id, doc_id in found.documents.items()}
        return grouped(self.fused, documents, self.request.group)
