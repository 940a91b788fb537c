"""The status of the flow: each stage's lag and dead letters, and the chunks in the stores."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from stream.config import STAGES, Settings, StageName
from stream.kafka import clients, deadletters, topics
from stream.kafka.lag import behind, committed, within_ends
from stream.stores import Stores

POLL_INTERVAL = 0.5  # seconds


@dataclass(frozen=True, slots=True)
class StageStatus:
    """The stage has committed `done` of the `total` offsets of its source, up to the high watermark; `lag` is the rest.

    `dead_letters` is the number of records in its dead-letter topic.
    """

    stage: StageName
    total: int
    done: int
    dead_letters: int

    @property
    def lag(self) -> int:
        """Offsets that the stage has not committed, including those of open and of aborted transactions."""
        return self.total - self.done


@dataclass(frozen=True, slots=True)
class Status:
    """All stages in the flow's order, and chunks by store; `origins` counts them by what made their vectors."""

    stages: list[StageStatus]
    stores: Mapping[str, int]
    origins: Mapping[str, Mapping[str, int]]


async def status(settings: Settings, stores: Stores) -> Status:
    """The current status; dead letters that were redriven are not counted."""
    found = [
        replace(look, dead_letters=await deadletters.waiting(settings, look.stage)) if look.dead_letters else look
        for look in await stages(settings)
    ]
    return Status(
        found,
        {store.name: await store.count() for store in stores.both},
        {store.name: await store.origins() for store in stores.both},
    )


async def caught_up(
    settings: Settings,
    names: Collection[StageName] = STAGES,
    look: Callable[[list[StageStatus]], None] = lambda _: None,
) -> None:
    """Waits until these stages have no lag; `look` is called with each snapshot.

    Requires two equal snapshots: end offsets and commits cannot be read atomically.
    """
    before: list[StageStatus] = []
    while True:
        now = await stages(settings)
        look(now)
        if now == before and not any(found.lag for found in now if found.stage in names):
            return
        before = now
        await asyncio.sleep(POLL_INTERVAL)


async def stages(settings: Settings) -> list[StageStatus]:
    """A snapshot of all stages: high watermarks and committed offsets."""
    async with clients.offsets(settings) as client, clients.admin(settings) as admin:
        return (await snapshot(settings, admin, client)).stages


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All stages, and by stage and partition of its source: the committed offset, or the first one without a commit."""

    stages: list[StageStatus]
    done: Mapping[StageName, Mapping[TopicPartition, int]]
    ends: Mapping[TopicPartition, int]


async def snapshot(settings: Settings, admin: AIOKafkaAdminClient, client: AIOKafkaConsumer) -> Snapshot:
    """The same with open clients; `client` comes from `clients.offsets`."""
    names = [topics.source(settings, stage) for stage in STAGES]
    names += [topics.dead_letters(settings, stage) for stage in STAGES]
    partitions = await clients.partitions(admin, names)
    commits = {stage: await committed(admin, topics.group(settings, stage)) for stage in STAGES}
    starts, ends = await client.beginning_offsets(partitions), await client.end_offsets(partitions)
    found: list[StageStatus] = []
    done = {}
    for stage in STAGES:
        mine = {tp: end for tp, end in ends.items() if tp.topic == topics.source(settings, stage)}
        known = within_ends(commits[stage], ends)
        done[stage] = {tp: max(known.get(tp, 0), starts[tp]) for tp in mine}
        total = sum(end - starts[tp] for tp, end in mine.items())
        lag = behind(starts, mine, known)
        letters = _records(topics.dead_letters(settings, stage), starts, ends)
        found.append(StageStatus(stage, total=total, done=total - lag, dead_letters=letters))
    return Snapshot(found, done, ends)


def _records(topic: str, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]) -> int:
    return sum(ends[tp] - starts[tp] for tp in ends if tp.topic == topic)
