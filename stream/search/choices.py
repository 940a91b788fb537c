"""What chunks can be filtered by: their fields, and the most frequent values of each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stream import facets
from stream.search import filters
from stream.search.filters import EVERY_CHUNK, Filter
from stream.stores.opensearch import OpenSearchStore

MOST_FIELDS = 30
MOST_VALUES = 20  # of a field
COUNTED = 2000  # the most frequent values of all fields, which are read from OpenSearch
COUNTED_BY_SHARD = 10_000  # counts are exact if no shard has more values than this

# Lucene's regular expressions of tokens; `stream.facets` says what a token is. They match a whole token.
PATHS = r"(metadata|facet_json)\.[^=<@]*"
VALUES = rf"{PATHS}=.*"


@dataclass(frozen=True, slots=True)
class Choice:
    """A value, and the number of chunks that have it."""

    value: str | int | float | bool
    count: int


@dataclass(frozen=True, slots=True)
class Choices:
    """By field, the most frequent first: its values, the most frequent first.

    A field has no values here if they are too long, or not among the `COUNTED` most frequent values of all fields.
    """

    fields: dict[str, list[Choice]]


async def choices(store: OpenSearchStore, condition: Filter | None, generation: int) -> Choices:
    """Counts the chunks that a condition takes, without deleted ones. Raises `StreamError`."""
    conditions: list[Mapping[str, Any]] = [{"term": {"facets": EVERY_CHUNK}}]
    if condition:
        conditions.append(filters.opensearch(condition))
    body = {
        "size": 0,
        "track_total_hits": False,
        "query": {"bool": {"filter": conditions}},
        "aggs": {"paths": _terms(PATHS, MOST_FIELDS), "values": _terms(VALUES, COUNTED)},
    }
    found = (await store.search(body, generation))["aggregations"]
    return _choices(found["paths"]["buckets"], found["values"]["buckets"])


def _terms(pattern: str, size: int) -> dict[str, Any]:
    return {"terms": {"field": "facets", "include": pattern, "size": size, "shard_size": COUNTED_BY_SHARD}}


def _choices(paths: Iterable[Mapping[str, Any]], values: Iterable[Mapping[str, Any]]) -> Choices:
    fields: dict[str, list[Choice]] = {field: [] for bucket in paths if (field := facets.field_of(bucket["key"]))}
    for bucket in values:
        field, value = facets.value_of(bucket["key"]) or ("", "")
        if field in fields and len(fields[field]) < MOST_VALUES:
            fields[field].append(Choice(value, bucket["doc_count"]))
    return Choices(fields)
