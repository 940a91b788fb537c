"""If this fails, the loss of a node of OpenSearch costs chunks, searches or a reindex. `make test-cluster` runs it.

Three nodes on this machine hold an index of three shards with a replica each. The workers, Kafka and Neo4j are real.
"""

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

import httpx
import orjson
import pytest
from conftest import ROOT
from ports import free_ports
from support import LONGEST, Worker, chunk, expanded, send, until

from stream import corpus
from stream.config import STAGES, Settings
from stream.errors import Outage
from stream.local import opensearch
from stream.local.profile import HOST, Profile
from stream.models.embeddings import EmbeddingClient
from stream.operate import reindex
from stream.operate.status import caught_up
from stream.operate.verify import verify
from stream.search import dsl
from stream.search.request import Request
from stream.search.searcher import Searcher
from stream.stores import Stores, open_stores
from stream.stores.base import Put
from stream.stores.opensearch import OpenSearchStore
from stream.vectors import unpack

STATUSES = ["red", "yellow", "green"]
COUNT = 3
HEAP = "384m"
A_BATCH = 20  # chunks that are published at once
BEFORE, AFTER = 300, 300  # chunks that are searchable before a node dies, and published after it


class Node:
    """A node of the cluster as a process."""

    def __init__(self, number: int, ports: list[tuple[int, int]]) -> None:
        port, transport = ports[number]
        home = ROOT / ".local" / "test" / f"cluster-{number}"
        shutil.rmtree(home, ignore_errors=True)
        profile = Profile(
            home, ROOT / ".local" / "artifacts", opensearch_port=port, opensearch_transport_port=transport
        )
        profile.make()
        opensearch.install(profile, print)
        program = opensearch.program(profile)
        self.name = f"node-{number}"
        self.url = f"http://{HOST}:{port}"
        configuration = program.directory / "config" / "opensearch.yml"
        settings = json.loads(configuration.read_text())
        del settings["discovery.type"]
        settings |= {
            "node.name": self.name,
            "cluster.initial_cluster_manager_nodes": [f"node-{n}" for n in range(COUNT)],
            "discovery.seed_hosts": [f"{HOST}:{transport}" for _, transport in ports],
        }
        configuration.write_text(json.dumps(settings))
        java = [part.replace("512m", HEAP) for part in program.command]
        self._command = ["setpriv", "--pdeathsig", "KILL", *program.privileges, *java]
        self._directory = program.directory
        self._environment = os.environ | dict(program.environment)
        self._log = home / "opensearch.log"

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._directory, env=self._environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
async def nodes() -> AsyncIterator[list[Node]]:
    """The nodes of a cluster; all run at first."""
    free = free_ports(2 * COUNT)
    ports = list(zip(free[::2], free[1::2], strict=True))
    with ExitStack() as stack:
        made = [Node(number, ports) for number in range(COUNT)]
        for node in made:
            node.start()
            stack.callback(node.kill)
        await until_cluster(made[0], "green", COUNT)
        yield made


@pytest.fixture(scope="session")
def environment(environment: dict[str, str], nodes: list[Node]) -> dict[str, str]:
    return environment | {
        "STREAM_OPENSEARCH_URL": ",".join(node.url for node in nodes),
        "STREAM_OPENSEARCH_SHARDS": "3",
        "STREAM_OPENSEARCH_REPLICAS": "1",
    }


async def until_cluster(node: Node, status: str, members: int) -> None:
    """Waits until a node sees so many members, and a health of at least this status."""

    async def seen() -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                health = (await client.get(f"{node.url}/_cluster/health")).json()
        except (httpx.TransportError, ValueError):
            return False
        good = STATUSES[STATUSES.index(status) :]
        return health.get("number_of_nodes") == members and health["status"] in good

    await until(seen, LONGEST, every=0.2)


class Publisher:
    """Publishes documentation as chunks until it is told to stop."""

    def __init__(self, settings: Settings) -> None:
        self.published = 0
        self._settings = settings

    async def run(self) -> None:
        texts = [one["text"] for one in corpus.chunks()]
        while True:
            names = [f"c{self.published + n}" for n in range(A_BATCH)]
            values = [chunk(name, texts[int(name[1:]) % len(texts)]) for name in names]
            await send(self._settings, [(one["chunk_id"].encode(), orjson.dumps(one)) for one in values])
            self.published += A_BATCH
            await asyncio.sleep(0.5)

    async def until_more(self, count: int) -> None:
        """Waits until so many more are published."""
        goal = self.published + count

        async def reached() -> bool:
            return self.published >= goal

        await until(reached, LONGEST)


class Searches:
    """Searches without a pause. A search that fails, or lacks a leg, ends it."""

    def __init__(self, settings: Settings) -> None:
        self.seconds: list[float] = []
        self._settings = settings

    async def run(self) -> None:
        async with EmbeddingClient(self._settings) as embedder, open_stores(self._settings) as stores:
            searcher = Searcher(self._settings, stores, embedder)
            await searcher.warm(["splade"])
            while True:
                started = time.monotonic()
                answer = await searcher.search(Request(query="listen on a socket", strict=True, deadline=60))
                assert answer.hits or not self.seconds
                if answer.hits:
                    self.seconds.append(time.monotonic() - started)


@asynccontextmanager
async def beside(*running: asyncio.Task[None]) -> AsyncIterator[None]:
    """Cancels tasks at the end of the block, and raises what ended one of them before."""
    try:
        yield
        for task in running:
            assert not task.done(), task.exception()
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)


async def clean(settings: Settings, stores: Stores, published: int) -> None:
    """Waits for the workers; both stores have exactly what was published."""
    await caught_up(settings)
    report = await verify(settings, stores, wait=30)
    assert report.clean, report.differences
    assert [await store.count() for store in stores.both] == [published] * 2


async def test_a_node_that_dies_costs_nothing(flow: Settings, stores: Stores, nodes: list[Node]) -> None:
    took: dict[str, float] = {}
    started = time.monotonic()

    def lap(what: str) -> None:
        nonlocal started
        took[what], started = time.monotonic() - started, time.monotonic()

    await until_cluster(nodes[0], "green", COUNT)
    publisher, searches = Publisher(flow), Searches(flow)
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(Worker(s, port=free_ports(1)[0])) for s in STAGES]
        for worker in workers:
            await worker.ready()
        searching = asyncio.create_task(searches.run())
        await stack.enter_async_context(beside(searching))
        publishing = asyncio.create_task(publisher.run())
        async with beside(publishing):

            async def enough() -> bool:
                return await stores.opensearch.count() >= BEFORE and bool(searches.seconds)

            await until(enough, LONGEST)
            lap(f"{BEFORE} searchable")
            manager = (await stores.opensearch._call("GET", "/_cat/cluster_manager", format="json"))[0]["node"]
            dying = next(node for node in nodes if node.name == manager)
            left = next(node for node in nodes if node is not dying)
            dying.kill()
            await until_cluster(left, "yellow", COUNT - 1)
            lap("another cluster manager")
            await publisher.until_more(AFTER)
            lap(f"{AFTER} more published")
        await clean(flow, stores, publisher.published)
        lap("all indexed, verify clean without the node")

        assert await reindex.start(flow) == 2
        assert await stores.opensearch.live() == 2
        await clean(flow, stores, publisher.published)
        lap("reindex without the node, verify clean")

        dying.start()
        await until_cluster(left, "green", COUNT)
        lap("the node is back, green")
        await clean(flow, stores, publisher.published)
        lap("verify clean")
        assert [worker.process.poll() for worker in workers] == [None] * len(STAGES)
        retries = (await workers[-1].metrics()).get("stream_retries_total", 0)
    print(f"{retries:.0f} batches of the index worker were retried")
    print(f"{publisher.published} chunks; {len(searches.seconds)} searches, the longest {max(searches.seconds):.1f} s")
    print(*(f"{what}: {seconds:.1f} s" for what, seconds in took.items()), sep="\n")


async def test_a_shard_that_is_away_is_an_outage_and_never_a_smaller_answer(
    settings: Settings, nodes: list[Node]
) -> None:
    names = [f"c{n}" for n in range(100)]
    puts = [Put(one, unpack(one["embedding_qwen"])) for one in map(expanded, names)]
    await until_cluster(nodes[0], "green", COUNT)
    async with OpenSearchStore(settings.model_copy(update={"opensearch_replicas": 0})) as store:
        await store.set_up()
        await store.write(puts)
        assert await store.count() == len(names)
        shards = await store._call("GET", f"/_cat/shards/{store.index(1)}", format="json")
        dying = next(node for node in nodes if node.name == shards[0]["node"])
        left = next(node for node in nodes if node is not dying)
        dying.kill()
        await until_cluster(left, "red", COUNT - 1)
        search = store.search(dsl.body([dsl.words("sockets")], None, 10), 1)
        for read in (store.unfiltered(), store.origins(), store.stored(names), store.shown(names, 1), search):
            with pytest.raises(Outage):
                await read
        dying.start()
        await until_cluster(left, "green", COUNT)
        assert len(await store.stored(names)) == len(names)
        await store.drop(1)
