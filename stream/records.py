"""Kafka's records as bytes, their decoded values, and a stage's outcome for each record.

Each stage adds to a chunk: `Chunk` + vector = `Embedded`, `Embedded` + terms = `Expanded`. These are plain
dictionaries, typed here and checked against `schemas/` by `Decoder`. A record with a null value is a `Tombstone`.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, Self, TypedDict

import orjson

from stream import mapping, wire
from stream.config import Settings
from stream.contracts import Contract, problem

Scalar = str | int | float | bool | None
Headers = wire.Headers

VERSION_HEADER = "version"
VECTOR_HEADER = "embedding_qwen"  # little-endian float32: beside the JSON, which need not be parsed for it
PUBLISHED_HEADER = "published"  # a record's timestamp in the first topic, ms: later topics have timestamps of their own
MAX_VERSION = 2**53 - 1  # the largest integer that every JSON reader reads exactly
NO_VERSION = "has no version, and its timestamp is outside 0…2^53−1 and cannot serve as a version"


class Provenance(TypedDict):
    """The model that made a vector: `schemas/embedded.json#/$defs/provenance`."""

    model: str
    revision: str
    parameters: dict[str, Scalar]


def embedding_space(provenance: Provenance) -> tuple[Scalar, ...]:
    """The model, revision and number of dimensions: only vectors with an equal value may be compared."""
    return provenance["model"], provenance["revision"], provenance["parameters"].get("dimensions")


class Chunk(TypedDict):
    """`schemas/chunk.json`; `Decoder` sets the version if the record has none."""

    chunk_id: str
    doc_id: str
    text: str
    version: int
    facet_json: NotRequired[dict[str, Any]]
    table_lines: NotRequired[list[str]]
    metadata: NotRequired[dict[str, Scalar | list[Scalar]]]


class Embedded(Chunk):
    """`schemas/embedded.json`, and the vector of the header: little-endian float32, unit norm."""

    text_sha256: str
    embedding_qwen: bytes
    embedding_provenance: Provenance


@dataclass(frozen=True, slots=True)
class Position:
    """Where a record is in Kafka."""

    topic: str
    partition: int
    offset: int


class Expanded(Embedded):
    """`schemas/expanded.json`: all that the stores hold."""

    splade_terms: dict[str, float]
    splade_norm: float
    splade_provenance: Provenance


class Placed(Expanded):
    """An expanded chunk with the position of its record, which the batch loop adds for the stores."""

    position: NotRequired[Position]


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Deletes a chunk from both stores, unless they hold a higher version."""

    chunk_id: str
    version: int


@dataclass(frozen=True, slots=True)
class Record:
    """One record as Kafka stores it; `timestamp` is in milliseconds since the epoch."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: Headers = ()

    @property
    def position(self) -> Position:
        """Where it is."""
        return Position(self.topic, self.partition, self.offset)

    @property
    def size(self) -> int:
        """Bytes of key and value, without headers."""
        return len(self.key or b"") + len(self.value or b"")


Reason = Literal[
    "too-large",
    "not-json",
    "schema",
    "key",
    "version",
    "embedding",
    "refused-by-model",
    "refused-by-neo4j",
    "refused-by-opensearch",
]


@dataclass(frozen=True, slots=True)
class Done:
    """The stage has processed the record; `output` goes to the next topic, if the stage has one."""

    output: dict[str, Any] | Tombstone | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """The stage can never process the record, and only this record becomes a dead letter.

    `reason` is a word for scripts, `detail` a sentence for people.
    """

    reason: Reason
    detail: str


Outcome = Done | Rejected
Decoded = dict[str, Any] | Tombstone | Rejected


def sha256(text: str) -> str:
    """SHA-256 of a string as UTF-8, hexadecimal: shows whether a text or an encoded vector has changed."""
    return hashlib.sha256(text.encode()).hexdigest()


def header(headers: Headers, name: str) -> bytes | None:
    """The value of the last header of that name, as Kafka's `lastHeader`; None if there is none."""
    return next((value for key, value in reversed(headers) if key == name), None)


def number(value: bytes | None) -> int | None:
    """A header's value, in decimal digits, as an integer from 0 to `MAX_VERSION`; None for anything else."""
    if value is None or not value.isdigit() or len(value) > len(str(MAX_VERSION)) or int(value) > MAX_VERSION:
        return None
    return int(value)


@dataclass(frozen=True, slots=True)
class Decoder:
    """Decodes the records of one topic: of the first one as producers write them, of later ones as the stages do.

    Every reader of the first topic uses this class. `content` parses a value: it returns the JSON, or the chunk that
    `field_mapping` makes of it, and raises `ValueError` with a sentence.
    """

    contract: Contract
    max_bytes: int
    content: wire.Parse = wire.plain
    field_mapping: str = ""

    @classmethod
    def of(cls, contract: Contract, settings: Settings) -> Self:
        """The decoder of the topic that has this contract."""
        if contract != "chunk":
            return cls(contract, settings.max_message_bytes)
        parse, expression = wire.PARSERS[settings.value_format], settings.field_mapping

        def chunk(value: bytes, headers: Headers) -> Any:
            return mapping.mapped(parse(value, headers), expression)

        return cls(contract, settings.max_record_bytes, chunk if expression else parse, expression)

    def __call__(self, record: Record) -> Decoded:
        """The record's chunk, checked, and its version set; `Rejected` if the record breaks the contract."""
        if record.size > self.max_bytes:
            return Rejected("too-large", f"the record has {record.size:,} bytes, the limit is {self.max_bytes:,}")
        if record.value is None:
            return _tombstone(record)
        try:
            value = self.content(record.value, record.headers)
        except mapping.NotMapped as error:
            return Rejected("schema", str(error))
        except ValueError as error:
            return Rejected("not-json", str(error))
        if wrong := problem(value, self.contract):
            return Rejected("schema", mapping.explained(wrong, self.field_mapping))
        if record.key != value["chunk_id"].encode():
            wrong = "the record's key must be its chunk_id, so that a chunk's records stay in order"
            return _wrong_key(record, mapping.explained(wrong, self.field_mapping))
        version = value.get("version")
        if version is None:
            if not _timestamp_fits(record):
                return Rejected("version", f"the record {NO_VERSION}")
            version = record.timestamp
        value["version"] = int(version)
        if self.contract != "chunk":
            vector = _vector(record, value)
            if isinstance(vector, Rejected):
                return vector
            value[VECTOR_HEADER] = vector
        return value  # type: ignore[no-any-return]


def encode(chunk: Mapping[str, Any]) -> tuple[bytes, list[tuple[str, bytes]]]:
    """The value of a chunk's record, and the header with its vector if it has one: the reverse of `Decoder`."""
    vector = chunk.get(VECTOR_HEADER)
    if vector is None:
        return orjson.dumps(chunk), []
    return orjson.dumps({name: field for name, field in chunk.items() if name != VECTOR_HEADER}), [
        (VECTOR_HEADER, vector)
    ]


def _vector(record: Record, value: Mapping[str, Any]) -> bytes | Rejected:
    vector = header(record.headers, VECTOR_HEADER)
    if vector is not None:
        return vector
    written = value.get(VECTOR_HEADER)  # earlier releases wrote it into the JSON, as base64
    if written is None:
        return Rejected("embedding", f"the record has no header {VECTOR_HEADER!r} with its vector")
    try:
        return base64.b64decode(written, validate=True)
    except ValueError:
        return Rejected("embedding", f"{VECTOR_HEADER} is not base64 of float32 numbers")


def _tombstone(record: Record) -> Tombstone | Rejected:
    try:
        chunk_id = (record.key or b"").decode()
    except UnicodeDecodeError:
        return _wrong_key(record, "the key of a null record must be a chunk_id in UTF-8")
    if wrong := problem({"chunk_id": chunk_id, "doc_id": "-", "text": "-"}, "chunk"):
        return _wrong_key(record, f"the key of a null record must be a chunk_id: {wrong}")
    if all(name != VERSION_HEADER for name, _ in record.headers):
        if not _timestamp_fits(record):
            return Rejected("version", f"the null record {NO_VERSION}")
        return Tombstone(chunk_id, record.timestamp)
    version = number(header(record.headers, VERSION_HEADER))
    if version is None:
        return Rejected("version", f"the header {VERSION_HEADER!r} must be an integer from 0 to {MAX_VERSION}")
    return Tombstone(chunk_id, version)


def _wrong_key(record: Record, sentence: str) -> Rejected:
    if record.key and record.key.startswith(wire.MAGIC):
        sentence = (
            "the record's key is in the Confluent wire format, and must be the chunk_id in UTF-8: "
            "let the producer use a StringSerializer for keys"
        )
    return Rejected("key", sentence)


def _timestamp_fits(record: Record) -> bool:
    return 0 <= record.timestamp <= MAX_VERSION
