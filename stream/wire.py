"""The JSON in the value of a record that a producer has written, plain or in the Confluent wire format.

The wire format names the schema of a value in a schema registry, in one of two places:

    prefix   a byte 0 and the schema's id (4 bytes, big-endian) before the value
    header   `__value_schema_id`: a byte 1 and the schema's GUID (16 bytes); the value has no prefix

A Protobuf serializer appends the message's indexes to either; those of a file's first message are one byte 0. JSON
never begins with a byte 0. No schema is read: the contract decides whether a record is valid.

Source: "Wire format" in Confluent's documentation of Schema Registry, and the serializers of confluent-kafka 2.16.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import orjson

ValueFormat = Literal["auto", "json", "confluent"]
Headers = Sequence[tuple[str, bytes | None]]
Parse = Callable[[bytes, Headers], Any]

MAGIC = b"\0"
PREFIX = 5  # bytes
GUID = 17  # bytes
SCHEMA_HEADER = "__value_schema_id"


def plain(value: bytes, headers: Headers) -> Any:
    """The JSON of a value that has no prefix. As the two others it raises `ValueError` with a sentence."""
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        if _prefixed(value):
            raise ValueError(
                "the record is not JSON: it begins with byte 0, as in the Confluent wire format, which "
                "STREAM_VALUE_FORMAT=json does not read"
            ) from None
        raise ValueError(_why(value, headers, error)) from None


def confluent(value: bytes, headers: Headers) -> Any:
    """The JSON of a value in one of the forms of the wire format."""
    if not _prefixed(value) and _schema(headers) is None:
        raise ValueError("the record has no schema id, which STREAM_VALUE_FORMAT=confluent requires")
    try:
        return orjson.loads(payload(value))
    except orjson.JSONDecodeError as error:
        raise ValueError(_why(value, headers, error)) from None


def either(value: bytes, headers: Headers) -> Any:
    """The JSON of a value in any of these forms."""
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        if _prefixed(value):  # looked at only now: plain JSON costs nothing more
            return confluent(value, headers)
        raise ValueError(_why(value, headers, error)) from None


PARSERS: Mapping[ValueFormat, Parse] = {"auto": either, "json": plain, "confluent": confluent}


def payload(value: bytes) -> bytes:
    """The value without the prefix of the Confluent wire format, if it has one."""
    return value[PREFIX:] if _prefixed(value) else value


def _prefixed(value: bytes) -> bool:
    return value.startswith(MAGIC) and len(value) > PREFIX


def _schema(headers: Headers) -> bytes | None:
    return dict(headers).get(SCHEMA_HEADER)


def _why(value: bytes, headers: Headers, error: orjson.JSONDecodeError) -> str:
    prefixed, content, schema = _prefixed(value), payload(value), _schema(headers)
    # Neither Avro nor Protobuf begins with "{": it would be a negative length, or a negative number of indexes.
    if content.startswith(b"{") or not (prefixed or schema):
        return f"the record is not JSON: {error}"
    if schema and not prefixed:
        name = "Protobuf" if len(schema) > GUID else "Avro"
    else:  # a chunk in Avro begins with a byte 0 only if its first field is null or empty
        name = "Protobuf" if content.startswith(MAGIC) else "Avro or Protobuf"
    return (
        f"the record is {name} in the Confluent wire format, and only JSON is read: "
        "let the producer use the serializer of JSON Schema"
    )
