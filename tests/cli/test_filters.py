"""If these fail, `stream search --filter` selects other chunks than it says, or ends with a traceback."""

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream.cli.filters import all_of, condition
from stream.errors import InvalidRequest
from stream.search.request import Request, request


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("metadata.lang=en", {"field": "metadata.lang", "equal": "en"}),
        (" metadata.lang = en ", {"field": "metadata.lang", "equal": "en"}),
        ("metadata.lang!=en", {"not": {"field": "metadata.lang", "equal": "en"}}),
        ("metadata.year=2020", {"field": "metadata.year", "equal": 2020}),
        ('metadata.year="2020"', {"field": "metadata.year", "equal": "2020"}),
        ("metadata.year=-2.5e3", {"field": "metadata.year", "equal": -2500.0}),
        ("metadata.ok=true", {"field": "metadata.ok", "equal": True}),
        ("metadata.ok=True", {"field": "metadata.ok", "equal": "True"}),
        ("metadata.x=null", {"field": "metadata.x", "equal": "null"}),
        ("metadata.x=NaN", {"field": "metadata.x", "equal": "NaN"}),
        ('metadata.x=""', {"field": "metadata.x", "equal": ""}),
        ('metadata.x=">= 5"', {"field": "metadata.x", "equal": ">= 5"}),
        ("metadata.x=a=b<c", {"field": "metadata.x", "equal": "a=b<c"}),
        ("doc_id=a,b", {"field": "doc_id", "equal": "a,b"}),
        ('doc_id=["a", 2]', {"field": "doc_id", "in": ["a", 2]}),
        ('doc_id!=["a"]', {"not": {"field": "doc_id", "in": ["a"]}}),
        ("metadata.year>=2020", {"field": "metadata.year", "gte": 2020}),
        ("metadata.year>2020", {"field": "metadata.year", "gt": 2020}),
        ("metadata.year<=2020", {"field": "metadata.year", "lte": 2020}),
        ("metadata.when<2026-01-31", {"field": "metadata.when", "lt": "2026-01-31"}),
        ("metadata.lang", {"field": "metadata.lang", "exists": True}),
        ("!metadata.lang", {"field": "metadata.lang", "exists": False}),
        ('{"any": [{"field": "doc_id", "equal": "a"}]}', {"any": [{"field": "doc_id", "equal": "a"}]}),
    ],
)
def test_each_form_is_the_json_that_it_abbreviates(text, form):
    assert condition(text) == form


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no field"),
        ("=en", "names no field"),
        ("!", "names no field"),
        ("metadata.lang=", "no value"),
        ("metadata.lang==en", "no value"),
        ("metadata.year=>2020", "no value"),
        ("!metadata.lang=en", "write !="),
        ('metadata.lang="en', "must be JSON"),
        ("metadata.lang=[en]", "must be JSON"),
        ('{"field": "doc_id"', "must be JSON"),
    ],
)
def test_what_is_wrong_is_said(text, words):
    with pytest.raises(InvalidRequest, match=words):
        condition(text)


def test_several_filters_must_all_hold():
    assert all_of([]) is None
    assert all_of(["doc_id=a"]) == {"field": "doc_id", "equal": "a"}
    assert all_of(["doc_id=a", "!metadata.b"]) == {
        "all": [{"field": "doc_id", "equal": "a"}, {"field": "metadata.b", "exists": False}]
    }


fields = st.sampled_from(["doc_id", "metadata.a", "facet_json.a.b", "metadata", "x", ""]) | st.text(max_size=8)
pieces = st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "!", '"', "[", "]", "{", "}", ",", " ", "1", "2026-01-31"])
json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.sampled_from(["doc_id", "2026"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["field", "equal", "in", "gte", "exists", "not", "all", "any"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
texts = st.lists(fields | pieces, max_size=6).map("".join) | json.map(
    lambda value: orjson.dumps({"all": value}).decode()
)


@given(st.lists(texts, max_size=3))
@example(['{"not": ' * 2000 + "{}" + "}" * 2000])
@example(['{"not": ' * 500 + '{"field": "doc_id", "exists": true}' + "}" * 500])
@example(["!" * 100_000])
@example(["metadata.x=" + "9" * 5000])
@example(["metadata.x>1e999"])
@example(["metadata.x=\ud800"])
def test_any_text_is_a_filter_or_one_sentence(filters):
    try:
        asked = request(query="q", filter=all_of(filters))
    except InvalidRequest as error:
        assert len(str(error)) < 1000
        assert "\n" not in str(error)
    else:
        assert isinstance(asked, Request)
        assert (asked.filter is None) == (not filters)


@given(st.sampled_from(["metadata.a", "doc_id"]), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_quoted_value_is_that_text(field, value):
    assert condition(f"{field}={orjson.dumps(value).decode()}") == {"field": field, "equal": value}
