"""If these fail, chunks of producers with a schema registry become dead letters, or nobody is told why they are."""

import pytest
import registry
from registry import AVRO, FIRST_MESSAGE, IN_A_HEADER, LATER_MESSAGE
from support import chunk, expanded, record

from stream.config import only
from stream.records import Decoded, Decoder, Headers, Rejected, encode
from stream.wire import GUID, PREFIX, SCHEMA_HEADER, payload

CHUNK = chunk("c1", "字")


def decoded(value: bytes, headers: Headers = (), form: str = "auto", key: bytes = b"c1") -> Decoded:
    return Decoder.of("chunk", only({"STREAM_VALUE_FORMAT": form}))(record(value, key, headers))


@pytest.mark.parametrize("form", ["auto", "confluent"])
@pytest.mark.parametrize("conf", [None, IN_A_HEADER], ids=["prefix", "header"])
def test_both_forms_of_the_wire_format_are_read(conf, form):
    value, headers = registry.as_json(CHUNK, conf)
    assert (value[0] == 0, len(headers)) == ((False, 1) if conf else (True, 0))
    assert decoded(value, headers, form) == CHUNK


def test_a_header_has_the_size_that_tells_json_and_avro_from_protobuf():
    ((name, schema),) = registry.as_json(CHUNK, IN_A_HEADER)[1]
    assert (name, len(schema)) == (SCHEMA_HEADER, GUID)


@pytest.mark.parametrize("form", ["auto", "json"])
def test_plain_json_is_read(form):
    assert decoded(encode(CHUNK)[0], form=form) == CHUNK


def test_only_the_wire_format_is_read_if_the_setting_says_so():
    assert decoded(encode(CHUNK)[0], form="confluent") == Rejected(
        "not-json", "the record has no schema id, which STREAM_VALUE_FORMAT=confluent requires"
    )


def test_the_wire_format_is_not_read_if_the_setting_says_so():
    outcome = decoded(registry.as_json(CHUNK)[0], form="json")
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "not-json"
    assert "STREAM_VALUE_FORMAT=json" in outcome.detail


PREFIXED = bytes(PREFIX)
IN_HEADER = [(SCHEMA_HEADER, b"\1" + bytes(16))]


@pytest.mark.parametrize("form", ["auto", "confluent"])
@pytest.mark.parametrize(
    ("value", "headers", "name"),
    [
        (PREFIXED + AVRO, (), "Avro or Protobuf"),
        (AVRO, IN_HEADER, "Avro"),
        (*registry.as_protobuf(FIRST_MESSAGE), "Protobuf"),
        (*registry.as_protobuf(FIRST_MESSAGE, IN_A_HEADER), "Protobuf"),
        (*registry.as_protobuf(LATER_MESSAGE), "Avro or Protobuf"),
        (*registry.as_protobuf(LATER_MESSAGE, IN_A_HEADER), "Protobuf"),
    ],
)
def test_another_format_is_named_with_what_to_do(value, headers, name, form):
    outcome = decoded(value, headers, form)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "not-json"
    assert outcome.detail.startswith(f"the record is {name} in the Confluent wire format")
    assert "JSON Schema" in outcome.detail


@pytest.mark.parametrize(("value", "headers"), [(PREFIXED + b"{", ()), (b"{", IN_HEADER), (b"\0", ()), (bytes(5), ())])
def test_broken_json_is_not_taken_for_another_format(value, headers):
    outcome = decoded(value, headers)
    assert isinstance(outcome, Rejected)
    assert outcome.detail.startswith("the record is not JSON")


def test_the_rest_of_the_contract_holds_in_the_wire_format_too():
    value, headers = registry.as_json(dict(CHUNK) | {"text": ""})
    outcome = decoded(value, headers)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "schema"


def test_the_size_is_that_of_the_record_as_it_is():
    value, _ = registry.as_json(chunk("c1", "x" * 2000))
    limit = len(value) + len(b"c1")
    for most, fits in ((limit, True), (limit - 1, False)):
        decoder = Decoder.of("chunk", only({"STREAM_MAX_RECORD_BYTES": str(most)}))
        assert isinstance(decoder(record(value)), dict) is fits


@pytest.mark.parametrize("value", [registry.as_json(CHUNK)[0], None], ids=["chunk", "tombstone"])
def test_a_key_in_the_wire_format_is_rejected_with_what_to_do(value):
    outcome = decoded(value, key=registry.json_key("c1"))
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "key"
    assert "StringSerializer" in outcome.detail


def test_later_topics_hold_plain_json_whatever_producers_write():
    value, headers = encode(expanded())
    decoder = Decoder.of("expanded", only({"STREAM_VALUE_FORMAT": "confluent"}))
    assert decoder(record(value, headers=headers)) == expanded()


def test_a_value_is_shown_without_its_prefix():
    plain = encode(CHUNK)[0]
    assert payload(PREFIXED + plain) == payload(plain) == plain
