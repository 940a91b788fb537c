"""Conditions on a chunk's fields, and what they are in each store.

    {"all": [{"field": "metadata.lang", "equal": "en"},
             {"field": "metadata.year", "gte": 2020, "lt": 2024},
             {"not": {"field": "facet_json.kind.name", "in": ["draft", "note"]}}]}

A filter compares the tokens of `stream.facets`, so it means the same everywhere. A condition holds for a list if it
holds for one of its values. It does not hold for a value of another type than its own; that is no error.

Both stores hold a chunk's tokens as `facets`. No filter, `not` included, finds a deleted chunk or a chunk without
tokens, which an earlier release stored.
"""

import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from stream import facets
from stream.stores.base import Shown

# Both stores limit a query to 1,024 clauses: a filter makes at most one of each condition, and in Neo4j of each value.
MOST_CONDITIONS = 100  # objects of the JSON; `"exists": false` counts as two
MOST_VALUES = 500  # of all `in`
DEEPEST = 10  # objects within objects
EVERY_CHUNK = facets.path("doc_id")


def _filterable(field: str) -> str:
    if field != "doc_id" and not field.startswith(("metadata.", "facet_json.")):
        raise ValueError(f"{field!r:.100} cannot be filtered: only doc_id, metadata.* and facet_json.* can")
    return _unicode(field)


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be Unicode text without lone surrogates") from None
    return text


def _scalar(value: Any) -> Any:
    if isinstance(value, str):
        return _unicode(value)
    with suppress(OverflowError):  # an integer that no double comes near
        if isinstance(value, int | float) and math.isfinite(value):
            return value
    raise ValueError("must be text, a finite number, true or false")


def _comparable(value: Any) -> Any:
    if facets.comparable("doc_id", _scalar(value)) is None:
        raise ValueError("must be a number or an ISO 8601 date like 2024-05-31 or 2024-05-31T23:59:59Z")
    return value


FieldName = Annotated[str, AfterValidator(_filterable)]
Value = Annotated[str | int | float | bool, BeforeValidator(_scalar)]
Bound = Annotated[str | int | float, BeforeValidator(_comparable)]


class _Condition(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)


class Equal(_Condition):
    """The field has this value. Numbers are equal as numbers, dates and other strings as text."""

    field: FieldName
    equal: Value

    @property
    def tokens(self) -> list[str]:
        """The value's token."""
        return [facets.equal(self.field, self.equal)]


class In(_Condition):
    """The field has one of these values."""

    field: FieldName
    values: Annotated[list[Value], Field(min_length=1, alias="in")]

    @property
    def tokens(self) -> list[str]:
        """The values' tokens."""
        return [facets.equal(self.field, value) for value in self.values]


class Exists(_Condition):
    """The field has a value, or has none. Null is no value."""

    field: FieldName
    exists: bool

    @property
    def tokens(self) -> list[str]:
        """The path's token."""
        return [facets.path(self.field)]


class Range(_Condition):
    """The field has a number between these numbers, compared as doubles, or an ISO 8601 date between these dates."""

    field: FieldName
    gte: Bound | None = None
    gt: Bound | None = None
    lte: Bound | None = None
    lt: Bound | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if (self.gte is not None and self.gt is not None) or (self.lte is not None and self.lt is not None):
            raise ValueError("a range has gte or gt, not both, and lte or lt, not both")
        tokens = [token for token in (self._lower, self._upper) if token]
        if not tokens:
            raise ValueError("a range needs a number or a date")
        if len({facets.around(self.field, token) for token in tokens}) > 1:
            raise ValueError("a range is between two numbers or between two dates")
        return self

    @property
    def _lower(self) -> str | None:
        return self._token(self.gte, self.gt)

    @property
    def _upper(self) -> str | None:
        return self._token(self.lte, self.lt)

    def _token(self, *bounds: str | float | None) -> str | None:
        return next((facets.comparable(self.field, bound) for bound in bounds if bound is not None), None)

    @property
    def ends(self) -> tuple[str, bool, str, bool]:
        """The tokens at the lower and the upper end, each with whether it is included. An open end has a token too."""
        below, above = facets.around(self.field, self._lower or self._upper or "")
        return self._lower or below, self.gte is not None, self._upper or above, self.lte is not None


class Not(_Condition):
    """The condition does not hold, for example because the field has no value."""

    negated: Annotated["Filter", Field(alias="not")]


class AllOf(_Condition):
    """Each condition holds."""

    parts: Annotated[list["Filter"], Field(min_length=1, alias="all")]


class AnyOf(_Condition):
    """At least one condition holds."""

    parts: Annotated[list["Filter"], Field(min_length=1, alias="any")]


FORMS: dict[str, type[_Condition]] = {
    **{"equal": Equal, "in": In, "exists": Exists},
    **dict.fromkeys(("gte", "gt", "lte", "lt"), Range),
    **{"not": Not, "all": AllOf, "any": AnyOf},
}


def _form(value: Any) -> str | None:
    if isinstance(value, dict):
        return next((form.__name__ for key, form in FORMS.items() if key in value), None)
    return type(value).__name__


def _bounded(condition: "Filter") -> "Filter":
    conditions, values, depth = _size(condition)
    if conditions > MOST_CONDITIONS or values > MOST_VALUES or depth > DEEPEST:
        raise ValueError(
            f"a filter may have {MOST_CONDITIONS} conditions, {MOST_VALUES} values of `in` and a depth of {DEEPEST}: "
            "this one has more"
        )
    return condition


Filter = Annotated[
    Annotated[Equal, Tag("Equal")]
    | Annotated[In, Tag("In")]
    | Annotated[Exists, Tag("Exists")]
    | Annotated[Range, Tag("Range")]
    | Annotated[Not, Tag("Not")]
    | Annotated[AllOf, Tag("AllOf")]
    | Annotated[AnyOf, Tag("AnyOf")],
    Discriminator(
        _form,
        custom_error_type="form",
        custom_error_message=f"must be an object with one of {', '.join(FORMS)}",
    ),
    AfterValidator(_bounded),
]
for _combination in (Not, AllOf, AnyOf):
    _combination.model_rebuild()


def _size(condition: Filter) -> tuple[int, int, int]:
    """The conditions, the values of `in`, and the depth of a filter."""
    match condition:
        case Not(negated=part):
            parts = [part]
        case AllOf(parts=parts) | AnyOf(parts=parts):
            pass
        case _:
            values = len(condition.values) if isinstance(condition, In) else 0
            return 1 + (isinstance(condition, Exists) and not condition.exists), values, 1
    sizes = [_size(part) for part in parts]
    return 1 + sum(size[0] for size in sizes), sum(size[1] for size in sizes), 1 + max(size[2] for size in sizes)


def opensearch(condition: Filter) -> dict[str, Any]:
    """A query of OpenSearch on the keyword field `facets`, for the filter context of a `bool` query."""
    match _positive(condition):
        case Equal() | In() | Exists() as leaf:
            return {"terms": {"facets": leaf.tokens}}
        case Range(ends=(lower, from_lower, upper, to_upper)):
            return {"range": {"facets": {"gte" if from_lower else "gt": lower, "lte" if to_upper else "lt": upper}}}
        case Not(negated=part):
            every = {"term": {"facets": EVERY_CHUNK}}
            return {"bool": {"filter": [every], "must_not": [opensearch(part)]}}
        case AllOf(parts=parts):
            return {"bool": {"filter": [opensearch(part) for part in parts]}}
        case AnyOf(parts=parts):
            return {"bool": {"should": [opensearch(part) for part in parts], "minimum_should_match": 1}}


def lucene(condition: Filter) -> str:
    """A query of Neo4j's full-text index over `facets`, whose analyzer is `keyword`.

    Syntax: https://lucene.apache.org/core/9_11_0/queryparser/org/apache/lucene/queryparser/classic/package-summary.html
    """
    match _positive(condition):
        case Equal() | In() | Exists() as leaf:
            return f"({' OR '.join(map(_quoted, leaf.tokens))})"
        case Range(ends=(lower, from_lower, upper, to_upper)):
            return f"{'[' if from_lower else '{'}{_quoted(lower)} TO {_quoted(upper)}{']' if to_upper else '}'}"
        case Not(negated=part):
            return f"(+{_quoted(EVERY_CHUNK)} -{lucene(part)})"
        case AllOf(parts=parts):
            return f"({' '.join(f'+{lucene(part)}' for part in parts)})"
        case AnyOf(parts=parts):
            return f"({' OR '.join(map(lucene, parts))})"


def cypher(condition: Filter, node: str) -> tuple[str, dict[str, Any]]:
    """An expression over the property `facets` of a node, and its parameters, whose names begin with `f`.

    `node` is a variable of the query. The expression is null for a node without `facets`.
    """
    parameters: dict[str, Any] = {}

    def parameter(value: Any) -> str:
        name = f"f{len(parameters)}"
        parameters[name] = value
        return f"${name}"

    def some(test: str) -> str:
        return f"any(facet IN {node}.facets WHERE {test})"

    def expression(condition: Filter) -> str:
        match _positive(condition):
            case In() as leaf:
                return some(f"facet IN {parameter(leaf.tokens)}")
            case Equal() | Exists() as leaf:
                return f"{parameter(leaf.tokens[0])} IN {node}.facets"
            case Range(ends=(lower, from_lower, upper, to_upper)):
                above = f"facet {'>=' if from_lower else '>'} {parameter(lower)}"
                return some(f"{above} AND facet {'<=' if to_upper else '<'} {parameter(upper)}")
            case Not(negated=part):
                return f"NOT {expression(part)}"
            case AllOf(parts=parts):
                return f"({' AND '.join(map(expression, parts))})"
            case AnyOf(parts=parts):
                return f"({' OR '.join(map(expression, parts))})"

    return f"({expression(condition)})", parameters


def matches(condition: Filter, tokens: Collection[str]) -> bool:
    """Whether a chunk with these tokens (at least one) passes the filter: the definition, in Python."""
    match _positive(condition):
        case Equal() | In() | Exists() as leaf:
            return any(token in tokens for token in leaf.tokens)
        case Range(ends=(lower, from_lower, upper, to_upper)):
            inside = (token for token in tokens if lower <= token <= upper)
            return any((from_lower or token != lower) and (to_upper or token != upper) for token in inside)
        case Not(negated=part):
            return not matches(part, tokens)
        case AllOf(parts=parts):
            return all(matches(part, tokens) for part in parts)
        case AnyOf(parts=parts):
            return any(matches(part, tokens) for part in parts)


def takes(condition: Filter | None, chunk: Shown) -> bool:
    """Whether a chunk passes the filter; without a filter, every chunk does."""
    return condition is None or matches(condition, facets.tokens(asdict(chunk)))


def _positive(condition: Filter) -> Filter:
    """`"exists": false` as a negation; other conditions unchanged."""
    if isinstance(condition, Exists) and not condition.exists:
        return Not(negated=condition.model_copy(update={"exists": True}))
    return condition


def _quoted(token: str) -> str:
    return '"' + token.replace("\\", "\\\\").replace('"', '\\"') + '"'
