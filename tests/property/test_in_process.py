"""Generated records through a stage and its loop, without Kafka: if these fail, one record can stop a worker or vanish.

`HYPOTHESIS_PROFILE=nightly` draws other and more records each time and prints how to repeat a failure.
"""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from itertools import count
from types import SimpleNamespace
from typing import NoReturn

import pytest
from aiokafka.errors import MessageSizeTooLargeError
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from checker import check, check_stores
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, batches, kinds_of

from stream.config import Settings, StageName
from stream.records import Position, Record
from stream.stages.registry import open_stage
from stream.stores import open_stores
from stream.worker.loop import BatchLoop
from stream.worker.outputs import Outputs

pytestmark = pytest.mark.servers

LIMITS = {"max_record_bytes": 100_000, "max_message_bytes": 150_000, "outage_bound": 5}
GZIP = 1


class Wire:
    """A fake producer and broker: records what would be sent, and rejects what is too large."""

    def __init__(self, most: int, compression: int = 0) -> None:
        self.records: list[Record] = []
        self._most, self._compression = most, compression

    async def partitions_for(self, topic: str) -> set[int]:
        return {0}

    def create_batch(self) -> BatchBuilder:
        return BatchBuilder(self._most, self._compression)

    async def send_batch(self, batch: BatchBuilder, topic: str, *, partition: int) -> asyncio.Future[None]:
        encoded = bytes(batch._build())
        if len(encoded) > self._most:
            raise MessageSizeTooLargeError
        for read in MemoryRecords(encoded).next_batch():
            self.records.append(
                Record(topic, partition, len(self.records), read.key, read.value, read.timestamp, tuple(read.headers))
            )
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def send(self, topic, *, value, key, headers) -> asyncio.Future[None]:
        assert not (value is None and key is None), "Need at least one: key or value"  # so does aiokafka's
        batch = self.create_batch()
        batch.append(timestamp=None, key=key, value=value, headers=list(headers))
        return await self.send_batch(batch, topic, partition=0)

    async def send_and_wait(self, topic, *, value, key, headers) -> None:
        await (await self.send(topic, value=value, key=key, headers=headers))


class Driven:
    """One stage and its batch loop, opened as in production."""

    def __init__(self, name: StageName, settings: Settings) -> None:
        self._name, self._settings = name, settings
        self.seen: Counter[str] = Counter()
        self._runner = asyncio.Runner()
        self._open = AsyncExitStack()

    def __enter__(self) -> "Driven":
        self._runner.__enter__()
        self.stage = self.entered(open_stage(self._name, self._settings))
        return self

    def __exit__(self, *error: object) -> None:
        self.run(self._open.aclose())
        self._runner.__exit__(*error)

    def run(self, work):
        return self._runner.run(work)

    def entered(self, context):
        return self.run(self._open.enter_async_context(context))

    def check(self, batch: list[Case]) -> list[Case]:
        """Passes a batch to the loop and checks the outcomes; returns the cases that came through."""
        outputs = Wire(self._settings.max_message_bytes)
        letters = Wire(self._settings.max_letter_bytes, GZIP)
        self.run(self._pass([case.record for case in batch], Outputs(self._name, outputs, letters, self._settings)))
        self.seen.update(case.kind for case in batch)
        return check(self._name, self._settings, batch, outputs.records, letters.records)

    async def _pass(self, records: list[Record], outputs: Outputs) -> None:
        source = SimpleNamespace(connect=lambda *_: None, heartbeat_answered=0.0)
        loop = BatchLoop(self.stage, source, outputs, self._settings, fail, earlier=no_letters)  # type: ignore[arg-type]
        try:
            await loop._publish(await loop._process(records))
        finally:
            for task in (loop._finisher, loop._watchdog):
                task.cancel()

    def assert_enough(self) -> None:
        print(f"{self._name}: {self.seen.total():,} records of {len(self.seen)} kinds")
        assert self.seen.total() >= 1000
        assert set(self.seen) == set(kinds_of(self._name))


async def no_letters() -> list[Position]:
    return []


def fail(error: BaseException) -> NoReturn:
    raise AssertionError("the worker would end") from error


@pytest.fixture
def limited(settings: Settings) -> Settings:
    return settings.model_copy(update=LIMITS)


@pytest.mark.parametrize("stage", ["embed", "expand"])
def test_every_record_leads_to_one_output_or_one_dead_letter(limited, stage):
    with Driven(stage, limited) as driven:

        @given(batches(stage, limited, "c"))
        def whatever_comes(batch):
            driven.check(batch)

        whatever_comes()
    driven.assert_enough()


def test_every_record_leads_to_a_write_or_one_dead_letter(limited):
    """The stores are the real ones, so each batch has chunks of its own."""
    prefixes = (f"{limited.topic}-{n}" for n in count())
    with Driven("index", limited) as driven:
        stores = driven.entered(open_stores(limited))

        @given(st.data())
        def whatever_comes(data):
            batch = data.draw(batches("index", limited, next(prefixes)))
            through = driven.check(batch)
            driven.run(check_stores(stores, batch, through, limited))

        whatever_comes()
    driven.assert_enough()
