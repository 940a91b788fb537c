"""Hypothesis strategies for invalid records of every kind, each with its expected outcomes.

    cases = data.draw(batches("embed", settings, prefix="a"))

A kind is a function below. The function draws one record. Its decorator lists the reasons for which a stage may reject
the record; `None` in the list means that the record may come through. To add a kind, add a function.
"""

import json
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import orjson
from hypothesis import strategies as st
from support import vector

from stream.config import STAGES, Settings, StageName
from stream.records import MAX_VERSION, VECTOR_HEADER, Reason, Record, encode, sha256
from stream.vectors import pack, unpack

CASE_HEADER = "test.case"  # the number of the case in its batch; outputs and dead letters keep it
NOW = int(time.time() * 1000) // 86_400_000 * 86_400_000  # the last midnight, so that it is the same all day
PROVENANCE = {"model": "m", "revision": "r", "parameters": {"n": 1}}
VECTORS = [vector(seed) for seed in range(4)]
OLD_VECTORS = [b64encode(vector).decode() for vector in VECTORS]  # in the JSON, as earlier releases wrote them


@dataclass(frozen=True)
class Case:
    """A record, its kind, and all correct outcomes: a reason, or None if it comes through."""

    kind: str
    record: Record
    outcomes: frozenset[Reason | None]

    def __repr__(self) -> str:
        """Without the value, which may have megabytes."""
        r = self.record
        return f"<{self.kind}: key {r.key!r:.60} value {r.value!r:.200} time {r.timestamp} headers {r.headers!r:.200}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


@dataclass(frozen=True)
class Kind:
    """How to draw a record of one kind, and the stages that may receive it."""

    draw: Callable[[st.DrawFn, "Good"], Record]
    outcomes: frozenset[Reason | None]
    stages: tuple[StageName, ...]


KINDS: dict[str, Kind] = {}


def kind(*outcomes: Reason | None, stages: tuple[StageName, ...] = STAGES) -> Callable[..., Any]:
    """Registers a function as a kind; its name with spaces is the kind's name."""

    def register(function: Callable[[st.DrawFn, "Good"], Record]) -> Callable[[st.DrawFn, "Good"], Record]:
        KINDS[function.__name__.strip("_").replace("_", " ")] = Kind(function, frozenset(outcomes), stages)
        return function

    return register


def kinds_of(stage: StageName) -> list[str]:
    return [name for name, one in KINDS.items() if stage in one.stages]


@st.composite
def batches(draw: st.DrawFn, stage: StageName, settings: Settings, prefix: str) -> list[Case]:
    """12 to 22 records for a stage, valid and invalid, numbered in their `CASE_HEADER`.

    Every valid chunk_id begins with `prefix`. Some records share a key, so that their order matters. Kinds are drawn
    without repetition, because some would be rare otherwise; other records, mostly valid, are between them.
    """
    kinds = kinds_of(stage)
    wrong = draw(st.lists(st.sampled_from(kinds), min_size=8, max_size=14, unique=True))
    between = draw(st.lists(st.sampled_from(kinds[:1] * len(kinds) + kinds), min_size=4, max_size=8))
    mixed = [name for pair in zip_longest(wrong, between) for name in pair if name]
    good = Good(stage, settings, prefix)
    drawn = [Case(name, KINDS[name].draw(draw, good), KINDS[name].outcomes) for name in mixed]
    return [numbered(case, n) for n, case in enumerate(drawn)]


def numbered(case: Case, n: int) -> Case:
    """The case with another number."""
    others = [one for one in case.record.headers if one[0] != CASE_HEADER]
    return replace(case, record=replace(case.record, offset=n, headers=(*others, (CASE_HEADER, str(n).encode()))))


# Valid records

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: bool(text.replace("\ufeff", " ").strip())
)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=10)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
)
some = st.lists(scalars, max_size=3)
facets = st.dictionaries(
    names,
    st.one_of(
        scalars,
        some,
        st.dictionaries(names, scalars | some | st.dictionaries(names, scalars | some, max_size=1), max_size=2),
    ),
    max_size=3,
)
weights = st.floats(0.001, 10)
terms = st.dictionaries(st.sampled_from(["socket", ".", "...", "##er", "a.b", "字", "[unused1]"]), weights)


def written(value: dict[str, Any]) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Value and headers; the vector is in the JSON if it is not bytes, as earlier releases wrote it."""
    return encode(value) if isinstance(value.get(VECTOR_HEADER), bytes) else (orjson.dumps(value), [])


class Good:
    """A valid record of a stage, from which a kind makes an invalid one."""

    def __init__(self, stage: StageName, settings: Settings, prefix: str) -> None:
        self.stage = stage
        self.settings = settings
        self.limit = settings.max_record_bytes if stage == "embed" else settings.max_message_bytes
        self.ids = st.one_of(
            st.integers(0, 3).map(lambda n: f"{prefix}-{n}"),
            names.map(lambda name: f"{prefix}-{name}"),
            st.just((prefix + "字" * 512)[:512]),
        )
        fields: dict[str, st.SearchStrategy[Any]] = {"chunk_id": self.ids, "doc_id": st.just("d") | self.ids}
        optional: dict[str, st.SearchStrategy[Any]] = {
            "facet_json": facets,
            "table_lines": st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=10), max_size=2),
            "metadata": st.dictionaries(names, scalars | some, max_size=2),
        }
        version = st.integers(0, 5) | st.just(MAX_VERSION)
        if stage == "embed":
            optional["version"] = version
        else:
            fields |= {
                "version": version,
                "embedding_qwen": st.sampled_from([*VECTORS, *OLD_VECTORS]),
                "embedding_provenance": st.just(PROVENANCE),
            }
        if stage == "index":
            fields |= {
                "splade_terms": terms,
                "splade_norm": st.floats(0, 10),
                "splade_provenance": st.just(PROVENANCE),
            }
        own = sorted(fields.keys() - {VECTOR_HEADER})
        self.required = ["doc_id", "text", *own] if stage == "embed" else ["text", "text_sha256", *own]
        self.values = st.builds(self._with_text, st.fixed_dictionaries(fields, optional=optional), texts)

    def _with_text(self, value: dict[str, Any], text: str) -> dict[str, Any]:
        hashed = {} if self.stage == "embed" else {"text_sha256": sha256(text)}
        return {**value, "text": text} | hashed

    def record(self, value: Any, chunk_id: str | bytes | None, headers: Any = (), timestamp: int = NOW) -> Record:
        if isinstance(value, dict):
            data, vector = written(value)
        else:
            data, vector = value, [] if value is None or self.stage == "embed" else [(VECTOR_HEADER, VECTORS[0])]
        key = chunk_id.encode() if isinstance(chunk_id, str) else chunk_id
        return Record("generated", 0, 0, key, data, timestamp, (*headers, *vector))

    def spoilt(self, value: dict[str, Any], **fields: Any) -> Record:
        """The record with some fields of its value replaced; its key stays valid."""
        return self.record(value | fields, value["chunk_id"])

    def raw(self, value: dict[str, Any], name: str, literal: str) -> Record:
        """The record with one more field in its value, given as raw JSON."""
        data = written(value)[0][:-1] + f", {json.dumps(name)}: {literal}}}".encode("utf-8", "surrogatepass")
        return self.record(data, value["chunk_id"])


@kind(None)
def good(draw, good):
    value = draw(good.values)
    return good.record(value, value["chunk_id"], timestamp=NOW + draw(st.integers(0, 5)))


@kind(None)
def tombstone(draw, good):
    return good.record(None, draw(good.ids), timestamp=NOW + draw(st.integers(0, 5)))


@kind(None)
def tombstone_with_a_version(draw, good):
    version = draw(st.integers(0, 5) | st.just(MAX_VERSION))
    return good.record(None, draw(good.ids), headers=[("version", str(version).encode())])


# Not JSON


@kind("not-json")
def not_json(draw, good):
    value = draw(st.sampled_from([b"", b"{not json", b"{'a': 1}", b"{} {}", b"\xef\xbb\xbf{}", b"// {}", b"undefined"]))
    return good.record(value and value + draw(st.binary(max_size=20)), draw(good.ids))


@kind("not-json")
def truncated(draw, good):
    value = draw(good.values)
    whole, _ = written(value)
    return good.record(whole[: draw(st.integers(0, len(whole) - 1))], value["chunk_id"])


@kind("not-json")
def invalid_utf_8(draw, good):
    value = draw(good.values)
    broken = draw(st.sampled_from([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe4\xb8", b"\x80"]))
    data = written(value | {"text": "text<here>"})[0].replace(b"<here>", broken)
    return good.record(data, value["chunk_id"])


@kind("not-json")
def lone_surrogate(draw, good):
    half = draw(st.sampled_from(["\\ud800", "\\udbff", "\\udc00", "\\udfff", "\\ud800\\ud800"]))
    return good.raw(draw(good.values), "text", f'"half of {half}"')


@kind("not-json")
def not_a_number(draw, good):
    literal = draw(st.sampled_from(["NaN", "Infinity", "-Infinity", "1e400", "-1e999", "01", "+1", "0x10", "1."]))
    return good.raw(draw(good.values), draw(st.sampled_from(["metadata", "version"])), '{"n": %s}' % literal)  # noqa: UP031


@kind("not-json", "schema")
def deep_nesting(draw, good):
    depth = draw(st.sampled_from([10, 200, 300, 900, 1100, good.limit // 20]))
    opened, closed = draw(st.sampled_from([("[", "]"), ('{"a":', "}")]))
    literal = opened * depth + "1" + closed * depth * draw(st.integers(0, 1))
    return good.raw(draw(good.values), draw(st.sampled_from(["facet_json", "metadata", "text"])), literal)


# JSON that breaks the contract


@kind("schema")
def another_json_type(draw, good):
    value = draw(st.one_of(st.lists(scalars, max_size=3), scalars, st.just({}), st.just([{}])))
    return good.record(orjson.dumps(value), draw(good.ids))


@kind("schema")
def a_missing_field(draw, good):
    value = draw(good.values)
    lost = draw(st.sampled_from(good.required))
    return good.record({name: content for name, content in value.items() if name != lost}, value["chunk_id"])


@kind("schema")
def an_unknown_field(draw, good):
    return good.spoilt(draw(good.values), **{draw(names) + "!": draw(scalars)})


@kind("schema")
def a_mistyped_field(draw, good):
    wrong = {name: [5, ["x"], None, True] for name in ("chunk_id", "doc_id", "text")}
    wrong |= {"facet_json": [[], "x", 1, None], "table_lines": ["x", [1], {}], "metadata": [[], {"a": {"b": 1}}]}
    if good.stage != "embed":
        wrong |= {
            "embedding_qwen": [[0.1], "", "AA A", "\u2028", None],
            "text_sha256": ["", "A" * 64, 1],
            "embedding_provenance": [{}, PROVENANCE | {"more": 1}],
        }
    if good.stage == "index":
        wrong |= {"splade_norm": [-1, "1", None], "splade_provenance": [[]], "splade_terms": [[], ["a", 1], None]}
    name = draw(st.sampled_from(sorted(wrong)))
    return good.spoilt(draw(good.values), **{name: draw(st.sampled_from(wrong[name]))})


@kind("schema")
def control_characters_in_an_id(draw, good):
    control = draw(st.characters(categories=["Cc"]))
    return good.spoilt(draw(good.values), **{draw(st.sampled_from(["chunk_id", "doc_id"])): f"a{control}b"})


@kind("schema")
def an_id_of_wrong_length(draw, good):
    field = draw(st.sampled_from(["chunk_id", "doc_id"]))
    return good.spoilt(draw(good.values), **{field: draw(st.sampled_from(["", "i" * 513]))})


@kind("schema")
def empty_text(draw, good):
    return good.spoilt(draw(good.values), text=draw(st.sampled_from(["", " ", "\n\t ", "\u3000", "\xa0"])))


@kind("schema")
def a_version_that_is_none(draw, good):
    wrong = [-1, 2**53, 2**63 - 1, 2**63, 2**63 + 1, 1.5, 1e300, "7", None, [], True]
    return good.spoilt(draw(good.values), version=draw(st.sampled_from(wrong)))


@kind("schema")
def a_version_beyond_64_bits(draw, good):
    return good.raw(draw(good.values), "version", str(10 ** draw(st.integers(20, 40))))


# Unusual, but valid


@kind(None)
def a_version_written_as_a_float(draw, good):
    value = draw(good.values)
    return good.raw(value, "version", draw(st.sampled_from(["3.0", "4e0", "0.5e1"])))


@kind(None)
def huge_numbers(draw, good):
    literal = draw(st.sampled_from(["1" + "0" * 30, "9223372036854775808", "18446744073709551616", "1e308", "-5e-324"]))
    return good.raw(draw(good.values), "metadata", '{"n": [%s]}' % literal)  # noqa: UP031


@kind(None)
def duplicate_keys(draw, good):
    value = draw(good.values)
    name = draw(st.sampled_from(["doc_id", "table_lines", "chunk_id"]))
    last = {"doc_id": "last", "table_lines": ["last"], "chunk_id": value["chunk_id"]}[name]
    data = orjson.dumps({name: 5})[:-1] + b", " + written(value)[0][1:]
    again = data[:-1] + b", " + orjson.dumps({name: last})[1:]
    return good.record(again, value["chunk_id"])


@kind(None)
def control_characters_in_the_text(draw, good):
    value = draw(good.values)
    begun = draw(st.text(st.characters(categories=["Cc"]), max_size=5))
    text = begun + draw(st.sampled_from(["\x00", "\x00text", "t"]))
    hashed = {} if good.stage == "embed" else {"text_sha256": sha256(text)}
    return good.spoilt(value, text=text, **hashed)


@kind(None)
def header_soup(draw, good):
    value = draw(good.values)
    return good.record(value, value["chunk_id"], headers=draw(soups))


@kind(None)
def a_tombstone_in_header_soup(draw, good):
    version = ("version", str(draw(st.integers(0, 5))).encode())
    return good.record(None, draw(good.ids), headers=[*draw(soups), version])


# Sizes


@kind("too-large")
def huge_text(draw, good):
    return good.spoilt(draw(good.values), text="x" * draw(st.integers(good.limit, good.limit + 1000)))


@kind("too-large")
def a_byte_over_the_limit(draw, good):
    return sized(good, draw(good.values), good.limit + 1)


@kind(None, stages=("embed", "index"))
def as_large_as_the_limit(draw, good):
    return sized(good, draw(good.values), good.limit - draw(st.integers(0, 1)))


@kind("too-large", stages=("expand",))
def so_large_that_its_output_is_over_the_limit(draw, good):
    value = draw(good.values) | {VECTOR_HEADER: VECTORS[0]}  # base64 in the JSON would be longer than in the output
    return sized(good, value, good.limit - draw(st.integers(0, 50)))


@kind("too-large", stages=("embed", "expand"))
def headers_larger_than_the_topic(draw, good):
    value = draw(st.none() | good.values)
    chunk_id = draw(good.ids) if value is None else value["chunk_id"]
    most = good.settings.max_message_bytes
    large = [[("h", b"x" * most)], [("字" * (most // 3), None)], [("h", None)] * (most // 3), [("x" * most, b"")]]
    return good.record(value, chunk_id, headers=draw(st.sampled_from(large)))


@kind("refused-by-model", stages=("embed",))
def longer_than_the_model_reads(draw, good):
    return good.spoilt(draw(good.values), text="a " * 33_000)


def sized(good: Good, value: dict[str, Any], size: int) -> Record:
    """The value with a text that gives its record the wanted size."""
    blank = good.spoilt(value, text="").size
    text = "x" * (size - blank)
    hashed = {} if good.stage == "embed" else {"text_sha256": sha256(text)}
    return good.spoilt(value, text=text, **hashed)


# Keys, timestamps and null values


@kind("key")
def another_key(draw, good):
    value = draw(good.values)
    wrong = [None, b"", b"\xff\xfe", value["chunk_id"].encode() + b" ", b"\x00"]
    return good.record(value, draw(st.sampled_from(wrong)))


@kind("key")
def a_null_value_without_a_chunk_id(draw, good):
    headers = draw(st.sampled_from([[], [("version", b"7")]]))
    return good.record(None, draw(st.sampled_from([None, b"", b"\xff", b"a\nb", b"i" * 513])), headers=headers)


@kind("version")
def a_null_value_with_a_bad_version(draw, good):
    wrong = [b"", b"x", b"-1", b"1.5", b" 7", b"9" * 20, b"9" * 5000, "٣".encode(), b"\xff", None, str(2**53).encode()]
    before = draw(st.sampled_from([[], [("version", b"7")]]))
    return good.record(None, draw(good.ids), headers=[*before, ("version", draw(st.sampled_from(wrong)))])


bad_times = st.sampled_from([-1, 2**53, 2**62])


@kind("version")
def a_null_value_without_version_or_usable_time(draw, good):
    return good.record(None, draw(good.ids), timestamp=draw(bad_times))


@kind("version", stages=("embed",))
def a_chunk_without_version_or_usable_time(draw, good):
    value = draw(good.values)
    value.pop("version", None)
    return good.record(value, value["chunk_id"], timestamp=draw(bad_times))


@kind(None)
def an_odd_time_beside_a_version(draw, good):
    value = draw(good.values)
    return good.record(value | {"version": 3}, value["chunk_id"], timestamp=draw(bad_times | st.just(0)))


# Headers

header_values = st.none() | st.binary(max_size=10)
soups = st.lists(
    st.one_of(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), header_values),
        st.tuples(
            st.sampled_from(["traceparent", "published", "VERSION", "dlq", "dlq-x"]), header_values | st.just(b"7")
        ),
        st.tuples(
            st.sampled_from(["dlq.stage", "dlq.attempts", "dlq.redriven", "dlq.left-out", "dlq.", "dlq.x"]),
            st.sampled_from([None, b"", b"7", b"0@0", b"\xff", b"9007199254740991", b"index", b"-1"]),
        ),
    ),
    max_size=6,
)


# Vectors and terms


@kind("embedding", stages=("index",))
def a_wrong_vector(draw, good):
    size = good.settings.embed_dimensions
    whole = unpack(VECTORS[0]).copy()
    whole[draw(st.integers(0, size - 1))] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e38, 7]))
    wrong = draw(st.sampled_from([whole, np.zeros(size, "<f4"), whole[:-1], whole[:1], np.full(size, 1e-30, "<f4")]))
    return good.spoilt(draw(good.values), embedding_qwen=pack(wrong))


@kind("embedding", stages=("expand", "index"))
def no_vector(draw, good):
    value = draw(good.values)
    del value["embedding_qwen"]
    return good.record(value, value["chunk_id"])


@kind("embedding", stages=("index",))
def bytes_that_are_no_vector(draw, good):
    whole = VECTORS[0]
    return good.spoilt(draw(good.values), embedding_qwen=draw(st.sampled_from([b"", b"A", whole[:-1], whole + whole])))


@kind("embedding", "schema", stages=("index",))
def a_vector_that_is_no_base64(draw, good):
    whole = OLD_VECTORS[0]
    wrong = draw(st.sampled_from([whole[:-1], whole + "A", whole[:-4], "A", "AA==", whole + whole, "=" + whole[1:]]))
    return good.spoilt(draw(good.values), embedding_qwen=wrong)


@kind("schema", stages=("index",))
def terms_that_are_none(draw, good):
    wrong = [{"a": 0}, {"a": -0.5}, {"a": "1"}, {"a": None}, {"a": True}, {str(n): 1 for n in range(1001)}]
    return good.spoilt(draw(good.values), splade_terms=draw(st.sampled_from(wrong)))


@kind(None, "refused-by-opensearch", stages=("index",))
def terms_that_opensearch_may_refuse(draw, good):
    odd = st.sampled_from(["", " ", ".", "..", "\x00", "a" * 40_000, "a\nb", "_id", "*", '"'])
    weight = weights | st.sampled_from([5e-324, 1e-40, 1e38, 1e39, 1e308])
    return good.spoilt(draw(good.values), splade_terms=draw(st.dictionaries(odd | texts, weight, max_size=5)))


@kind(None, stages=("index",))
def as_many_terms_as_may_be(draw, good):
    return good.spoilt(draw(good.values), splade_terms={str(n): draw(weights) if n < 3 else 1 for n in range(1000)})
