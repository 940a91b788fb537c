"""How far a stage's consumer group is behind, for `/metrics`."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiokafka.errors import KafkaError

from stream import kafka, metrics, topics
from stream.config import Settings, StageName
from stream.errors import StreamError
from stream.status import behind, committed

EVERY = 5.0  # seconds

log = logging.getLogger(__name__)


@asynccontextmanager
async def watched(settings: Settings, stage: StageName) -> AsyncIterator[None]:
    """Measures it every five seconds while the context lasts. Kafka's silence costs the figure and nothing else."""
    task = asyncio.create_task(_watch(settings, stage))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _watch(settings: Settings, stage: StageName) -> None:
    gauge = metrics.lag.labels(stage)
    while True:
        try:
            async with kafka.admin(settings) as admin, kafka.consumer(settings) as client:
                partitions = await kafka.partitions(admin, [topics.source(settings, stage)])
                while True:
                    starts, ends = await client.beginning_offsets(partitions), await client.end_offsets(partitions)
                    gauge.set(behind(starts, ends, await committed(admin, topics.group(settings, stage))))
                    await asyncio.sleep(EVERY)
        except (KafkaError, StreamError) as error:
            gauge.set(math.nan)
            log.info("the lag is not known: %r", error)
            await asyncio.sleep(EVERY)
