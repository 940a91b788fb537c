"""If these fail, a command that reads a topic misses a record, or never ends."""

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError
from support import send

from stream import kafka
from stream.config import Settings
from stream.errors import Outage

pytestmark = pytest.mark.servers


async def test_a_topic_is_read_to_its_end_and_progress_is_told(flow: Settings):
    sent = [(b"%d" % n, b"x") for n in range(100)]
    await send(flow, sent)
    told = []
    read = [r async for r in kafka.read_to_end(flow, flow.topic, progress=lambda *numbers: told.append(numbers))]
    assert sorted((record.key, record.value) for record in read) == sorted(sent)
    assert told[0] == (0, 100)
    assert told[-1] == (100, 100)


async def test_kafka_that_falls_silent_while_a_topic_is_read_is_an_outage(flow: Settings, monkeypatch):
    await send(flow, [(b"%d" % n, b"x" * 300_000) for n in range(100)])  # more than is fetched at once
    monkeypatch.setattr(kafka, "SILENCE", 1)

    async def away(*_, **__):
        raise KafkaConnectionError

    read = 0
    with pytest.raises(Outage, match="sent nothing"):
        async for _ in kafka.read_to_end(flow, flow.topic):
            read += 1
            monkeypatch.setattr(AIOKafkaClient, "send", away)
    assert 0 < read < 100
