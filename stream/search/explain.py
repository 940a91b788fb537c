"""Explains an answer: the words and terms that a hit shares with the query, and where a given chunk comes."""

from collections.abc import Sequence

from stream.search import dsl, filters
from stream.search.answer import Standing, Why
from stream.search.legs import NAMED, Legs, opensearch_condition
from stream.search.ranking import Ranking
from stream.search.request import Leg, Request
from stream.stores import Stores

Shares = dict[Leg, dict[str, float]]


async def shares(stores: Stores, legs: Legs, ranking: Ranking, chunk_ids: Sequence[str]) -> dict[str, Shares]:
    """By chunk and leg, the words and terms that the chunk shares with the query, and their parts of the raw score.

    The parts of a leg add up to its raw score, unless the query has more words than OpenSearch accepts. The dense leg
    has no such parts.
    """
    query = ranking.request.query
    if not chunk_ids or not {"bm25", "splade"} & set(ranking.found):
        return {}
    tokens = await stores.opensearch.tokens(dsl.fitting(query), ranking.generation) if "bm25" in ranking.found else []
    terms = await legs.terms(ranking.request) if "splade" in ranking.found else {}
    body = dsl.explaining(tokens, terms, chunk_ids)
    answer = await stores.opensearch.search(body, ranking.generation, preference=query, **NAMED)
    return dsl.explained(answer, legs.normalised)


async def why(stores: Stores, legs: Legs, ranking: Ranking, chunk_id: str) -> Why:
    """The rank and raw score of a chunk in each leg, also if the leg does not return it, and in the fused hits."""
    request = ranking.request
    shown = (await stores.shown(ranking.found, [chunk_id], ranking.generation)).get(chunk_id)
    if shown is None:
        return Why.unknown(chunk_id)
    matches = filters.takes(request.filter, shown) if request.filter else None
    standings = {leg: await _standing(stores, legs, ranking, leg, chunk_id) for leg in ranking.found}
    explained = await shares(stores, legs, ranking, [chunk_id])
    ranks = ((n, hit.score) for n, hit in enumerate(ranking.fused, start=1) if hit.chunk_id == chunk_id)
    rank, score = next(ranks, (None, None))
    return Why(
        chunk_id=chunk_id,
        stored=True,
        matches_filter=matches,
        legs=standings,
        rank=rank,
        score=score,
        terms=explained.get(chunk_id, {}),
        reasons=_reasons(request, matches, standings, rank),
    )


async def _standing(stores: Stores, legs: Legs, ranking: Ranking, leg: Leg, chunk_id: str) -> Standing:
    request, generation = ranking.request, ranking.generation
    if leg == "dense":
        vector = await legs.encoder.vector(request.query)
        cosines = await stores.neo4j.cosines(vector, [chunk_id], generation)
        return Standing(ranking.found[leg].rank(chunk_id), cosines.get(chunk_id))
    query = await legs.query(request, leg)
    body = dsl.body([query], dsl.among([chunk_id]), 1)
    alone = dsl.rows(await stores.opensearch.search(body, generation, preference=request.query))
    if not alone:
        return Standing(None, None)
    better = dsl.better(query, opensearch_condition(request), alone[0].score)
    answer = await stores.opensearch.search(better, generation, preference=request.query)
    return Standing(1 + answer["hits"]["total"]["value"], alone[0].score)


def _reasons(request: Request, matches: bool | None, standings: dict[Leg, Standing], rank: int | None) -> list[str]:
    reasons = ["the filter excludes it"] if matches is False else []
    absent = {
        "bm25": "no word of the query is in its text",
        "splade": "it has none of the query's terms",
        "dense": "it has no vector of this generation",
    }
    for leg, standing in standings.items():
        least = request.min_score.get(leg)
        if standing.score is None:
            reasons.append(absent[leg])
        elif least is not None and standing.score < least:
            reasons.append(f"its score in {leg}, {standing.score:.3f}, is below the minimum of {least:g}")
        elif standing.rank is None or standing.rank > request.depth:
            reasons.append(f"it is not among the first {request.depth} of {leg}")
    if rank and rank > request.k:
        reasons.append(f"{rank - 1} hits have a higher score")
    return reasons
