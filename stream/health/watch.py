"""Every five seconds, also without work, a worker checks its stage's lag and whether all that it needs answers.

It also detects two changes of topics. If partitions were added to the stage's source, they count for the lag at once,
and Faust reads them within `source.METADATA_AGE_MS`. If one of the stage's topics was deleted and recreated, the worker
ends, because its clients would continue at offsets of the old topic; the next worker reads the new topic from its
beginning.
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

INTERVAL = 5.0  # seconds
ANSWER_TIMEOUT = 10.0  # seconds

log = logging.getLogger(__name__)


class _Topics:
    """The topics that a stage uses; detects what has changed since the last check."""

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

    async def recreated(self) -> list[str]:
        """Names of the topics whose id is not what it was at the start."""
        now = await topic_ids(self._admin, self._names)
        return [name for name in now if now[name] != self._ids[name]]

    async def partitions(self) -> list[TopicPartition]:
        """The partitions of the source; logs a warning if their number has changed."""
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
    """Checks while the context lasts; the returned check says what is wrong according to the last answers.

    `fail` gets any unexpected error. If the source was recreated, `read_again` sets the group's offsets back to its
    beginning before `fail` ends the worker.
    """
    gauge = metrics.lag.labels(stage.name)
    async with clients.admin(settings) as admin, clients.offsets(settings) as client:
        used = await _Topics.known(admin, settings, stage)

        async def lag() -> None:
            try:
                if recreated := await used.recreated():
                    if used.source in recreated:
                        await read_again()
                    fail(
                        Outage(
                            f"{' and '.join(recreated)} was deleted and recreated; the next worker uses the new topic"
                        )
                    )
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
                    async with asyncio.timeout(ANSWER_TIMEOUT):
                        await question()
                    answered(who, None)
                except TimeoutError:
                    answered(who, f"{who} did not answer within {ANSWER_TIMEOUT:g} s")
                except (KafkaError, StreamError) as error:
                    answered(who, str(error))
                except Exception as error:
                    fail(error)
                await asyncio.sleep(INTERVAL)

        tasks = [
            asyncio.create_task(ask("Kafka", lag)),
            asyncio.create_task(ask(f"a server that {stage.name} needs", stage.answer)),
        ]
        try:
            yield lambda: next(filter(None, wrong.values()), None)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
