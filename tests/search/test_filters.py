"""If these fail, a filter means something else than it says, or what it says about itself is of no help."""

from datetime import UTC, datetime
from typing import Any

import pytest
from filtered import chunks, filters, leaves_of
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from support import chunk

from stream import facets
from stream.search import filters as module
from stream.search.filters import Filter, cypher, lucene, matches, opensearch

FILTER: TypeAdapter[Filter] = TypeAdapter(Filter)


def naive(condition: dict[str, Any], record: Any) -> bool:
    """What a filter means, told from its JSON and the chunk's."""
    match condition:
        case {"not": part}:
            return not naive(part, record)
        case {"all": parts}:
            return all(naive(part, record) for part in parts)
        case {"any": parts}:
            return any(naive(part, record) for part in parts)
    found = [value for path, value in leaves_of(record) if path == condition["field"]]
    match condition:
        case {"equal": wanted}:
            return any(same(value, wanted) for value in found)
        case {"in": values}:
            return any(same(value, wanted) for value in found for wanted in values)
        case {"exists": wanted}:
            return bool(found) == wanted
    bounds = {name: ordered(bound) for name, bound in condition.items() if name != "field"}
    return any(value is not None and within(value, bounds) for value in map(ordered, found))


def within(value: Any, bounds: dict[str, Any]) -> bool:
    tests = {
        "gte": lambda bound: value >= bound,
        "gt": lambda bound: value > bound,
        "lte": lambda bound: value <= bound,
        "lt": lambda bound: value < bound,
    }
    return all(type(bound) is type(value) and tests[name](bound) for name, bound in bounds.items())


def same(value: Any, wanted: Any) -> bool:
    return isinstance(value, bool) == isinstance(wanted, bool) and value == wanted


def ordered(value: Any) -> float | datetime | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        assert isinstance(value, str) and value[4] == "-"
        moment = datetime.fromisoformat(value)
    except (AssertionError, IndexError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@given(st.data())
def test_a_filter_finds_what_its_words_say(data):
    records = data.draw(st.lists(chunks(), min_size=1, max_size=5))
    condition = data.draw(filters(records))
    parsed = FILTER.validate_python(condition)
    for record in records:
        assert matches(parsed, set(facets.tokens(record))) == naive(condition, record)


@given(st.data())
def test_a_filter_survives_json(data):
    """A cursor or a log holds it."""
    parsed = FILTER.validate_python(data.draw(filters(data.draw(st.lists(chunks(), min_size=1, max_size=2)))))
    assert FILTER.validate_json(FILTER.dump_json(parsed, exclude_none=True)) == parsed
    assert FILTER.validate_python(FILTER.dump_python(parsed)) == parsed


def test_each_store_s_query():
    parsed = FILTER.validate_python(
        {
            "all": [
                {"field": "metadata.lang", "in": ["en", 'a"\\']},
                {"not": {"field": "metadata.year", "gte": 2020, "lt": 2024}},
                {"any": [{"field": "metadata.a", "exists": False}, {"field": "doc_id", "equal": "d"}]},
            ]
        }
    )
    every = {"term": {"facets": "doc_id"}}
    first, last = "metadata.year<c09f900000000000", "metadata.year<c09fa00000000000"
    values = ['metadata.lang="en"', r'metadata.lang="a\"\\"']
    assert opensearch(parsed) == {
        "bool": {
            "filter": [
                {"terms": {"facets": values}},
                {"bool": {"filter": [every], "must_not": [{"range": {"facets": {"gte": first, "lt": last}}}]}},
                {
                    "bool": {
                        "should": [
                            {"bool": {"filter": [every], "must_not": [{"terms": {"facets": ["metadata.a"]}}]}},
                            {"terms": {"facets": ['doc_id="d"']}},
                        ],
                        "minimum_should_match": 1,
                    }
                },
            ]
        }
    }
    assert lucene(parsed) == (
        r'(+("metadata.lang=\"en\"" OR "metadata.lang=\"a\\\"\\\\\"")'
        rf' +(+"doc_id" -["{first}" TO "{last}"}})'
        r' +((+"doc_id" -("metadata.a")) OR ("doc_id=\"d\"")))'
    )
    assert cypher(parsed, "node") == (
        "((any(facet IN node.facets WHERE facet IN $f0)"
        " AND NOT any(facet IN node.facets WHERE facet >= $f1 AND facet < $f2)"
        " AND (NOT $f3 IN node.facets OR $f4 IN node.facets)))",
        {"f0": values, "f1": first, "f2": last, "f3": "metadata.a", "f4": 'doc_id="d"'},
    )


YEAR = {"field": "metadata.year"}
IS_2020 = YEAR | {"equal": 2020}


def nested(depth: int) -> Any:
    condition: Any = IS_2020
    for _ in range(depth - 1):
        condition = {"not": condition}
    return condition


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ({"field": "text", "equal": "x"}, "'text' cannot be filtered: only doc_id, metadata.* and facet_json.* can"),
        ({"field": "metadata", "exists": True}, "'metadata' cannot be filtered"),
        ({"field": "facet_jsonx.a", "exists": True}, "cannot be filtered"),
        ({"field": "metadata.\ud800", "exists": True}, "must be Unicode text without lone surrogates"),
        (YEAR, "must be an object with one of equal, in, exists, gte, gt, lte, lt, not, all, any"),
        ("metadata.year = 2020", "must be an object with one of equal"),
        (None, "must be an object with one of equal"),
        ({"equal": 2020}, "Field required"),
        (IS_2020 | {"gte": 2020}, "Extra inputs are not permitted"),
        (IS_2020 | {"equal": None}, "must be text, a finite number, true or false"),
        (IS_2020 | {"equal": [2020]}, "must be text, a finite number, true or false"),
        (IS_2020 | {"equal": float("inf")}, "must be text, a finite number, true or false"),
        (IS_2020 | {"equal": 10**400}, "must be text, a finite number, true or false"),
        (IS_2020 | {"equal": "\ud800"}, "must be Unicode text without lone surrogates"),
        (YEAR | {"in": []}, "at least 1 item"),
        ({"all": []}, "at least 1 item"),
        ({"any": []}, "at least 1 item"),
        (YEAR | {"gte": "new"}, "must be a number or an ISO 8601 date like 2024-05-31 or 2024-05-31T23:59:59Z"),
        (YEAR | {"gte": True}, "must be a number or an ISO 8601 date"),
        (YEAR | {"gte": float("nan")}, "must be text, a finite number"),
        (YEAR | {"gte": 2020, "lt": "2024-05-31"}, "a range is between two numbers or between two dates"),
        (YEAR | {"gte": 2020, "gt": 2020}, "a range has gte or gt, not both, and lte or lt, not both"),
        (YEAR | {"lte": 2020, "lt": 2020}, "a range has gte or gt, not both, and lte or lt, not both"),
        (nested(module.DEEPEST + 1), "a depth of 10: this one has more"),
        (nested(1000), ""),
        ({"all": [IS_2020] * module.MOST_CONDITIONS}, "may have 100 conditions"),
        ({"all": [YEAR | {"exists": False}] * (module.MOST_CONDITIONS // 2)}, "may have 100 conditions"),
        ({"any": [YEAR | {"in": list(range(module.MOST_VALUES // 2 + 1))}] * 2}, "500 values of `in`"),
    ],
)
def test_what_is_wrong_is_said(condition, sentence):
    with pytest.raises(ValidationError) as error:
        FILTER.validate_python(condition)
    assert sentence in error.value.errors()[0]["msg"]
    assert error.value.error_count() == 1


@pytest.mark.parametrize(
    "condition",
    [
        nested(module.DEEPEST),
        {"all": [IS_2020] * (module.MOST_CONDITIONS - 1)},
        YEAR | {"in": list(range(module.MOST_VALUES))},
        {"field": "metadata.", "exists": True},
        YEAR | {"gte": None, "lt": 5},
    ],
)
def test_a_filter_may_be_as_large_as_is_said(condition):
    assert matches(FILTER.validate_python(condition), facets.tokens(chunk(metadata={"year": 1}))) in (True, False)


def test_a_range_of_a_number_is_one_of_doubles():
    """So a range may not tell two integers beyond 2⁵³ apart; `equal` does."""
    tokens = facets.tokens(chunk(metadata={"year": 2**53 + 1}))
    assert not matches(FILTER.validate_python(YEAR | {"gt": 2**53}), tokens)
    assert not matches(FILTER.validate_python(YEAR | {"equal": 2**53}), tokens)
