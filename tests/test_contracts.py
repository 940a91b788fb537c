"""If these fail, the files of schemas/ differ from the contracts in the code."""

import json
from collections.abc import Mapping
from typing import Any

import jsonschema_rs
import orjson
import pytest
from support import chunk, expanded, record

from stream.contracts import SCHEMAS, problem
from stream.kafka.deadletters import PREFIX, DeadLetter, letter_headers
from stream.records import Record, Rejected, encode

FILES = sorted(SCHEMAS.glob("*.json"))


def payload(value: Mapping[str, Any]) -> dict[str, Any]:
    """A chunk as it is in the JSON, without its vector."""
    return orjson.loads(encode(value)[0])


def embedded() -> dict[str, Any]:
    return payload({name: value for name, value in expanded().items() if not name.startswith("splade")})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_schema_is_a_json_schema(path):
    jsonschema_rs.meta.validate(json.loads(path.read_text()))


def test_each_record_keeps_its_contract_and_not_the_next_one():
    records = {"chunk": chunk(), "embedded": embedded(), "expanded": payload(expanded())}
    for contract, value in records.items():
        for other in records:
            assert (problem(value, other) is None) == (contract == other)


@pytest.mark.parametrize("field", ["text_sha256", "embedding_provenance", "version"])
def test_an_embedded_chunk_needs_all_that_later_stages_use(field):
    value = embedded()
    del value[field]
    assert field in problem(value, "embedded")


def test_weights_are_positive_and_may_be_none_at_all():
    assert problem(payload(expanded(splade_terms={}, splade_norm=0)), "expanded") is None
    assert problem(payload(expanded(splade_terms={"a": 0})), "expanded")


def letter(attempts: bytes | None = None) -> Record:
    own = [("traceparent", b"00-1")] + ([("dlq.attempts", attempts)] if attempts else [])
    original = record(b"\xff", headers=own)
    return record(b"\xff", headers=letter_headers(original, "embed", Rejected("not-json", "it is " + "x" * 5000)))


def test_a_dead_letter_s_headers_keep_their_contract():
    headers = {name: value.decode() for name, value in letter().headers if name.startswith(PREFIX)}
    assert problem(headers, "dead-letter") is None


def test_a_dead_letter_keeps_the_record_s_own_headers_and_reads_back():
    assert ("traceparent", b"00-1") in letter().headers
    read = DeadLetter.of(letter())
    assert (read.stage, read.reason, read.topic, read.offset, read.attempts) == ("embed", "not-json", "chunks", 0, 1)


def test_attempts_are_counted_on():
    assert DeadLetter.of(letter(b"2")).attempts == 3
    assert len(letter(b"2").headers) == len(letter().headers)


@pytest.mark.parametrize("attempts", [b"many", b"9" * 5000])
def test_attempts_that_somebody_else_wrote_do_no_harm(attempts):
    assert DeadLetter.of(letter(attempts)).attempts == 1
