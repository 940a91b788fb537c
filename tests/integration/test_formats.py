"""If this fails, a part of the system does not understand records of producers with a registry or other field names."""

from collections import Counter
from contextlib import AsyncExitStack

import orjson
import pytest
from ports import free_ports
from registry import FIRST_MESSAGE, IN_A_HEADER, as_json, as_protobuf
from support import Worker, chunk, read

from stream.config import STAGES
from stream.errors import ConfigurationError
from stream.kafka import clients, deadletters, topics
from stream.operate import redrive as redriving
from stream.operate import replay
from stream.operate.delete import chunks_of, delete
from stream.operate.publish import publish
from stream.operate.status import caught_up
from stream.operate.verify import verify
from stream.wire import SCHEMA_HEADER

pytestmark = pytest.mark.servers


@pytest.fixture
def variables(variables):
    return variables | {"STREAM_FIELD_MAPPING": "{chunk_id: id, doc_id: source.name, text: content, version: revision}"}


def produced(name):
    return {"id": name, "source": {"name": "d1"}, "content": f"about {name}", "revision": 1}


async def test_every_reader_of_the_first_topic_understands_what_producers_write(flow, stores):
    good = {
        "plain": (orjson.dumps(produced("plain")), []),
        "prefix": as_json(produced("prefix")),
        "header": as_json(produced("header"), IN_A_HEADER),
    }
    bad = {
        "protobuf": as_protobuf(FIRST_MESSAGE, IN_A_HEADER),
        "unmapped": (orjson.dumps(chunk("unmapped")), []),
    }
    async with clients.producer(flow) as producer:
        for key, (value, headers) in (good | bad).items():
            await producer.send_and_wait(flow.topic, key=key.encode(), value=value, headers=headers)
    line = orjson.dumps(produced("line"))
    assert (await publish([line, orjson.dumps(chunk())], flow)).sent == 1
    assert {record.value for record in await read(flow, flow.topic) if record.key == b"line"} == {line}

    async with AsyncExitStack() as stack:
        for stage, port in zip(STAGES, free_ports(3), strict=True):
            await stack.enter_async_context(Worker(stage, port=port))
        await caught_up(flow)
        report = await verify(flow, stores)
        assert report.differences == []
        assert (report.indexed, report.dead_lettered) == (4, 2)
        passed_on = await read(flow, topics.source(flow, "expand"))
        assert not [name for record in passed_on for name, _ in record.headers if name == SCHEMA_HEADER]

        wanted = replay.Range(fields={"doc_id": "d1"})
        assert len((await replay.plan(flow, "embed", wanted)).places) == 4

        # Each bad record is rejected twice, and its bytes stay.
        await redriving.redrive(flow, "embed", await redriving.plan(flow, "embed", deadletters.Filter()))
        await caught_up(flow)
        letters = [letter async for letter in deadletters.read(flow, "embed")]
        assert Counter((one.record.key.decode(), one.reason, one.record.value) for one in letters) == {
            ("protobuf", "not-json", bad["protobuf"][0]): 2,
            ("unmapped", "schema", bad["unmapped"][0]): 2,
        }

        deletions = await chunks_of(flow, "d1")
        assert {one.chunk_id for one in deletions} == {*good, "line"}
        assert await delete(flow, deletions) == []
        await caught_up(flow)
        report = await verify(flow, stores)
        assert report.differences == []
        assert (report.indexed, report.deleted) == (0, 4)


async def test_lines_are_not_published_where_workers_would_reject_them(flow):
    settings = flow.model_copy(update={"value_format": "confluent"})
    with pytest.raises(ConfigurationError, match="STREAM_VALUE_FORMAT=confluent"):
        await publish([orjson.dumps(produced("line"))], settings)
