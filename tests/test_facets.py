"""If these fail, a filter finds a wrong chunk or misses a right one."""

import math
import sys
from datetime import UTC, datetime, timedelta, timezone

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import facets as facet_json
from strategies import names, scalars
from support import chunk

from stream import facets
from stream.records import sha256

numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
zones = st.none() | st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=zones)


def test_the_tokens_of_a_chunk():
    """Stored tokens are these: another form needs a reindex."""
    made = facets.tokens(
        chunk(
            metadata={"lang": "en", "year": 2020, "none": None, "tags": ["a", "b", None], "empty": []},
            facet_json={"a": {"b": True, "on": "2020-05-01T02:00:00+02:00"}, "a.b": 0.5, "=<@#\\\n": 'q"uote'},
        )
    )
    assert made == sorted(
        [
            "doc_id",
            'doc_id="d1"',
            "metadata.lang",
            'metadata.lang="en"',
            "metadata.year",
            "metadata.year=2020",
            "metadata.year<c09f900000000000",
            "metadata.tags",
            'metadata.tags="a"',
            'metadata.tags="b"',
            "facet_json.a.b",
            "facet_json.a.b=true",
            "facet_json.a.b=0.5",
            "facet_json.a.b<bfe0000000000000",
            "facet_json.a.on",
            'facet_json.a.on="2020-05-01T02:00:00+02:00"',
            "facet_json.a.on@2020-05-01T00:00:00.000000Z",
            r"facet_json.\u003d\u003c\u0040\u0023\u005c\u000a",
            r'facet_json.\u003d\u003c\u0040\u0023\u005c\u000a="q\"uote"',
        ]
    )


@given(numbers, numbers)
@example(0, -0.0)
def test_number_tokens_sort_and_are_equal_as_doubles_do(a, b):
    first, second = facets.comparable("doc_id", a), facets.comparable("doc_id", b)
    assert (first < second, first == second) == (float(a) < float(b), float(a) == float(b))


@given(moments, moments)
def test_date_tokens_sort_and_are_equal_as_moments_do(a, b):
    first, second = facets.comparable("doc_id", a.isoformat()), facets.comparable("doc_id", b.isoformat("t"))
    a, b = (moment if moment.tzinfo else moment.replace(tzinfo=UTC) for moment in (a, b))
    assert (first < second, first == second) == (a < b, a == b)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "2020",
            "20200101",
            "2020-1-1",
            "2020-02-30",
            "2020-01-01T24:00",
            "2020-01-01T10",
            "٢٠٢٠-01-01",
            "0000-01-01",
        ),
        *("0001-01-01T00:00+01:00", "9999-12-31T23:59-01:00", "2020-01-01T10:00:60Z", "2020-01-01T10:00+24:00"),
        *(" 2020-01-01", "2020-01-01\n", "2020-W01-1", "2020-01-01T", "2020-01-01Z", "", "en"),
    ],
)
def test_other_text_is_no_date(text):
    assert facets.comparable("doc_id", text) is None


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2020-05-01", "2020-05-01T00:00:00.000000Z"),
        ("0001-01-01", "0001-01-01T00:00:00.000000Z"),
        ("2020-05-01 10:20", "2020-05-01T10:20:00.000000Z"),
        ("2020-05-01t10:20:30.1234567z", "2020-05-01T10:20:30.123456Z"),
        ("2020-05-01T00:20-10:30", "2020-05-01T10:50:00.000000Z"),
    ],
)
def test_dates_are_in_utc(text, moment):
    assert facets.comparable("doc_id", text) == f"doc_id@{moment}"


@given(numbers, numbers)
def test_equal_numbers_have_one_token(a, b):
    """As numbers: 2020 and 2020.0, but not 2⁵³ and 2⁵³ + 1."""
    for one, other in [(a, b), (a, _twin(a))]:
        assert (facets.equal("doc_id", one) == facets.equal("doc_id", other)) == (one == other)


def _twin(number):
    """The same number as the other type, if it has one."""
    if isinstance(number, int):
        return float(number) if int(float(number)) == number else number
    return int(number) if number.is_integer() and -(2**63) <= number < 2**64 else number


def test_a_number_is_that_which_the_chunk_s_json_has():
    """The stages read an integer beyond 64 bits as a double."""
    for text in ["18446744073709551617", "-9223372036854775809", "1e300", "-0.0", "0.1"]:
        assert facets.equal("doc_id", int(text) if text.strip("-").isdigit() else float(text)) == facets.equal(
            "doc_id", orjson.loads(text)
        )
    assert facets.equal("doc_id", True) != facets.equal("doc_id", 1)
    assert facets.equal("doc_id", sys.float_info.max) == "doc_id=1.7976931348623157e+308"
    assert facets.equal("doc_id", math.ulp(0.0)) == "doc_id=5e-324"


long_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4).map(lambda text: text * 300)


values = long_text | names | st.booleans() | st.integers(-3, 3)


@given(long_text | names, long_text | names, values, values)
def test_different_fields_and_values_have_different_short_tokens(key, other_key, value, other_value):
    for k, v in [(other_key, value), (key, other_value), (key + "x", value), (key, f"{value}x")]:
        a, b = facets.equal(f"metadata.{key}", value), facets.equal(f"metadata.{k}", v)
        assert (a == b) == (key == k and type(value) is type(v) and value == v)
        assert max(len(a.encode()), len(b.encode())) <= facets.MOST_BYTES


@given(long_text | names, long_text | names | st.booleans() | numbers)
@example("a", 2.0)
@example("a", -0.0)
@example("a", 2**70)
@example("\\u0041=", '"#')
def test_a_token_is_read_back_as_its_field_and_value(key, value):
    """Else a person who chooses one of the values that the service lists finds nothing, or other chunks."""
    field = f"metadata.{key}"
    path, token = facets.path(field), facets.equal(field, value)
    assert facets.field_of(path) == (None if "#" in path else field)
    assert facets.field_of(token) is facets.value_of(path) is None
    if "#" in path or token.endswith(f"#{sha256(json_of(value))}"):
        assert facets.value_of(token) is None
    else:
        read_field, read = facets.value_of(token)
        assert (read_field, read, isinstance(read, bool)) == (field, value, isinstance(value, bool))
        assert facets.equal(read_field, read) == token
    if other := facets.comparable(field, value):
        assert facets.value_of(other) is facets.field_of(other) is None


def json_of(value) -> str:
    return orjson.dumps(value).decode() if isinstance(value, str) else ""


@given(st.dictionaries(names | long_text, scalars | long_text, max_size=3), facet_json)
def test_a_token_tells_its_path(metadata, nested):
    """The path of each token is a token itself, so that counts of values can be read from tokens."""
    made = facets.tokens(chunk(metadata=metadata, facet_json=nested))
    assert made == sorted(set(made))
    for token in made:
        ends = [token.index(sign) for sign in "=<@" if sign in token]
        assert token[: min(ends, default=None)] in made
        assert len(token.encode()) <= facets.MOST_BYTES
        assert not any(letter < " " or "\x7f" <= letter <= "\x9f" for letter in token.partition("=")[0])


def test_a_chunk_of_a_mebibyte_of_values_does_not_fill_the_stores():
    made = facets.tokens(chunk(metadata={"k" * 300: list(range(200_000))}, facet_json={"late": 1}))
    assert len("".join(made)) < 10 * 2**20
    assert 'doc_id="d1"' in made
    assert "facet_json.late" not in made
