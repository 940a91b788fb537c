"""Reindexing: a new generation of both stores beside the live one, and the swap.

`docs/decisions/0005-generations.md` says what a generation is. Workers fill it, as they fill every generation; here
they are started and watched, and what they made is proved by `verify` before the swap. What state there is lies in
the stores (which generations there are, which is live) and in Kafka (how far each has come): what was interrupted is
run again.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from aiokafka.errors import CommitFailedError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from stream import children, kafka, replay, topics
from stream.config import STAGES, Settings, StageName
from stream.errors import ConfigurationError, Outage, StreamError
from stream.status import behind, committed, uncommitted
from stream.stores import open_stores
from stream.stores.base import Generation
from stream.verify import Report, verify

LOOK_AGAIN = 0.5  # seconds
CLOSE = 5.0  # seconds that passing the newest end may take when a generation is as good as complete
VERIFY_WAIT = 60.0  # seconds for what is published meanwhile

NONE: Mapping[str, str] = {}

Look = Callable[[StageName, int, int], None]  # a stage has done so many records of so many


class NotClean(StreamError):
    """The new generation is not what the topic says; the report is its argument."""

    def __init__(self, report: Report) -> None:
        super().__init__(
            f"the generation does not become live, {report.different:,} chunks differ: {'; '.join(report.differences)}"
        )


async def generations(settings: Settings) -> list[Generation]:
    """All that there are, of all flows."""
    async with open_stores(settings) as stores:
        return await stores.opensearch.generations()


async def lag(settings: Settings, generation: Generation) -> int:
    """Records of its topic that a generation does not have: the workers' lag, or what came since it was followed."""
    number = None if generation.live else generation.number
    mine = settings.model_copy(update={"flow": generation.flow, "generation": number})
    async with kafka.admin(mine) as admin, kafka.offsets(mine) as client:
        partitions = await kafka.partitions(admin, [topics.source(mine, "index")])
        return await uncommitted(admin, client, topics.group(mine, "index"), partitions)


def of(settings: Settings, number: int) -> Settings:
    """The settings of who reads and writes this generation."""
    return settings.model_copy(update={"generation": number})


async def start(
    settings: Settings, assignments: Mapping[str, str] = NONE, *, swap_too: bool = True, look: Look = lambda *_: None
) -> int:
    """Builds the flow's next generation, or goes on with the one that was begun, and swaps; returns its number.

    `assignments` are settings that the environment does not say. Raises `NotClean` if it is not what the topic says.
    """
    found = await generations(settings)
    live = _live(settings, found)
    begun = [g.number for g in found if g.flow == settings.flow and g.number > live]
    number = begun[-1] if begun else max((g.number for g in found), default=0) + 1
    stages: Sequence[StageName] = ("index",) if live else STAGES
    mine = of(settings, number)
    if not begun:
        await topics.create(mine)
        await _patiently(mine, partial(replay.reset, mine, "index", "earliest"))  # the number may be an old one's
    async with _workers(mine, stages, assignments):
        await _follow(mine, stages, look)
        await prove(mine)
        if swap_too:
            await _swap(settings, number, stages, look)
    return number


async def swap(
    settings: Settings, number: int, assignments: Mapping[str, str] = NONE, look: Look = lambda *_: None
) -> None:
    """Makes a generation live that was live before or was built without a swap; it is brought up to date first."""
    found = await generations(settings)
    if not any(g.number == number and g.flow == settings.flow for g in found):
        raise ConfigurationError(f"there is no generation {number} to swap to; `stream reindex status` lists them")
    async with _workers(of(settings, number), ("index",), assignments):
        await _follow(of(settings, number), ("index",), look)
        await prove(of(settings, number))
        await _swap(settings, number, ("index",), look)


async def rollback(settings: Settings, assignments: Mapping[str, str] = NONE, look: Look = lambda *_: None) -> int:
    """Swaps back to the newest generation before the live one; returns its number."""
    found = await generations(settings)
    live = _live(settings, found)
    older = [g.number for g in found if g.flow == settings.flow and g.number < live]
    if not older:
        raise ConfigurationError("there is no older generation: it was pruned, or there never was one")
    await swap(settings, older[-1], assignments, look)
    return older[-1]


async def drop(settings: Settings, wanted: Callable[[Generation, int], bool]) -> list[int]:
    """Deletes generations of the flow that are not live: those of which `wanted(generation, live)` holds."""
    found = await generations(settings)
    live = _live(settings, found)
    going = [g for g in found if g.flow == settings.flow and not g.live and wanted(g, live)]
    async with open_stores(settings) as stores:
        for generation in going:
            await stores.neo4j.drop(generation.number)
            await stores.opensearch.drop(generation.number)  # the last: it is what says that there is a generation
    return [generation.number for generation in going]


async def prove(mine: Settings) -> None:
    """Raises `NotClean` if the generation differs from the topic."""
    async with open_stores(mine) as stores:
        await stores.opensearch.settle(mine.generation or 0)
        report = await verify(mine, stores, wait=VERIFY_WAIT)
    if not report.clean:
        raise NotClean(report)


async def _swap(settings: Settings, number: int, stages: Sequence[StageName], look: Look) -> None:
    """Both pointers, one after the other; then on to the end as it is after that."""
    live = _live(settings, await generations(settings))
    workers, loader = topics.group(settings, "index"), topics.group(of(settings, number), "index")
    async with open_stores(settings) as stores:
        if not live:
            await _copy_offsets(settings, loader, workers)
        elif await stores.neo4j.live() == live:  # not when an earlier swap died between the two
            # Should the old generation ever be followed again, it goes on where the live workers are now.
            await _copy_offsets(settings, workers, topics.group(of(settings, live), "index"))
        for store in stores.both:
            await store.go_live(number)
    await _pass_end(of(settings, number), stages, look)


async def _copy_offsets(settings: Settings, group: str, to: str) -> None:
    async with kafka.admin(settings) as admin:
        offsets = await committed(admin, group)
    if offsets:
        await _patiently(settings, partial(kafka.commit, settings, to, offsets))


async def _patiently(settings: Settings, commit: Callable[[], Awaitable[object]]) -> None:
    """Kafka takes a group's offsets from outside only when its last worker has been gone for a session's time."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(CommitFailedError),
        stop=stop_after_delay(settings.session_timeout + settings.drain_timeout),
        wait=wait_fixed(LOOK_AGAIN),
        reraise=True,
    ):
        with attempt:
            await commit()


def _live(settings: Settings, found: Sequence[Generation]) -> int:
    """The flow's live generation, 0 if it has none yet."""
    return next((g.number for g in found if g.live and g.flow == settings.flow), 0)


async def _follow(mine: Settings, stages: Sequence[StageName], look: Look) -> None:
    """Until the generation has passed the end of its topic, and the next one within seconds."""
    while True:
        started = time.monotonic()
        await _pass_end(mine, stages, look)
        if time.monotonic() - started < CLOSE:
            return


async def _pass_end(mine: Settings, stages: Sequence[StageName], look: Look) -> None:
    """Each stage until it has committed the end that its topic has when the stage before it has done so."""
    for stage in stages:
        async with kafka.admin(mine) as admin, kafka.offsets(mine) as client:
            partitions = await kafka.partitions(admin, [topics.source(mine, stage)])
            starts, ends = await client.beginning_offsets(partitions), await client.end_offsets(partitions)
            total = sum(ends[tp] - starts[tp] for tp in partitions)
            while True:
                done = await committed(admin, topics.group(mine, stage))
                left = behind(starts, ends, done)
                look(stage, total - left, total)
                if not left:
                    break
                await asyncio.sleep(LOOK_AGAIN)


@asynccontextmanager
async def _workers(mine: Settings, stages: Sequence[StageName], assignments: Mapping[str, str]) -> AsyncIterator[None]:
    """Workers of the generation; if one ends by itself, so does what is done meanwhile."""
    own = {
        **assignments,
        "generation": str(mine.generation),
        "flow": mine.flow,
        "instance": f"{mine.instance}-reindex-{os.getpid()}",
        "web_port": "0",
    }
    doing = asyncio.current_task()
    assert doing
    async with children.workers(dict.fromkeys(stages, own)) as check:
        watching = asyncio.create_task(_watch(check, doing))
        try:
            yield
        except asyncio.CancelledError:
            if watching.done() and (error := watching.exception()):
                raise error from None
            raise
        finally:
            watching.cancel()


async def _watch(check: Callable[[], None], doing: "asyncio.Task[object]") -> None:
    while True:
        try:
            check()
        except Outage:
            doing.cancel()
            raise
        await asyncio.sleep(LOOK_AGAIN)
