"""The faults. Each runs against a pipeline while a history is published, and returns how often it struck."""

import asyncio
import base64
import random
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import neo4j
import numpy as np
import orjson
from aiohttp import web
from faults.dying_worker import POINTS, SESSIONS_CUT_OFF
from faults.pipeline import SECONDS_TO_RECOVER, Kept, Pipeline
from faults.proxy import Forward, Proxy, Spoil, changed, cutting, delayed, half, silence, status
from neo4j.exceptions import TransientError
from support import CONTRACTS, LONGEST, transactional, until_compacted

from stream.config import STAGES
from stream.errors import Outage
from stream.kafka import reader, topics
from stream.operate.status import caught_up
from stream.records import Decoder
from stream.stages.registry import open_stage

Strike = Callable[[Pipeline, random.Random], Awaitable[int]]

OPEN_FOR = 5.0  # seconds of a long transaction
HANG_BOUND = 5.0  # seconds: STREAM_OUTAGE_BOUND of a worker that hangs
RACES = 40  # batches of a second writer


@dataclass(frozen=True)
class Fault:
    """A fault: the part, what happens to it, and the function that does it."""

    part: str
    what: str
    strike: Strike

    def __str__(self) -> str:
        return f"{self.part}: {self.what}"


FAULTS: list[Fault] = []


def fault(part: str, what: str) -> Callable[[Strike], Strike]:
    def add(strike: Strike) -> Strike:
        FAULTS.append(Fault(part, what, strike))
        return strike

    return add


# Reindexing


@fault("reindex", "kill -9 at any moment, three times, then it is run to its end")
async def reindex_killed(pipeline: Pipeline, rng: random.Random) -> int:
    with pipeline.history.slowly():
        for _ in range(3):
            await reindex("start", seconds=4 + 12 * rng.random())
        for command in ("start", "prune"):
            code, said = await reindex(command)
            if killed_in_a_swap := re.search(r"`stream reindex swap (\d+)` finishes it", said):
                code, said = await reindex("swap", killed_in_a_swap[1])
            assert code == 0, f"stream reindex {command} ended with {code}: {said}"
    return 3


async def reindex(*command: str, seconds: float = SECONDS_TO_RECOVER) -> tuple[int, str]:
    """Runs `stream reindex`, kills it after `seconds`; returns its exit code and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stream", "reindex", *command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout
    try:
        async with asyncio.timeout(seconds):
            said = await process.stdout.read()
    except TimeoutError:
        process.kill()
        said = await process.stdout.read()
    return await process.wait(), said.decode()


# Workers


async def killed_at_a_point(pipeline: Pipeline, rng: random.Random, *, point: str) -> int:
    ends = await asyncio.gather(*(worker.ended_by(point) for worker in pipeline.workers.values()))
    assert set(ends) == {-signal.SIGKILL}, f"they ended with {ends}"
    return len(ends)


for point, when in POINTS.items():
    FAULTS.append(Fault("each worker", f"kill -9 {when}", partial(killed_at_a_point, point=point)))


@fault("each worker", "kill -9 at any moment, and once more while it starts")
async def killed_at_any_moment(pipeline: Pipeline, rng: random.Random) -> int:
    for _ in range(2):
        for worker in pipeline.workers.values():
            await worker.ended_by(signal.SIGKILL)
        await asyncio.sleep(10 * rng.random())
    return 2 * len(pipeline.workers)


@fault("each worker", "SIGTERM: it drains and ends with 0")
async def terminated(pipeline: Pipeline, rng: random.Random) -> int:
    for worker in pipeline.workers.values():
        code = await worker.ended_by(signal.SIGTERM)
        assert code == 0, f"{worker.stage} ended with {code}"
    return len(pipeline.workers)


@fault("each worker", "SIGSTOP for longer than the session time-out, then SIGCONT")
async def stopped_for_long(pipeline: Pipeline, rng: random.Random) -> int:
    for worker in pipeline.workers.values():
        worker.signal(signal.SIGSTOP)
    await asyncio.sleep(pipeline.settings.session_timeout * 2)
    ends = await asyncio.gather(*(worker.ended_by(signal.SIGCONT) for worker in pipeline.workers.values()))
    assert set(ends) == {Outage.exit_code}, f"they ended with {ends}"
    return len(ends)


@fault("a worker", "SIGSTOP until another has its partitions, then SIGCONT: a zombie comes back")
async def zombie(pipeline: Pipeline, rng: random.Random) -> int:
    stopped = pipeline.workers[rng.choice(STAGES)]
    stopped.signal(signal.SIGSTOP)
    async with Kept(stopped.stage, "heir") as heir:
        await asyncio.gather(heir.until_working(), asyncio.sleep(pipeline.settings.session_timeout))
        code = await stopped.ended_by(signal.SIGCONT)
        assert code == Outage.exit_code, f"{stopped.stage} ended with {code}"
    return 1


@fault("a worker", "its network to Kafka stands still while it publishes, until another has its partitions")
async def cut_off(pipeline: Pipeline, rng: random.Random) -> int:
    worker = pipeline.workers[rng.choice(("embed", "expand"))]
    async with Kept(worker.stage, "heir") as heir:
        await heir.until_ready()
        network_back = SESSIONS_CUT_OFF * pipeline.settings.session_timeout
        async with asyncio.timeout(network_back):  # afterwards the held requests are sent
            code = await worker.ended_by("cut off")
        assert code == Outage.exit_code, f"{worker.stage} ended with {code}"
        await heir.until_working()
    return 1


@fault("a worker", "its stage never returns: /healthz says so, and who asks it kills the worker")
async def hanging(pipeline: Pipeline, rng: random.Random) -> int:
    worker = pipeline.workers[rng.choice(STAGES)]
    async with worker.having(STREAM_OUTAGE_BOUND=str(HANG_BOUND)):
        worker.order("hang")
        await worker.until_obeyed()
        await worker.until_unhealthy()
    await worker.ended_by(signal.SIGKILL)
    await worker.until_working()
    return 1


@fault("a stage", "a second and a third worker join under load; one leaves by SIGTERM, one by kill -9")
async def joining_and_leaving(pipeline: Pipeline, rng: random.Random) -> int:
    stage = rng.choice(STAGES)
    async with Kept(stage, "second") as second, Kept(stage, "third") as third:
        await second.until_ready()
        await third.until_ready()
        await pipeline.workers[stage].until_ready()
        await third.ended_by(signal.SIGKILL)
    return 4


# Kafka


@fault("Kafka", "compacts every topic while all stages work")
async def compaction(pipeline: Pipeline, rng: random.Random) -> int:
    sources = [topics.source(pipeline.settings, stage) for stage in STAGES]
    await asyncio.gather(*(until_compacted(pipeline.settings, source) for source in sources))
    return len(sources)


@fault("Kafka", "compacts what lies ahead of a worker that is away")
async def compaction_ahead(pipeline: Pipeline, rng: random.Random) -> int:
    worker = pipeline.workers[rng.choice(STAGES)]
    async with worker.away():
        await until_compacted(pipeline.settings, topics.source(pipeline.settings, worker.stage))
    await worker.until_working()
    return 1


@fault("Kafka", "a transaction stays open for five seconds and is aborted, another is committed")
async def long_transactions(pipeline: Pipeline, rng: random.Random) -> int:
    async with transactional(pipeline.settings, f"{pipeline.settings.topic}-long") as producer:
        for commit in (False, True):
            await pipeline.history.transaction(producer, commit=commit, records=12, seconds=OPEN_FOR, own="l")
    return 2


@fault("Kafka", "a producer dies in a transaction, its successor goes on")
async def producer_died(pipeline: Pipeline, rng: random.Random) -> int:
    name = f"{pipeline.settings.topic}-died"
    with suppress(TimeoutError):
        async with transactional(pipeline.settings, name) as producer, asyncio.timeout(OPEN_FOR):
            await pipeline.history.transaction(producer, commit=False, records=12, seconds=2 * OPEN_FOR)
    async with transactional(pipeline.settings, name) as producer:
        await pipeline.history.transaction(producer, commit=True, records=12, own="d")
    return 1


@fault("each worker", "kill -9 while its topic ends with the marker of a transaction")
async def killed_at_a_marker(pipeline: Pipeline, rng: random.Random) -> int:
    workers = pipeline.workers.values()
    async with (
        transactional(pipeline.settings, f"{pipeline.settings.topic}-last") as producer,
        pipeline.history.paused(),
        asyncio.timeout(SECONDS_TO_RECOVER),
    ):
        for commit in (True, False):
            await pipeline.history.transaction(producer, commit=commit, records=12, own="m")
        await caught_up(pipeline.settings)
        await asyncio.gather(*(worker.ended_by(signal.SIGKILL) for worker in workers))
        for worker in workers:
            await worker.until_ready()
        await caught_up(pipeline.settings)
    for worker in workers:
        await worker.until_working()
    return len(workers)


@fault("Kafka", "stopped for one to ten seconds")
async def broker_stopped(pipeline: Pipeline, rng: random.Random) -> int:
    broker = rng.choice(pipeline.brokers)
    await pipeline.stop(broker)
    await asyncio.sleep(1 + 9 * rng.random())
    await pipeline.start(broker)
    await pipeline.until_up(broker)
    await pipeline.workers["embed"].until_working()
    return 1


@fault("Kafka", "kill -9, twice")
async def broker_killed(pipeline: Pipeline, rng: random.Random) -> int:
    for _ in range(2):
        broker = rng.choice(pipeline.brokers)
        await pipeline.kill(broker)
        await pipeline.until_up(broker)
        await pipeline.workers["embed"].until_working()
    return 2


# vLLM


async def spoiled(pipeline: Pipeline, rng: random.Random, *, proxy: str, spoil: Spoil, times: int = 3) -> int:
    target: Proxy = getattr(pipeline, proxy)
    async with target.spoiling(spoil):
        await target.until_spoiled(times)
    return times


@fault("vLLM", "nobody listens")
async def model_refusing(pipeline: Pipeline, rng: random.Random) -> int:
    async with pipeline.embedder.refusing():
        await pipeline.workers["embed"].until_ready(False)
    return 1


def vectors(change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    """The same answer with other numbers in its vectors."""

    def change_all(answer: dict[str, Any]) -> dict[str, Any]:
        for item in answer.get("data", ()):
            numbers = change(np.frombuffer(base64.b64decode(item["embedding"]), "<f4").copy())
            item["embedding"] = base64.b64encode(numbers.astype("<f4").tobytes()).decode()
        return answer

    return changed(change_all)


for what, spoil in {
    "500": status(500),
    "503 with Retry-After": status(503, **{"Retry-After": "1"}),
    "429": status(429),
    "no answer within the time-out": silence,
    "connection cut before the answer": cutting,
    "half a response": half,
    "a vector less than texts": changed(lambda answer: answer | {"data": answer["data"][:-1]}),
    "vectors of half the length": vectors(lambda v: v[: len(v) // 2]),
    "NaN": vectors(lambda v: np.where(np.arange(len(v)) == 7, np.nan, v)),
    "zero vectors": vectors(np.zeros_like),
}.items():
    FAULTS.append(Fault("vLLM", what, partial(spoiled, proxy="embedder", spoil=spoil)))


# Neo4j


@fault("Neo4j", "stopped, and started after the worker has noticed")
async def neo4j_stopped(pipeline: Pipeline, rng: random.Random) -> int:
    await pipeline.stop("neo4j")
    await pipeline.workers["index"].until_ready(False)
    await pipeline.start("neo4j")
    await pipeline.until_up("neo4j")
    return 1


async def store_killed(pipeline: Pipeline, rng: random.Random, *, store: str) -> int:
    await pipeline.kill(store)
    await pipeline.workers["index"].until_ready(False)
    await pipeline.until_up(store)
    return 1


FAULTS.append(Fault("Neo4j", "kill -9", partial(store_killed, store="neo4j")))


@fault("Neo4j", "deadlocks with a concurrent writer")
async def deadlocks(pipeline: Pipeline, rng: random.Random) -> int:
    """Worker and writer lock the same nodes in other orders; Neo4j aborts one. Counts the aborts of the worker."""
    settings, worker = pipeline.settings, pipeline.workers["index"]
    assert settings.neo4j_password
    auth = (settings.neo4j_user, settings.neo4j_password.get_secret_value())
    before = worker.logged("DeadlockDetected")
    async with (
        neo4j.AsyncGraphDatabase.driver(settings.neo4j_uri, auth=auth) as driver,
        driver.session() as session,
        asyncio.timeout(LONGEST),
    ):
        while (struck := worker.logged("DeadlockDetected") - before) < 3:
            with suppress(TransientError):
                write = await session.run("MATCH (c:Chunk) WITH c ORDER BY rand() SET c.touched = 1")
                await write.consume()
    return struck


@fault("both stores", "a second writer of the same chunks, newer and older records in any order")
async def racing(pipeline: Pipeline, rng: random.Random) -> int:
    """A zombie: a worker that was fenced without noticing writes outdated records."""
    settings = pipeline.settings
    source = topics.source(settings, "index")
    writes: list[Any] = []
    since: dict[int, int] = {}
    struck = 0
    async with open_stage("index", settings) as stage:
        while struck < RACES:
            async for record in reader.read_to_end(settings, source, since):
                since[record.partition] = record.offset + 1
                writes.append(Decoder.of(CONTRACTS["index"], settings)(record))
            del writes[:-200]
            with suppress(Outage):  # a deadlock
                await stage.process(rng.sample(writes, min(len(writes), 32)))
                struck += 1
    return struck


# OpenSearch


FAULTS.append(Fault("OpenSearch", "kill -9", partial(store_killed, store="opensearch")))
FAULTS.append(Fault("OpenSearch", "429", partial(spoiled, proxy="opensearch", spoil=status(429))))


async def partly(request: web.Request, body: bytes, forward: Forward) -> web.Response:
    """Every other document of a bulk request is rejected as by a full queue; the others are written."""
    lines = body.splitlines(keepends=True)
    documents: list[bytes] = []
    while lines:
        length = 1 if lines[0].startswith(b'{"delete"') else 2
        documents.append(b"".join(lines[:length]))
        del lines[:length]
    answer = orjson.loads((await forward(b"".join(documents[::2]))).body)
    full = {"status": 429, "error": {"type": "es_rejected_execution_exception", "reason": "an injected fault"}}
    items: list[Any] = [{"index": full}] * len(documents)
    items[::2] = answer["items"]
    return web.json_response(answer | {"errors": True, "items": items})


FAULTS.append(
    Fault("OpenSearch", "half of each bulk request is rejected", partial(spoiled, proxy="opensearch", spoil=partly))
)


@fault("OpenSearch", "a read-only index")
async def read_only(pipeline: Pipeline, rng: random.Random) -> int:
    index = await live_index(pipeline)

    async def set_block(on: bool | None) -> None:
        await on_opensearch(pipeline, "PUT", f"{index}/_settings", {"index.blocks.read_only_allow_delete": on})

    await set_block(True)
    await pipeline.workers["index"].until_ready(False)
    await set_block(None)
    return 1


@fault("OpenSearch", "a closed index")
async def closed(pipeline: Pipeline, rng: random.Random) -> int:
    index = await live_index(pipeline)
    await on_opensearch(pipeline, "POST", f"{index}/_close")
    await pipeline.workers["index"].until_ready(False)
    await on_opensearch(pipeline, "POST", f"{index}/_open")
    return 1


async def live_index(pipeline: Pipeline) -> str:
    (live,) = [one.number for one in await pipeline.stores.opensearch.generations() if one.live]
    return f"{pipeline.settings.opensearch_alias}-{live}"


async def on_opensearch(pipeline: Pipeline, method: str, what: str, body: Any = None) -> None:
    await pipeline.stores.opensearch._call(method, f"/{what}", body=body)


# Slowness


@fault("OpenSearch", "a batch takes longer than the session time-out: no partition moves")
async def slow_batch(pipeline: Pipeline, rng: random.Random) -> int:
    worker = pipeline.workers["index"]
    before = worker.logged("assigned")
    slow = delayed(pipeline.settings.session_timeout * 1.3)
    struck = await spoiled(pipeline, rng, proxy="opensearch", spoil=slow, times=2)
    await worker.until_working()
    assert worker.logged("assigned") == before
    return struck
