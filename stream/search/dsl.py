"""OpenSearch's query DSL: what BM25 and SPLADE ask for, and how a response is read.

SPLADE's score is the dot product of the raw sparse vectors, query and document: the stored weights are L2-normalised,
so the document's are multiplied with its stored norm.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stream.search.request import Leg
from stream.stores.opensearch import escape

MOST_CLAUSES = 900  # a word or a term is a clause; OpenSearch's limit is 1,024, and a filter has at most 100
HEAVY = 0.4  # of the heaviest term's weight
LONGEST_TOKEN = 255  # letters; OpenSearch's standard tokenizer splits longer words

Query = dict[str, Any]


class Row(NamedTuple):
    """A hit; `named`: the scores of the named queries that it matches."""

    chunk_id: str
    doc_id: str
    score: float
    named: Mapping[str, float]


def words(query: str, room: int = MOST_CLAUSES) -> Query:
    """BM25 of a query's words; of a query that needs more than `room` clauses, of its first distinct words."""
    return {"match": {"text": {"query": fitting(query, room), "_name": "bm25"}}}


def terms(weights: Mapping[str, float], normalised: bool) -> Query:
    """The dot product with the raw weights of a query's terms. `normalised`: whether the stored weights are."""
    if not weights:
        return {"match_none": {}}
    query: Query = {"bool": {"should": [term(name, weight) for name, weight in weights.items()]}}
    return raw(query, "splade") if normalised else {"bool": {"must": query, "_name": "splade"}}


def term(name: str, weight: float, **more: Any) -> Query:
    """One term's part in the dot product with the stored weights."""
    return {"rank_feature": {"field": f"splade_terms.{escape(name)}", "boost": weight, "linear": {}, **more}}


def raw(query: Query, name: str) -> Query:
    """Multiplies the scores of a query about normalised weights with the documents' norms."""
    norm = {"field": "splade_norm", "missing": 1}
    return {"function_score": {"query": query, "field_value_factor": norm, "boost_mode": "multiply", "_name": name}}


def weighted(query: Query, weight: float) -> Query:
    """A query whose scores count `weight` times."""
    return {"function_score": {"query": query, "weight": weight, "boost_mode": "multiply"}} if weight != 1 else query


def body(queries: Sequence[Query], condition: Query | None, size: int) -> Query:
    """The body of a search for the `size` best chunks by the sum of the queries, among those that match."""
    matching: Query = {"should": list(queries), "minimum_should_match": 1}
    if condition:
        matching["filter"] = [condition]
    return {
        "size": size,
        "query": {"bool": matching},
        "docvalue_fields": ["chunk_id", "doc_id"],
        "stored_fields": "_none_",
        "track_total_hits": False,
    }


def better(query: Query, condition: Query | None, score: float) -> Query:
    """The body of a search that counts the chunks whose score is above this one."""
    above = float(np.nextafter(np.float32(score), np.float32(np.inf)))  # OpenSearch's scores are float32
    return body([query], condition, 0) | {"min_score": above, "track_total_hits": True}


def in_two_phases(weights: Mapping[str, float], normalised: bool, condition: Query | None, size: int) -> Query:
    """The body of a search by terms whose heavy ones find the `size` best chunks, and whose others only rescore these.

    All scores are those of all terms. It takes two thirds of the time of one phase (docs/search.md).
    """
    heavy, light = heavy_and_light(weights)
    found = body([terms(heavy, normalised)], condition, size)
    if not light:
        return found
    rescore = {"rescore_query": terms(light, normalised), "score_mode": "total"}
    return found | {"rescore": {"window_size": size, "query": rescore}}


def heavy_and_light(weights: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The terms of the first phase, and those of the second."""
    least = HEAVY * max(weights.values(), default=0.0)
    heavy = {name: weight for name, weight in weights.items() if weight >= least}
    return heavy, {name: weight for name, weight in weights.items() if name not in heavy}


def rows(answer: Mapping[str, Any]) -> list[Row]:
    """The hits of a response, the best first; equal scores are in the order of the chunk IDs."""
    found = [
        Row(
            chunk_id=hit["fields"]["chunk_id"][0],
            doc_id=hit["fields"]["doc_id"][0],
            score=hit["_score"],
            named=hit.get("matched_queries") or {},
        )
        for hit in answer["hits"]["hits"]
    ]
    return sorted(found, key=lambda row: (-row.score, row.chunk_id))


def explaining(tokens: Sequence[str], weights: Mapping[str, float], chunk_ids: Sequence[str]) -> Query:
    """The body of a search that names each word and term of a query that the chunks share, with its score."""
    counted = Counter(tokens)
    most = counted.most_common(MOST_CLAUSES - len(weights))
    named = [{"term": {"text": {"value": token, "boost": n, "_name": f"bm25 {token}"}}} for token, n in most]
    named += [term(name, weight, _name=f"splade {name}") for name, weight in weights.items()]
    return {
        "size": len(chunk_ids),
        "query": {"bool": {"filter": [among(chunk_ids)], "should": named}},
        "docvalue_fields": ["chunk_id", "splade_norm"],
        "stored_fields": "_none_",
    }


def explained(answer: Mapping[str, Any], normalised: bool) -> dict[str, dict[Leg, dict[str, float]]]:
    """By chunk and leg: the shared words and terms with their scores, the highest first."""
    by_chunk = {}
    for hit in answer["hits"]["hits"]:
        fields, named = hit["fields"], hit.get("matched_queries") or {}
        norm = fields.get("splade_norm", [1.0])[0] if normalised else 1.0
        parts: dict[Leg, dict[str, float]] = {}
        for name, score in sorted(named.items(), key=lambda one: -one[1]):
            leg, _, word = name.partition(" ")
            parts.setdefault(leg, {})[word] = score * norm if leg == "splade" else score
        by_chunk[fields["chunk_id"][0]] = parts
    return by_chunk


def among(chunk_ids: Sequence[str]) -> Query:
    """A condition: one of these chunks."""
    return {"terms": {"chunk_id": list(chunk_ids)}}


def fitting(query: str, room: int = MOST_CLAUSES) -> str:
    """The query, or its first distinct words if it needs more than `room` clauses."""
    if _most_tokens(query) <= room:
        return query
    kept: list[str] = []
    for word in dict.fromkeys(query.split()):
        needed = _most_tokens(word)
        kept.append(word[:room] if needed > room else word)
        room -= needed
        if room <= 0:
            break
    return " ".join(kept)


def _most_tokens(text: str) -> int:
    """The most tokens that OpenSearch makes of a text; each character that is not ASCII may be one."""
    ascii_words = re.findall(r"[0-9A-Za-z_]+", text)
    others = sum(not character.isascii() for character in text)
    return sum(1 + len(word) // LONGEST_TOKEN for word in ascii_words) + others
