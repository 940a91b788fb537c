"""What a worker asks every five seconds, also without work: how far its stage is behind, and whether all is there."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

from aiokafka.errors import KafkaError

from stream import kafka, metrics, topics
from stream.config import Settings
from stream.errors import StreamError
from stream.loop import Stage
from stream.status import uncommitted
from stream.web import Check

EVERY = 5.0  # seconds
PATIENCE = 10.0  # seconds for an answer

log = logging.getLogger(__name__)


@asynccontextmanager
async def watched(settings: Settings, stage: Stage, fail: Callable[[BaseException], NoReturn]) -> AsyncIterator[Check]:
    """Asks while the context lasts; the check says what is wrong with the last answers. `fail` gets any surprise."""
    gauge = metrics.lag.labels(stage.name)
    async with kafka.admin(settings) as admin, kafka.offsets(settings) as client:
        partitions = await kafka.partitions(admin, [topics.source(settings, stage.name)])

        async def lag() -> None:
            try:
                gauge.set(await uncommitted(admin, client, topics.group(settings, stage.name), partitions))
            except BaseException:
                gauge.set(math.nan)
                raise

        wrong: dict[str, str | None] = {}

        def answered(who: str, said: str | None) -> None:
            if bool(said) != bool(wrong.get(who)):
                log.warning("not ready: %s", said) if said else log.info("%s answers again", who)
            wrong[who] = said

        async def ask(who: str, question: Callable[[], Awaitable[None]]) -> None:
            while True:
                try:
                    async with asyncio.timeout(PATIENCE):
                        await question()
                    answered(who, None)
                except TimeoutError:
                    answered(who, f"{who} has not answered for {PATIENCE:g} s")
                except (KafkaError, StreamError) as error:
                    answered(who, str(error))
                except Exception as error:
                    fail(error)
                await asyncio.sleep(EVERY)

        tasks = [
            asyncio.create_task(ask("Kafka", lag)),
            asyncio.create_task(ask(f"what {stage.name} needs", stage.answer)),
        ]
        try:
            yield lambda: next(filter(None, wrong.values()), None)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
