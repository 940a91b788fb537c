"""Reindexing: a new generation of both stores beside the live one, and the swap.

`docs/decisions/0005-generations.md` says what a generation is. Workers fill it, as they fill every generation; here
they are started and watched, and what they made is proved by `verify` before the swap. What state there is lies in
the stores (which generations there are, which is live, whether a swap goes on) and in Kafka (how far each has come):
what was interrupted is run again.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from aiokafka.errors import CommitFailedError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from stream import children
from stream.config import STAGES, Settings, StageName
from stream.errors import ConfigurationError, Outage, StreamError
from stream.kafka import clients, topics
from stream.kafka.lag import behind, committed, uncommitted
from stream.operate import replay
from stream.operate.verify import Report, verify
from stream.stores import open_stores
from stream.stores.base import FIRST, Generation, Older
from stream.stores.neo4j import Neo4jStore
from stream.stores.opensearch import OpenSearchStore

LOOK_AGAIN = 0.5  # seconds
CLOSE = 5.0  # seconds that passing the newest end may take when a generation is as good as complete
VERIFY_WAIT = 60.0  # seconds for what is published meanwhile
NAMED = 5  # chunks that an error names

NEO4J, OPENSEARCH = Neo4jStore.name, OpenSearchStore.name
NONE: Mapping[str, str] = {}

Look = Callable[[StageName, int, int], None]  # a stage has done so many records of so many


class NotClean(StreamError):
    """The new generation is not what the topic says; the report is its argument."""

    def __init__(self, report: Report) -> None:
        super().__init__(
            f"the generation does not become live, {report.different:,} chunks differ: {'; '.join(report.differences)}"
        )


class Backwards(StreamError):
    """The topic no longer has what the live generation shows of some chunks."""

    def __init__(self, number: int, older: Older) -> None:
        named = [
            f"{chunk_id} ({f'version {shown} would be {lower}' if lower is not None else f'version {shown} would go'})"
            for chunk_id, (shown, lower) in sorted(older.items())[:NAMED]
        ]
        super().__init__(
            f"generation {number} does not become live: the topic no longer has the newest version of {len(older):,} "
            f"chunks, which searchers would see in an older one or not at all: {', '.join(named)}"
            f"{', …' if len(older) > NAMED else ''}; publish these again with a higher version than they ever had, or "
            "go on with --accept-older"
        )


class SwapUnfinished(StreamError):
    """A swap was interrupted: which generation is live must be settled first."""

    def __init__(self, number: int) -> None:
        super().__init__(unfinished_sentence(number))


@dataclass(frozen=True, slots=True)
class Accepted:
    """What may be wrong with a generation that becomes live: with these chunks, or older versions of any."""

    chunk_ids: Collection[str] = ()
    older: bool = False


NOTHING = Accepted()


async def generations(settings: Settings) -> list[Generation]:
    """All that there are, of all flows, by number."""
    async with open_stores(settings) as stores:
        return await stores.generations()


def unfinished(flow: str, found: Sequence[Generation]) -> int | None:
    """The generation to which a swap of the flow goes on or was interrupted; None if there is no such swap.

    A swap sets Neo4j's pointer, then OpenSearch's alias, then follows the topic to its end.
    """
    live = [g for g in found if g.flow == flow and g.live]
    if not live or (len(live) == 1 and live[0].live_in == {NEO4J, OPENSEARCH} and not live[0].swapping):
        return None
    return max(live, key=lambda g: (g.built, NEO4J in g.live_in)).number


def unfinished_sentence(number: int) -> str:
    """What a person is told of a swap that has not ended."""
    return (
        f"the swap to generation {number} has not ended: unless it is still running, `stream reindex swap {number}` "
        "finishes it"
    )


async def lag(settings: Settings, generation: Generation) -> int | None:
    """Offsets of its topic that a generation does not have, from where its own workers or the live ones have come.

    None if the flow has no topics any more.
    """
    settled = generation.live and unfinished(generation.flow, [generation]) is None
    mine = settings.model_copy(update={"flow": generation.flow, "generation": None if settled else generation.number})
    async with clients.admin(mine) as admin, clients.offsets(mine) as client:
        try:
            partitions = await clients.partitions(admin, [topics.source(mine, "index")])
        except ConfigurationError:
            return None
        return await uncommitted(admin, client, topics.group(mine, "index"), partitions)


def for_generation(settings: Settings, number: int) -> Settings:
    """The settings of who reads and writes this generation."""
    return settings.model_copy(update={"generation": number})


async def start(
    settings: Settings,
    assignments: Mapping[str, str] = NONE,
    *,
    swap_too: bool = True,
    accepted: Accepted = NOTHING,
    look: Look = lambda *_: None,
) -> int:
    """Builds the flow's next generation, or goes on with the one that was begun, and swaps; returns its number.

    `assignments` are settings that the environment does not say. Raises `SwapUnfinished`, `NotClean` if the generation
    is not what the topic says, or `Backwards`. Two at once build one generation together.
    """
    _require_no_swap(settings, await generations(settings))
    await topics.create(settings)
    number = await _claimed(settings)
    await _complete(settings, number, assignments, accepted, look, swap_too=swap_too)
    return number


async def swap(
    settings: Settings,
    number: int,
    assignments: Mapping[str, str] = NONE,
    *,
    accepted: Accepted = NOTHING,
    look: Look = lambda *_: None,
) -> None:
    """Makes a generation live that was live before or was built without a swap; it is brought up to date first.

    Finishes a swap that was interrupted. Raises what `start` raises, but for `SwapUnfinished`.
    """
    found = await generations(settings)
    wanted = [g for g in found if g.number == number and g.flow == settings.flow and g.built]
    if not wanted:
        raise ConfigurationError(f"there is no generation {number} to swap to; `stream reindex status` lists them")
    if wanted[0].live and unfinished(settings.flow, found) is None:
        return
    await _complete(settings, number, assignments, accepted, look)


async def rollback(
    settings: Settings,
    assignments: Mapping[str, str] = NONE,
    *,
    accepted: Accepted = NOTHING,
    look: Look = lambda *_: None,
) -> int:
    """Swaps back to the newest generation before the live one; returns its number."""
    found = await generations(settings)
    live = _require_no_swap(settings, found)
    older = [g.number for g in found if g.flow == settings.flow and g.number < live]
    if not older:
        raise ConfigurationError("there is no older generation: it was pruned, or there never was one")
    await swap(settings, older[-1], assignments, accepted=accepted, look=look)
    return older[-1]


async def drop(settings: Settings, wanted: Callable[[Generation, int], bool]) -> list[int]:
    """Deletes generations of the flow that are live in neither store: those of which `wanted(generation, live)` holds.

    Raises `SwapUnfinished`, and `ConfigurationError` if somebody builds one of them now.
    """
    async with open_stores(settings) as stores:
        found = await stores.generations()
        live = _require_no_swap(settings, found)
        going = [g.number for g in found if g.flow == settings.flow and not g.live and wanted(g, live)]
        for number in going:
            # Whoever goes on with it when this was interrupted must read everything again.
            await _from_the_beginning(settings, number)
            await stores.drop(number)
    return going


async def prove(mine: Settings, accept: Collection[str] = ()) -> None:
    """Raises `NotClean` if the generation differs from the topic, but for chunks that are accepted."""
    async with open_stores(mine) as stores:
        await stores.opensearch.settle(mine.generation or 0)
        report = await verify(mine, stores, wait=VERIFY_WAIT, accept=accept)
    if not report.clean:
        raise NotClean(report)


def _require_no_swap(settings: Settings, found: Sequence[Generation]) -> int:
    """The flow's live generation, 0 if it has none yet; raises `SwapUnfinished`."""
    number = unfinished(settings.flow, found)
    if number is not None:
        raise SwapUnfinished(number)
    return next((g.number for g in found if g.live and g.flow == settings.flow), 0)


async def _claimed(settings: Settings) -> int:
    """The number of the generation that was begun, or the next one that nobody has, which is ours from then on."""
    while True:
        found = await generations(settings)
        live = _require_no_swap(settings, found)
        if begun := [g.number for g in found if g.flow == settings.flow and g.number > live]:
            return begun[-1]
        usual = 0 if not settings.flow else FIRST  # the first is that of the flow without a name
        number = max((g.number for g in found), default=usual) + 1
        await _from_the_beginning(settings, number)  # before the claim: the group may be that of an earlier generation
        async with open_stores(for_generation(settings, number)) as stores:
            if await stores.opensearch.claim():
                return number


async def _from_the_beginning(settings: Settings, number: int) -> None:
    mine = for_generation(settings, number)
    await _patiently(settings, topics.group(mine, "index"), partial(replay.reset, mine, "index", "earliest"))


async def _complete(
    settings: Settings,
    number: int,
    assignments: Mapping[str, str],
    accepted: Accepted,
    look: Look,
    *,
    swap_too: bool = True,
) -> None:
    """Brings a generation up to date, proves it and swaps."""
    shown = [g for g in await generations(settings) if g.flow == settings.flow and OPENSEARCH in g.live_in]
    stages: Sequence[StageName] = ("index",) if shown else STAGES  # else nobody embeds and expands yet
    mine = for_generation(settings, number)
    async with _workers(mine, stages, assignments):
        await _follow(mine, stages, look)
        await prove(mine, accepted.chunk_ids)
        if swap_too:
            if not accepted.older:
                await _require_nothing_older(
                    settings, number, accepted.chunk_ids, partial(_pass_end, mine, stages, look)
                )
            await _swap(settings, number, partial(_pass_end, mine, stages, look))


async def _require_nothing_older(
    settings: Settings, number: int, accept: Collection[str], pass_end: Callable[[], Awaitable[None]]
) -> None:
    """Raises `Backwards` if the generation has older versions than what searchers see now.

    That is the flow's live generation; they come to a flow that has none from the other flows.
    """
    async with open_stores(settings) as stores:
        live = [g for g in await stores.generations() if g.live and g.built]
        shown = [g.number for g in live if g.flow == settings.flow] or [g.number for g in live]

        async def look() -> Older:
            found: Older = {}
            for store in stores.both:
                for other in shown:
                    if other != number:
                        found |= await store.older(number, other)
            return {chunk_id: versions for chunk_id, versions in found.items() if chunk_id not in accept}

        if first := await look():
            await pass_end()  # it may be on its way
            now = {chunk_id: lower for chunk_id, (_, lower) in (await look()).items()}
            older: Older = {
                chunk_id: (seen, now[chunk_id])
                for chunk_id, (seen, _) in first.items()
                if chunk_id in now and ((lower := now[chunk_id]) is None or lower < seen)
            }
            if older:
                raise Backwards(number, older)


async def _swap(settings: Settings, number: int, pass_end: Callable[[], Awaitable[None]]) -> None:
    """Both pointers, one after the other; then on to the end as it is after that."""
    workers, loader = topics.group(settings, "index"), topics.group(for_generation(settings, number), "index")
    async with open_stores(settings) as stores:
        found = await stores.generations()
        live = [g.number for g in found if g.flow == settings.flow and g.live]
        if not any(g.flow == settings.flow and OPENSEARCH in g.live_in for g in found):
            await _copy_offsets(settings, loader, workers)
        elif unfinished(settings.flow, found) is None and number not in live:
            # Should the old generation ever be followed again, it goes on where the live workers are now. What an
            # interrupted swap has noted stays: from there on one of the stores has not had what came.
            await _copy_offsets(settings, workers, topics.group(for_generation(settings, live[0]), "index"))
        for store in stores.both:
            await store.go_live(number)
        await pass_end()
        await stores.neo4j.swapped(number)
        left = unfinished(settings.flow, await stores.generations())
        if left is not None:
            raise SwapUnfinished(left)


async def _copy_offsets(settings: Settings, group: str, to: str) -> None:
    async with clients.admin(settings) as admin:
        offsets = await committed(admin, group)
    if offsets:
        await _patiently(settings, to, partial(clients.commit, settings, to, offsets))


async def _patiently(settings: Settings, group: str, commit: Callable[[], Awaitable[object]]) -> None:
    """Kafka takes a group's offsets from outside only when its last worker has been gone for a session's time."""
    patience = settings.session_timeout + settings.drain_timeout
    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(CommitFailedError),
            stop=stop_after_delay(patience),
            wait=wait_fixed(LOOK_AGAIN),
            reraise=True,
        ):
            with attempt:
                await commit()
    except CommitFailedError:
        raise ConfigurationError(
            f"the consumer group {group} has members, also after {patience:g} s: another `stream reindex`, or a "
            "worker, is running; wait for its end or stop it"
        ) from None


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
        async with clients.admin(mine) as admin, clients.offsets(mine) as client:
            partitions = await clients.partitions(admin, [topics.source(mine, stage)])
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
        "instance": f"{mine.instance}-reindex-{uuid.uuid4().hex[:8]}",
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
