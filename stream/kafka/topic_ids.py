"""Topic ids: a topic that was deleted and recreated has the same name and a different id.

aiokafka requests metadata in version 5, which has no ids. Version 10 has them (KIP-516, Kafka 2.8); its schema is in
Kafka's `clients/src/main/resources/common/message/MetadataRequest.json` and `MetadataResponse.json`.
"""

from collections.abc import Iterable
from io import BytesIO

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from stream.kafka.clients import require_all

NO_ID = bytes(16)  # in a request by name


class _Uuid(AbstractType):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


_NAME = CompactString("utf-8")


class _Metadata10Response(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(("node_id", Int32), ("host", _NAME), ("port", Int32), ("rack", _NAME), ("tags", TaggedFields)),
        ),
        ("cluster_id", _NAME),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", _NAME),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _Metadata10(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = _Metadata10Response
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", _NAME), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_Metadata10]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: Iterable[str]) -> None:
        self._topics = list(topics)

    def build(self, request_struct_class: type[_Metadata10]) -> _Metadata10:
        asked: list[tuple[bytes, str, dict[int, bytes]]] = [(NO_ID, name, {}) for name in self._topics]
        return request_struct_class(asked, False, False, False, {})


async def topic_ids(admin: AIOKafkaAdminClient, topics: Iterable[str]) -> dict[str, bytes]:
    """The id (16 bytes) of each topic; empty if the brokers are too old to have ids.

    Raises `ConfigurationError` if a topic is missing.
    """
    try:
        answer = await admin._send_request(_MetadataRequest(topics))
    except NotImplementedError:  # aiokafka raises it if the broker does not support this version
        return {}
    require_all((topic["name"], topic["error_code"]) for topic in answer.to_object()["topics"])
    return {topic["name"]: topic["topic_id"] for topic in answer.to_object()["topics"]}
