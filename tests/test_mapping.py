"""If these fail, a record of a producer with its own field names becomes another chunk, or stops a worker."""

import json
import re
from typing import Any

import orjson
import pytest
from conftest import ROOT
from support import chunk, expanded, record

from stream.config import load, only
from stream.errors import ConfigurationError
from stream.mapping import NotMapped, checked, mapped
from stream.operate.publish import check_line, decoder_of_lines, validate
from stream.operate.replay import Range
from stream.records import Decoded, Decoder, Rejected, encode

MAPPING = "{chunk_id: id, doc_id: source.name, text: content, version: revision, metadata: {lang: lang}}"
PRODUCED = {"id": "c1", "source": {"name": "d1"}, "content": "t", "revision": 7, "lang": "en", "more": [1]}
MADE = {"chunk_id": "c1", "doc_id": "d1", "text": "t", "version": 7, "metadata": {"lang": "en"}}


def decoder(expression: str = MAPPING) -> Decoder:
    return Decoder.of("chunk", only({"STREAM_FIELD_MAPPING": expression}))


def decoded(value: Any, expression: str = MAPPING, key: str = "c1") -> Decoded:
    return decoder(expression)(record(orjson.dumps(value), key))


def rejected(value: Any, expression: str = MAPPING, key: str = "c1") -> Rejected:
    outcome = decoded(value, expression, key)
    assert isinstance(outcome, Rejected), outcome
    return outcome


def test_a_record_becomes_the_chunk_that_the_expression_makes():
    assert decoded(PRODUCED) == MADE


def test_the_example_of_the_page_is_true():
    page = (ROOT / "docs" / "producers.md").read_text().partition("## Other field names")[2]
    (expression,) = re.findall(r"^STREAM_FIELD_MAPPING='(.*)'$", page, re.MULTILINE)
    produced, made = re.findall(r"```json\n(.*?)```", page, re.DOTALL)[:2]
    assert decoded(json.loads(produced), expression, json.loads(made)["chunk_id"]) == json.loads(made)


def test_a_field_that_the_record_lacks_is_left_out():
    assert decoded({name: value for name, value in PRODUCED.items() if name != "revision"}) == MADE | {"version": 1000}


def test_an_expression_may_choose_an_object_that_is_a_chunk_already():
    assert decoded({"payload": chunk()}, "payload") == chunk()


@pytest.mark.parametrize("value", [{"id": "c1"}, {}, None, 7, "text", [PRODUCED], PRODUCED | {"content": ""}])
def test_what_makes_no_valid_chunk_is_rejected_with_a_sentence_that_names_the_mapping(value):
    outcome = rejected(value)
    assert outcome.reason == "schema"
    assert "STREAM_FIELD_MAPPING" in outcome.detail


def test_the_key_is_the_chunk_id_that_the_expression_makes():
    outcome = rejected(PRODUCED, key="other")
    assert outcome.reason == "key"
    assert "STREAM_FIELD_MAPPING" in outcome.detail


@pytest.mark.parametrize(
    "version",
    [
        "join('', id)",  # a type that the function does not take
        "to_number('" + "9" * 4000 + "')",  # an integer that JSON cannot hold
        "to_number('nan')",
        "ceil(to_number('inf'))",
        '`"\\ud800"`',  # half of a character
        "&id",
    ],
)
def test_what_no_chunk_can_hold_is_rejected_and_no_crash(version):
    outcome = rejected(PRODUCED, MAPPING.replace("revision", version))
    assert outcome.reason == "schema"
    assert "STREAM_FIELD_MAPPING" in outcome.detail


def test_a_record_too_deep_for_a_function_is_rejected_and_no_crash():
    deep = b'{"id": "c1", "content": ' + b"[" * 1000 + b"]" * 1000 + b"}"
    outcome = decoder(MAPPING.replace("content", "to_string(content)"))(record(deep))
    assert isinstance(outcome, Rejected)


def test_a_failing_function_is_named_without_the_record_s_own_values():
    with pytest.raises(NotMapped, match=r"join\(\) got string, and takes array-string$"):
        mapped({"id": "secret"}, "join('', id)")


def test_later_topics_are_not_mapped():
    value, headers = encode(expanded())
    assert Decoder.of("expanded", only({"STREAM_FIELD_MAPPING": MAPPING}))(record(value, headers=headers)) == expanded()


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("{chunk_id: id", "not a valid JMESPath expression"),
        ("id |", "not a valid JMESPath expression"),
        ("#", "not a valid JMESPath expression"),
        (MAPPING.replace("content", "nothing(content)"), "nothing"),
        (MAPPING.replace("content", "join(content)"), "join"),
        (MAPPING.replace("content", "parts[?length() > `1`]"), "length"),
        ("{chunk_id: id, text: content}", '"doc_id" is a required property'),
        (MAPPING.replace("text:", "txt:"), "txt"),
    ],
)
def test_a_wrong_expression_is_told_at_the_start_in_a_sentence(expression, sentence, monkeypatch):
    monkeypatch.setenv("STREAM_FIELD_MAPPING", expression)
    with pytest.raises(ConfigurationError, match=r"^invalid settings: field_mapping: ") as error:
        load()
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert "splade_revision" not in str(error.value)  # whose default needs another setting


@pytest.mark.parametrize(
    "expression",
    ["", MAPPING, "payload", "merge(@, {chunk_id: id})", "{chunk_id: join('#', [a, b]), doc_id: a, text: t}"],
)
def test_an_expression_that_may_make_chunks_is_accepted(expression):
    assert checked(expression) == expression


def test_a_replay_chooses_records_by_the_fields_of_their_chunks():
    one = record(orjson.dumps(PRODUCED))
    assert Range(fields={"doc_id": "d1", "metadata.lang": "en"}).takes(one, decoder())
    assert not Range(fields={"lang": "en"}).takes(one, decoder())
    assert not Range(fields={"doc_id": "d1"}).takes(record(b"[" * 2000), decoder())


def test_a_line_of_a_file_is_checked_as_the_workers_check_its_record():
    settings = only({"STREAM_FIELD_MAPPING": MAPPING, "STREAM_VALUE_FORMAT": "confluent"})
    lines = decoder_of_lines(settings)
    assert check_line(orjson.dumps(PRODUCED), lines) == (MADE, None)
    assert "STREAM_FIELD_MAPPING" in (check_line(orjson.dumps(MADE), lines)[1] or "")
    found = validate([orjson.dumps(PRODUCED), orjson.dumps(PRODUCED | {"revision": None})], settings)
    assert (found.good, len(found.remarks)) == (2, 1)
