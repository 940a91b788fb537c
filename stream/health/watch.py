"""What a worker asks every five seconds, also without work: how far its stage is behind, and whether all is there.

It sees too when partitions were added to the stage's source (they count for the lag at once, and Faust reads them
within `worker.METADATA_AGE_MS`), and when one of the stage's topics was deleted and made again. Then the worker ends,
because its clients go on from the offsets of the topic that is gone; the next one reads from the new one's beginning.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NoReturn, Self

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from stream import metrics
from stream.config import Settings
from stream.errors import Outage, StreamError
from stream.health.web import Check
from stream.kafka import clients, topics
from stream.kafka.lag import uncommitted
from stream.kafka.topic_ids import topic_ids
from stream.stages.base import Stage

EVERY = 5.0  # seconds
PATIENCE = 10.0  # seconds for an answer

log = logging.getLogger(__name__)


class _Topics:
    """The topics that a stage uses, compared with what they were at the last look."""

    def __init__(self, admin: AIOKafkaAdminClient, names: list[str], ids: dict[str, bytes], partitions: int) -> None:
        self._admin = admin
        self.source, *_ = self._names = names
        self._ids = ids
        self._partitions = partitions

    @classmethod
    async def known(cls, admin: AIOKafkaAdminClient, settings: Settings, stage: Stage) -> Self:
        names = topics.of(settings, stage.name)
        ids = await topic_ids(admin, names)
        return cls(admin, names, ids, len(await clients.partitions(admin, names[:1])))

    async def made_again(self) -> list[str]:
        """Names of those that are no longer the topics they were."""
        now = await topic_ids(self._admin, self._names)
        return [name for name in now if now[name] != self._ids[name]]

    async def partitions(self) -> list[TopicPartition]:
        """Those of the source."""
        found = await clients.partitions(self._admin, [self.source])
        if len(found) != self._partitions:
            log.warning(
                "%s has %d partitions now, it had %d: a chunk may have records in two of them; "
                "docs/operations.md says what to do", self.source, len(found), self._partitions,
            )  # fmt: skip
            self._partitions = len(found)
        return found


@asynccontextmanager
async def watched(
    settings: Settings,
    stage: Stage,
    fail: Callable[[BaseException], NoReturn],
    read_again: Callable[[], Awaitable[None]],
) -> AsyncIterator[Check]:
    """Asks while the context lasts; the check says what is wrong with the last answers.

    `fail` gets any surprise. `read_again` makes the group forget how far it had read the source, before `fail` ends a
    worker whose source was made again.
    """
    gauge = metrics.lag.labels(stage.name)
    async with clients.admin(settings) as admin, clients.offsets(settings) as client:
        used = await _Topics.known(admin, settings, stage)

        async def lag() -> None:
            try:
                if again := await used.made_again():
                    if used.source in again:
                        await read_again()
                    fail(Outage(f"{' and '.join(again)} was deleted and made again; the next worker reads what is new"))
                partitions = await used.partitions()
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
