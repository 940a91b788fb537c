"""If these fail, a producer's record is misread."""

from base64 import b64encode

import orjson
import pytest
from support import chunk, expanded, record, vector

from stream.config import only
from stream.contracts import Contract
from stream.records import VECTOR_HEADER, Decoded, Decoder, Record, Rejected, Tombstone, encode, header

LIMIT = 100_000
SETTINGS = only({"STREAM_MAX_RECORD_BYTES": str(LIMIT)})


def decode(one: Record, contract: Contract = "chunk") -> Decoded:
    return Decoder.of(contract, SETTINGS)(one)


def rejected(value, key="c1", **more):
    outcome = decode(record(value, key, **more))
    assert isinstance(outcome, Rejected), outcome
    return outcome


def test_a_chunk_is_read_as_it_was_written():
    written = chunk(facet_json={"a": {"b": [1, None]}}, table_lines=["x"], metadata={"n": [1, "a", True]})
    assert decode(record(written)) == written


def test_a_chunk_without_version_takes_the_timestamp_of_its_record():
    plain = {"chunk_id": "c1", "doc_id": "d1", "text": "t"}
    assert decode(record(plain, timestamp=1234)) == plain | {"version": 1234}


def test_an_integral_float_is_a_version():
    decoded = decode(record(chunk(version=2.0)))
    assert isinstance(decoded, dict)
    assert decoded["version"] == 2
    assert isinstance(decoded["version"], int)


@pytest.mark.parametrize(
    ("value", "reason", "sentence"),
    [
        (b"", "not-json", "JSON"),
        (b"{", "not-json", "JSON"),
        (b'{"chunk_id": "c1", "doc_id": "d", "text": NaN}', "not-json", "JSON"),
        (b'{"chunk_id": "c1", "doc_id": "d", "text": "\xff"}', "not-json", "UTF-8"),
        (b'{"chunk_id": "c1", "doc_id": "d", "text": "\\ud800"}', "not-json", "surrogate"),
        (b"[" * 5000 + b"]" * 5000, "not-json", "depth"),
        (b"[]", "schema", "object"),
        (b"null", "schema", "object"),
        ({"doc_id": "d", "text": "t"}, "schema", "chunk_id"),
        ({"chunk_id": "c1", "text": "t"}, "schema", "doc_id"),
        ({"chunk_id": "c1", "doc_id": "d"}, "schema", "text"),
        (chunk(text=""), "schema", "text"),
        (chunk(text=" \n"), "schema", "white space"),
        (chunk(text=5), "schema", "string"),
        (chunk(txt="typo"), "schema", "txt"),
        (chunk(version=-1), "schema", "version"),
        (chunk(version=1.5), "schema", "version"),
        (chunk(version=2**53), "schema", "version"),
        (chunk(version="1"), "schema", "version"),
        (chunk(chunk_id="a\nb"), "schema", "control characters"),
        (chunk(chunk_id=""), "schema", "chunk_id"),
        (chunk(chunk_id="x" * 513), "schema", "512"),
        (chunk(facet_json=[]), "schema", "facet_json"),
        (chunk(facet_json={"a": {"b": {"c": {"d": 1}}}}), "schema", "three deep"),
        (chunk(table_lines="x"), "schema", "table_lines"),
        (chunk(table_lines=[1]), "schema", "table_lines"),
        (chunk(metadata={"a": {"b": 1}}), "schema", "metadata"),
        (chunk(chunk_id="c2"), "key", "key"),
    ],
)
def test_what_breaks_the_contract_is_rejected_with_a_sentence(value, reason, sentence):
    outcome = rejected(value)
    assert outcome.reason == reason
    assert sentence in outcome.detail


def test_a_deeply_nested_facet_is_rejected_and_not_a_crash():
    assert rejected(b'{"chunk_id":"c1","doc_id":"d","text":"t","facet_json":' + b'{"a":' * 900 + b"1" + b"}" * 901)


def test_what_is_wrong_is_said_without_the_record_s_own_values():
    assert "secret" not in rejected(chunk(text=["secret"])).detail


def test_a_record_without_a_key_or_with_a_broken_one_is_rejected():
    assert rejected(chunk(), key=None).reason == "key"
    assert rejected(chunk(), key=b"\xff").reason == "key"


def test_a_record_over_the_limit_is_rejected_before_it_is_parsed():
    assert rejected(b"x" * (LIMIT + 1)).reason == "too-large"


def test_ids_of_512_characters_of_any_script_are_fine():
    chunk_id = "字" * 512
    assert isinstance(decode(record(chunk(chunk_id), chunk_id)), dict)


def test_a_null_value_deletes_with_the_version_of_its_header_or_its_timestamp():
    assert decode(record(None, headers=[("version", b"7")])) == Tombstone("c1", 7)
    assert decode(record(None, timestamp=1234)) == Tombstone("c1", 1234)


@pytest.mark.parametrize("version", [b"", b"x", b"-1", b"1.5", b"9" * 20, b"9" * 5000, "٣".encode(), None])
def test_a_tombstone_with_a_version_that_is_none_is_rejected(version):
    assert rejected(None, headers=[("version", version)]).reason == "version"


@pytest.mark.parametrize("timestamp", [-1, 2**53])
def test_a_timestamp_that_can_be_no_version_is_none(timestamp):
    """Otherwise the next stage rejects the output of this stage."""
    plain = {"chunk_id": "c1", "doc_id": "d1", "text": "t"}
    assert rejected(plain, timestamp=timestamp).reason == "version"
    assert rejected(None, timestamp=timestamp).reason == "version"
    assert decode(record(chunk(version=3), timestamp=timestamp)) == chunk(version=3)
    assert decode(record(None, headers=[("version", b"3")], timestamp=timestamp)) == Tombstone("c1", 3)


@pytest.mark.parametrize("key", [None, b"", b"\xff", b"a\nb"])
def test_a_tombstone_that_names_no_chunk_is_rejected(key):
    assert rejected(None, key=key).reason == "key"


def test_of_headers_of_one_name_the_last_counts():
    assert header([("version", b"1"), ("version", b"2")], "version") == b"2"
    assert header([], "version") is None


# The vector


def as_earlier(**fields):
    """A record as an earlier release wrote it: the vector is in the JSON, as base64."""
    return record(orjson.dumps(expanded() | {VECTOR_HEADER: b64encode(vector(1)).decode()} | fields))


def test_a_vector_comes_back_as_the_bytes_that_were_written_and_the_json_is_readable():
    value, headers = encode(expanded())
    assert orjson.loads(value).keys() == expanded().keys() - {VECTOR_HEADER}
    assert headers == [(VECTOR_HEADER, expanded()[VECTOR_HEADER])]
    assert decode(record(value, headers=headers), "expanded") == expanded()


def test_a_record_of_an_earlier_release_is_read_as_if_it_were_new():
    assert decode(as_earlier(), "expanded") == expanded(embedding_qwen=vector(1))


def test_a_record_of_an_earlier_release_whose_vector_is_no_base64_is_rejected():
    assert decode(as_earlier(embedding_qwen="A"), "expanded") == Rejected(
        "embedding", "embedding_qwen is not base64 of float32 numbers"
    )


def test_a_record_without_a_vector_is_rejected():
    value, _ = encode(expanded())
    outcome = decode(record(value), "expanded")
    assert isinstance(outcome, Rejected)
    assert (outcome.reason, VECTOR_HEADER in outcome.detail) == ("embedding", True)
