"""Confluent's own serializers, with a schema registry in this process."""

import json
from collections.abc import Mapping
from typing import Any

from confluent_kafka.schema_registry import SchemaRegistryClient, header_schema_id_serializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import struct_pb2, wrappers_pb2

from stream.records import Headers

REGISTRY = SchemaRegistryClient.new_client({"url": "mock://"})
IN_A_HEADER = {"schema.id.serializer": header_schema_id_serializer}
# A chunk in Avro: the strings "c1", "d" and "t", each after its length. Avro 1.12, "Binary Encoding".
AVRO = b"\x04c1\x02d\x02t"
FIRST_MESSAGE = struct_pb2.Struct(fields={"chunk_id": struct_pb2.Value(string_value="c1")})
LATER_MESSAGE = wrappers_pb2.StringValue(value="text")


def as_json(value: Mapping[str, Any], conf: Mapping[str, Any] | None = None) -> tuple[bytes, Headers]:
    """A value and its headers, as the serializer of JSON Schema makes them."""
    return _serialized(JSONSerializer(json.dumps({"title": "Chunk", "type": "object"}), REGISTRY, conf=conf), value)


def as_protobuf(message: Any, conf: Mapping[str, Any] | None = None) -> tuple[bytes, Headers]:
    """A value and its headers, as the serializer of Protobuf makes them."""
    return _serialized(ProtobufSerializer(type(message), REGISTRY, conf), message)


def json_key(key: str) -> bytes:
    """A key as the serializer of JSON Schema makes it."""
    serializer = JSONSerializer(json.dumps({"title": "Key", "type": "string"}), REGISTRY)
    return serializer(key, SerializationContext("chunks", MessageField.KEY)) or b""


def _serialized(serializer: Any, value: Any) -> tuple[bytes, Headers]:
    headers: list[tuple[str, bytes | None]] = []
    return serializer(value, SerializationContext("chunks", MessageField.VALUE, headers)), headers
