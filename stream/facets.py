"""A chunk's fields as tokens: strings that both stores index and that filters compare.

    {"doc_id": "d", "metadata": {"year": 2020, "on": "2020-05-01"}, "facet_json": {"a": {"b": [true, null]}}}

    doc_id                                     the path has a value
    doc_id="d"                                 the value, as JSON
    metadata.year=2020
    metadata.year<c09f900000000000             a number for ranges: these digits sort as the numbers do
    metadata.on="2020-05-01"
    metadata.on@2020-05-01T00:00:00.000000Z    an ISO 8601 date for ranges, in UTC
    facet_json.a.b=true                        and the paths metadata.year, metadata.on and facet_json.a.b

A list has the tokens of each of its values. Null is no value. A key "a.b" has the path of the key "b" in an object "a".
The first `=`, `<` or `@` of a token ends its path: in keys these are escaped, as are `#`, `\\` and control characters.
A token has at most 512 bytes. A path or value that is too long is replaced by its beginning, `#` and its SHA-256.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any

import orjson

from stream.records import sha256

FIELDS = ("doc_id", "metadata", "facet_json")
MOST_VALUES = 10_000  # of a chunk: a record of 1 MiB may have 150,000, with 80 MB of tokens
MOST_BYTES = 512  # of a token; Lucene's limit is 32,766
MOST_PATH_BYTES = 255  # leaves half of a token to the value
DIGEST_BYTES = 1 + 64  # `#` and a SHA-256

ESCAPED = re.compile(r"[=<@#\\\x00-\x1f\x7f-\x9f]")
ESCAPE = re.compile(r"\\u([0-9a-f]{4})")
# What RFC 3339 allows, and also a date alone, no seconds, no offset.
DATE = re.compile(
    r"\d{4}-\d\d-\d\d([Tt ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d+)?)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)?)?", re.ASCII
)


def tokens(chunk: Mapping[str, object]) -> list[str]:
    """The chunk's tokens, distinct and sorted, of its first `MOST_VALUES` values. The first value is the `doc_id`."""
    found = set()
    values = chain.from_iterable(_values(name, chunk.get(name)) for name in FIELDS)
    for field, value in islice(values, MOST_VALUES):
        found |= {path(field), equal(field, value)}
        if token := comparable(field, value):
            found.add(token)
    return sorted(found)


def path(field: str) -> str:
    """The token of every chunk in which a field, like `metadata.year`, has a value."""
    escaped = ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", field)
    return _shortened(escaped, MOST_PATH_BYTES)


def equal(field: str, value: str | float | bool) -> str:
    """The token of a value. Equal numbers have one token: 2020 and 2020.0, 0 and -0.0."""
    text = orjson.dumps(value).decode() if isinstance(value, str | bool) else repr(_number(value))
    start = f"{path(field)}="
    return start + _shortened(text, MOST_BYTES - len(start.encode()))


def field_of(token: str) -> str | None:
    """The field of a token of `path`; None for another token, and for one that was shortened."""
    if any(mark in token for mark in "=<@#"):
        return None
    return ESCAPE.sub(lambda found: chr(int(found[1], 16)), token)


def value_of(token: str) -> tuple[str, str | int | float | bool] | None:
    """The field and the value of a token of `equal`; None for another token, and for one that was shortened."""
    start, equals, text = token.partition("=")
    field = field_of(start)
    if field is None or not equals:
        return None
    try:
        return field, orjson.loads(text)
    except orjson.JSONDecodeError:  # the beginning of a value, and its digest
        return None


def comparable(field: str, value: str | float | bool) -> str | None:
    """The token that sorts as the value, for numbers (as doubles) and ISO 8601 dates; None for other values.

    A date without a time is its midnight, and a time without an offset is in UTC. Digits after microseconds are cut.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return f"{path(field)}<{_sortable(float(value))}"
    moment = _moment(value)
    return moment and f"{path(field)}@{moment}"


def around(field: str, token: str) -> tuple[str, str]:
    """A string below and one above all tokens of the field that are comparable to this one: numbers, or dates."""
    start = token[: len(path(field)) + 1]
    return start, f"{start}~"


def _values(field: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _values(f"{field}.{key}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(field, inner)
    elif value is not None:
        yield field, value


def _number(value: float) -> int | float:
    """One value for equal numbers. A JSON integer beyond 64 bits is a double: so orjson reads it in a chunk."""
    number = value if -(2**63) <= value < 2**64 else float(value)
    return int(number) if abs(number) < 2**64 and number == int(number) else number


def _sortable(number: float) -> str:
    """16 hexadecimal digits; the bits of a negative double sort in reverse."""
    (bits,) = struct.unpack(">Q", struct.pack(">d", number + 0.0))  # + 0.0 makes -0.0 positive
    return f"{bits ^ (2**64 - 1 if bits >> 63 else 2**63):016x}"


def _moment(text: str) -> str | None:
    if not DATE.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text.upper())
        utc = moment.astimezone(UTC) if moment.tzinfo else moment
    except (ValueError, OverflowError):  # no such day, or none in the years 1 to 9999 of UTC
        return None
    return f"{utc.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _shortened(text: str, most: int) -> str:
    encoded = text.encode()
    if len(encoded) <= most:
        return text
    return f"{encoded[: most - DIGEST_BYTES].decode(errors='ignore')}#{sha256(text)}"
