"""Hypothesis strategies for chunks with many kinds of fields, and for filters that find some of them."""

from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st
from support import expanded

from stream.records import Expanded

SYNTAX = ["*", "?", "~2", "a AND b", "a OR NOT b", "[a TO b]", "+a -b", '"', "\\", '\\"', "'", "`", "$f0", "a:b", "/a/"]
SYNTAX += [
    "}) DETACH DELETE n //",
    "{a}",
    "=",
    "<",
    "@",
    "#",
    "a.b",
    ".",
    "",
    " ",
    "\x00",
    "\n",
    "\x7f",
    "字",
    "🜚",
    "\uffff",
]

syntax = st.sampled_from(SYNTAX)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
zones = st.none() | st.integers(-840, 840).map(lambda minutes: timezone(timedelta(minutes=minutes)))
dates = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=zones).map(lambda date: date.isoformat())
days = st.dates().map(lambda day: day.isoformat())
doubles = st.floats(allow_nan=False, allow_infinity=False)
numbers = st.integers(-3, 3) | st.sampled_from([0.5, -0.0, 2.0]) | st.integers(-(2**63), 2**64 - 1) | doubles
long = st.builds(lambda part, times: part * times, syntax | text, st.sampled_from([100, 2000]))
scalars = st.one_of(st.none(), st.booleans(), numbers, dates, days, syntax, text, long)
values = scalars | st.lists(scalars, max_size=4)
keys = st.one_of(syntax, text, st.sampled_from("abc"), long)
inner = st.dictionaries(keys, values, max_size=2)
facets = st.dictionaries(keys, values | inner | st.dictionaries(keys, inner, max_size=2), max_size=3)


@st.composite
def chunks(draw: st.DrawFn, chunk_id: str = "c1", **more: Any) -> Expanded:
    """A chunk whose fields have few names with values of every type."""
    metadata, facet_json = draw(st.dictionaries(keys, values, max_size=4)), draw(facets)
    return expanded(chunk_id, doc_id=draw(syntax.map(repr)), metadata=metadata, facet_json=facet_json, **more)


def filters(records: list[Expanded]) -> st.SearchStrategy[dict[str, Any]]:
    """A filter as JSON; its fields and values are mostly those of the records."""
    found = [leaf for record in records for leaf in leaves_of({name: record.get(name) for name in NAMES})]
    held = st.integers(0, len(found) - 1).map(lambda i: found[i])
    fields = held.map(lambda leaf: leaf[0]) | keys.map(lambda key: f"metadata.{key}")
    wanted = held.map(lambda leaf: leaf[1]) | scalars.filter(lambda value: value is not None)
    leaves = st.one_of(
        st.builds(lambda field, value: {"field": field, "equal": value}, fields, wanted),
        held.map(lambda leaf: {"field": leaf[0], "equal": leaf[1]}),
        st.builds(lambda field, some: {"field": field, "in": some}, fields, st.lists(wanted, min_size=1, max_size=3)),
        st.builds(lambda field, exists: {"field": field, "exists": exists}, fields, st.booleans()),
        *(
            st.builds(lambda field, bounds: {"field": field} | bounds, fields, ranges(bounds))
            for bounds in (numbers, dates | days)
        ),
    )
    return st.recursive(
        leaves,
        lambda parts: st.one_of(
            parts.map(lambda part: {"not": part}),
            st.lists(parts, min_size=1, max_size=3).map(lambda some: {"all": some}),
            st.lists(parts, min_size=1, max_size=3).map(lambda some: {"any": some}),
        ),
        max_leaves=6,
    ).filter(lambda condition: _depth(condition) <= 10)


@st.composite
def ranges(draw: st.DrawFn, bounds: st.SearchStrategy[Any]) -> dict[str, Any]:
    lower = draw(st.dictionaries(st.sampled_from(["gte", "gt"]), bounds, max_size=1))
    return lower | draw(st.dictionaries(st.sampled_from(["lte", "lt"]), bounds, min_size=not lower, max_size=1))


NAMES = ("doc_id", "metadata", "facet_json")


def leaves_of(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for key, part in value.items() for leaf in leaves_of(part, f"{path}.{key}" if path else key)]
    if isinstance(value, list):
        return [leaf for part in value for leaf in leaves_of(part, path)]
    return [] if value is None else [(path, value)]


def _depth(condition: dict[str, Any]) -> int:
    parts = [condition["not"]] if "not" in condition else condition.get("all") or condition.get("any") or []
    return 1 + max(map(_depth, parts), default=0)
