"""Reindexing: builds a new generation of both stores beside the live one, and swaps to it.

`docs/decisions/0005-generations.md` says what a generation is. Workers fill it, as they fill every generation. This
module starts and watches them, and checks the generation with `verify` before the swap. All state is in the stores
(which generations exist, which one is live, whether a swap is in progress) and in Kafka (each generation's committed
offsets): after an interruption, run the same command again.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
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

POLL_INTERVAL = 0.5  # seconds
CATCH_UP_TIME = 5.0  # seconds: a generation is up to date if it reaches its topic's current end within this time
VERIFY_WAIT = 60.0  # seconds for workers to index what is published meanwhile
NAMED = 5  # chunks that an error names

NEO4J, OPENSEARCH = Neo4jStore.name, OpenSearchStore.name
NONE: Mapping[str, str] = {}

Look = Callable[[StageName, int, int], None]  # stage, records done, records in total


class NotClean(StreamError):
    """The new generation differs from the topic."""

    def __init__(self, report: Report) -> None:
        super().__init__(
            f"the generation does not become live, {report.different:,} chunks differ: {'; '.join(report.differences)}"
        )


class OlderVersions(StreamError):
    """The new generation has older versions of some chunks than the live one: the topic no longer has the newest."""

    def __init__(self, number: int, older: Older) -> None:
        named = [
            f"{chunk_id} ({f'version {shown} would be {lower}' if lower is not None else f'version {shown} would go'})"
            for chunk_id, (shown, lower) in sorted(older.items())[:NAMED]
        ]
        super().__init__(
            f"generation {number} does not become live: the topic no longer has the newest version of {len(older):,} "
            f"chunks, so searches would return an older version or nothing: {', '.join(named)}"
            f"{', …' if len(older) > NAMED else ''}; publish these again with a higher version than ever before, or "
            "accept the older versions with --accept-older"
        )


class SwapUnfinished(StreamError):
    """A swap was interrupted and must be finished first."""

    def __init__(self, number: int) -> None:
        super().__init__(unfinished_sentence(number))


@dataclass(frozen=True, slots=True)
class Accepted:
    """Differences that do not prevent a swap: any of these chunks, and with `older`, older versions of all chunks."""

    chunk_ids: Collection[str] = ()
    older: bool = False


NOTHING = Accepted()


async def generations(settings: Settings) -> list[Generation]:
    """All generations of all flows, by number."""
    async with open_stores(settings) as stores:
        return await stores.generations()


def unfinished(flow: str, found: Sequence[Generation]) -> int | None:
    """The target of a swap of the flow that is in progress or was interrupted; None if there is no such swap.

    A swap sets Neo4j's pointer, then OpenSearch's alias, then follows the topic to its end.
    """
    live = [g for g in found if g.flow == flow and g.live]
    if not live or (len(live) == 1 and live[0].live_in == {NEO4J, OPENSEARCH} and not live[0].swapping):
        return None
    return max(live, key=lambda g: (g.built, NEO4J in g.live_in)).number


def unfinished_sentence(number: int) -> str:
    """The message about a swap that has not ended."""
    return (
        f"the swap to generation {number} has not ended: unless it is still running, `stream reindex swap {number}` "
        "finishes it"
    )


async def lag(settings: Settings, generation: Generation) -> int | None:
    """Offsets that a generation's consumer group has not committed; a live one has the group of the live workers.

    None if the flow's topics no longer exist.
    """
    async with clients.admin(settings) as admin, clients.offsets(settings) as client:
        return await lag_now(settings, generation, admin, client)


async def lag_now(
    settings: Settings, generation: Generation, admin: AIOKafkaAdminClient, client: AIOKafkaConsumer
) -> int | None:
    """The same with open clients; `client` comes from `clients.offsets`."""
    settled = generation.live and unfinished(generation.flow, [generation]) is None
    mine = settings.model_copy(update={"flow": generation.flow, "generation": None if settled else generation.number})
    try:
        partitions = await clients.partitions(admin, [topics.source(mine, "index")])
    except ConfigurationError:
        return None
    return await uncommitted(admin, client, topics.group(mine, "index"), partitions)


def for_generation(settings: Settings, number: int) -> Settings:
    """The settings to read and write this generation."""
    return settings.model_copy(update={"generation": number})


async def start(
    settings: Settings,
    assignments: Mapping[str, str] = NONE,
    *,
    swap_too: bool = True,
    accepted: Accepted = NOTHING,
    look: Look = lambda *_: None,
) -> int:
    """Builds the flow's next generation, or continues the one that was begun, and swaps; returns its number.

    `assignments` are settings that are not in the environment. Raises `SwapUnfinished`, `NotClean` if the generation
    differs from the topic, or `OlderVersions`. Two concurrent calls build one generation together.
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
    """Brings a generation up to date that was live before or was built without a swap, and makes it live.

    Finishes a swap that was interrupted. Raises the errors of `start`; `SwapUnfinished` only if another swap ran.
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
    """Deletes the flow's generations that are live in neither store and for which `wanted(generation, live)` is true.

    Raises `SwapUnfinished`, and `ConfigurationError` if another process is building one of them.
    """
    async with open_stores(settings) as stores:
        found = await stores.generations()
        live = _require_no_swap(settings, found)
        going = [g.number for g in found if g.flow == settings.flow and not g.live and wanted(g, live)]
        for number in going:
            # If this is interrupted, a command that continues the generation must read the whole topic again.
            await _from_the_beginning(settings, number)
            await stores.drop(number)
    return going


async def prove(mine: Settings, accept: Collection[str] = ()) -> None:
    """Raises `NotClean` if the generation differs from the topic, except for accepted chunks."""
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
    """The number of the generation that was begun, or the next free number, which this call claims."""
    while True:
        found = await generations(settings)
        live = _require_no_swap(settings, found)
        if begun := [g.number for g in found if g.flow == settings.flow and g.number > live]:
            return begun[-1]
        usual = 0 if not settings.flow else FIRST  # FIRST belongs to the flow without a name
        number = max((g.number for g in found), default=usual) + 1
        await _from_the_beginning(settings, number)  # before the claim: the group may have old offsets
        async with open_stores(for_generation(settings, number)) as stores:
            if await stores.opensearch.claim():
                return number


async def _from_the_beginning(settings: Settings, number: int) -> None:
    mine = for_generation(settings, number)
    await _retry_commit(settings, topics.group(mine, "index"), partial(replay.reset, mine, "index", "earliest"))


async def _complete(
    settings: Settings,
    number: int,
    assignments: Mapping[str, str],
    accepted: Accepted,
    look: Look,
    *,
    swap_too: bool = True,
) -> None:
    """Brings a generation up to date, verifies it and swaps."""
    shown = [g for g in await generations(settings) if g.flow == settings.flow and OPENSEARCH in g.live_in]
    stages: Sequence[StageName] = ("index",) if shown else STAGES  # else no worker embeds and expands
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
    """Raises `OlderVersions` if the generation has older versions of chunks than searches return now.

    Searches use the flow's live generation. If the flow has none, they still use those of the other flows.
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
            await pass_end()  # a newer version may not be indexed yet
            now = {chunk_id: lower for chunk_id, (_, lower) in (await look()).items()}
            older: Older = {
                chunk_id: (seen, now[chunk_id])
                for chunk_id, (seen, _) in first.items()
                if chunk_id in now and ((lower := now[chunk_id]) is None or lower < seen)
            }
            if older:
                raise OlderVersions(number, older)


async def _swap(settings: Settings, number: int, pass_end: Callable[[], Awaitable[None]]) -> None:
    """Sets both stores' pointers, one after the other; then indexes up to the topic's end at that time."""
    workers, loader = topics.group(settings, "index"), topics.group(for_generation(settings, number), "index")
    async with open_stores(settings) as stores:
        found = await stores.generations()
        live = [g.number for g in found if g.flow == settings.flow and g.live]
        if not any(g.flow == settings.flow and OPENSEARCH in g.live_in for g in found):
            await _copy_offsets(settings, loader, workers)
        elif unfinished(settings.flow, found) is None and number not in live:
            # If the old generation is brought up to date later, it continues where the live workers are now. An
            # interrupted swap keeps its saved offsets: one of the stores lacks the records after them.
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
        await _retry_commit(settings, to, partial(clients.commit, settings, to, offsets))


async def _retry_commit(settings: Settings, group: str, commit: Callable[[], Awaitable[object]]) -> None:
    """Retries: Kafka rejects these commits until a session timeout after the group's last worker has ended."""
    patience = settings.session_timeout + settings.drain_timeout
    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(CommitFailedError),
            stop=stop_after_delay(patience),
            wait=wait_fixed(POLL_INTERVAL),
            reraise=True,
        ):
            with attempt:
                await commit()
    except CommitFailedError:
        raise ConfigurationError(
            f"the consumer group {group} still has members after {patience:g} s: another `stream reindex` or a worker "
            "is running; wait until it ends, or stop it"
        ) from None


async def _follow(mine: Settings, stages: Sequence[StageName], look: Look) -> None:
    """Waits until the generation is up to date: it reaches its topic's current end within `CATCH_UP_TIME`."""
    while True:
        started = time.monotonic()
        await _pass_end(mine, stages, look)
        if time.monotonic() - started < CATCH_UP_TIME:
            return


async def _pass_end(mine: Settings, stages: Sequence[StageName], look: Look) -> None:
    """Waits for one stage after the other until it has committed the end that its topic had when its turn began."""
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
                await asyncio.sleep(POLL_INTERVAL)


@asynccontextmanager
async def _workers(mine: Settings, stages: Sequence[StageName], assignments: Mapping[str, str]) -> AsyncIterator[None]:
    """Runs workers of the generation; if one ends by itself, cancels the context's body and raises the error."""
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
        await asyncio.sleep(POLL_INTERVAL)
