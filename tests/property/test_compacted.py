"""A generated history on compacted topics: if this fails, a gap, a lost tombstone or a transaction changes a chunk."""

import asyncio
from collections.abc import Iterable
from itertools import groupby
from typing import Literal, NamedTuple

import hypothesis
import pytest
from aiokafka import AIOKafkaProducer
from hypothesis import given
from hypothesis import strategies as st
from ports import free_ports
from support import FORGETFUL, Worker, chunk, compacted, create_topics, expanded, transactional

from stream.config import Settings
from stream.kafka import clients, topics
from stream.operate.delete import chunks_of
from stream.operate.status import caught_up
from stream.operate.verify import verify
from stream.records import VERSION_HEADER, encode

pytestmark = pytest.mark.servers

CHUNKS = 30  # few, so that most have several versions


class Step(NamedTuple):
    """A record of a chunk; no text means a tombstone."""

    chunk_id: str
    text: str | None
    way: Literal["alone", "committed", "aborted"]


steps = st.builds(
    Step,
    st.integers(1, CHUNKS).map(lambda n: f"c{n}"),
    st.sampled_from(["lock", "queue", "socket", None]),
    st.sampled_from(["alone", "committed", "aborted"]),
)


def generated() -> list[Step]:
    """A long history: many short ones, one after the other."""
    history: list[Step] = []

    @hypothesis.settings(derandomize=True, max_examples=30)  # Hypothesis could not repeat a later failure
    @given(st.lists(steps, min_size=5, max_size=15))
    def collect(some: list[Step]) -> None:
        history.extend(some)

    collect()
    assert {step.way for step in history} == {"alone", "committed", "aborted"}
    return history


async def publish(settings: Settings, topic: str, numbered: Iterable[tuple[int, Step]]) -> None:
    """Consecutive steps of the same kind form one transaction. The version is the step's number."""
    make = chunk if topic == settings.topic else expanded
    async with clients.producer(settings) as plain, transactional(settings, topic) as producer:

        async def send(producer: AIOKafkaProducer, version: int, step: Step) -> None:
            if step.text:
                value, headers = encode(make(step.chunk_id, step.text, version))
            else:
                value, headers = None, [(VERSION_HEADER, str(version).encode())]
            await producer.send_and_wait(topic, key=step.chunk_id.encode(), value=value, headers=headers)

        for way, together in groupby(numbered, lambda one: one[1].way):
            if way == "alone":
                for version, step in together:
                    await send(plain, version, step)
                continue
            await producer.begin_transaction()
            for version, step in together:
                await send(producer, version, step)
            await (producer.commit_transaction() if way == "committed" else producer.abort_transaction())


async def test_both_stores_hold_what_was_committed_last(settings, stores):
    history = list(enumerate(generated(), start=1))
    last = {step.chunk_id: (version, step.text) for version, step in history if step.way != "aborted"}
    live = {chunk_id: version for chunk_id, (version, text) in last.items() if text}
    assert 0 < len(live) < len(last)
    sources = [settings.topic, topics.source(settings, "index")]
    await create_topics(settings, FORGETFUL)
    await asyncio.gather(*(publish(settings, topic, history) for topic in sources))
    await asyncio.gather(*(compacted(settings, topic) for topic in sources))
    at_the_end = [(len(history) + 1, Step(chunk_id, None, "aborted")) for chunk_id in live]
    await asyncio.gather(*(publish(settings, topic, at_the_end) for topic in sources))
    async with Worker("index", port=free_ports(1)[0]):
        await caught_up(settings, ["index"])
    report = await verify(settings, stores)
    assert (report.differences, report.indexed) == ([], len(live))
    for store in stores.both:
        held = await store.stored(sorted(last))
        assert {chunk_id: stored.version for chunk_id, stored in held.items() if stored.text_sha256} == live
    deleting = await chunks_of(settings, "d1")
    assert {one.chunk_id: one.version for one in deleting} == {c: version + 1 for c, version in live.items()}
