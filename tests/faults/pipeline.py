"""The whole flow under test: three workers that are started again whenever they end, proxies before two servers."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM, Signals
from typing import Self

from conftest import programs
from faults.history import History
from faults.proxy import Proxy
from ports import free_ports
from support import EAGER, LOGS, Worker, create_topics, empty_neo4j, until

from stream.config import STAGES, Settings, StageName
from stream.local import supervisor
from stream.local.profile import Profile
from stream.operate.status import caught_up, stages
from stream.operate.verify import verify
from stream.stores import Stores, open_stores

DYING = str(Path(__file__).parent / "dying_worker.py")
SECONDS_TO_RECOVER = 240
# A stage that lags for longer than a tombstone is kept does not see the tombstone.
COMPACTED = EAGER | {"delete.retention.ms": str(SECONDS_TO_RECOVER * 1000)}


class Kept:
    """A worker that is restarted whenever it ends, as by a supervisor; records its exit codes."""

    def __init__(self, stage: StageName, instance: str = "first") -> None:
        self.stage = stage
        self.exits: list[int] = []
        self._instance = instance
        self._order = LOGS / f"{stage}-{instance}-order"
        self._order.unlink(missing_ok=True)
        self._variables: dict[str, str] = {}
        self._may_start = asyncio.Event()
        self._may_start.set()
        (self._port,) = free_ports(1)

    async def __aenter__(self) -> Self:
        self._start()
        self._keeping = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._keeping.cancel()
        await asyncio.wait([self._keeping])
        if self.worker.process.poll() is None:
            self.signal(SIGCONT)
            await self.worker.end(SIGTERM)

    def signal(self, number: Signals) -> None:
        self.worker.process.send_signal(number)

    async def ended_by(self, end: Signals | str) -> int:
        """Sends a signal, or orders a point of `dying_worker` for the next batch; returns the exit code."""
        before = len(self.exits)
        if isinstance(end, str):
            self.order(end)
        else:
            self.signal(end)

        async def ended() -> bool:
            return len(self.exits) > before

        await until(ended, SECONDS_TO_RECOVER, every=0.05)
        return self.exits[before]

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Kills the worker and restarts it at the end of the block."""
        self._may_start.clear()
        try:
            await self.ended_by(SIGKILL)
            yield
        finally:
            self._may_start.set()

    @asynccontextmanager
    async def having(self, **variables: str) -> AsyncIterator[None]:
        """Restarts the worker with these variables; the first restart after the block is without them."""
        self._variables = variables
        try:
            await self.ended_by(SIGKILL)
            await self.until_ready()
            yield
        finally:
            self._variables = {}

    async def until_unhealthy(self) -> None:
        """Waits until /healthz says that only a restart can help."""

        async def unhealthy() -> bool:
            return (await self.worker.get("/healthz"))[0] == 503

        await until(unhealthy, SECONDS_TO_RECOVER)

    def order(self, point: str) -> None:
        """Orders a point of `dying_worker` for the next batch."""
        self._order.write_text(point)

    async def until_obeyed(self) -> None:
        """Waits until the worker reaches the ordered point."""

        async def obeyed() -> bool:
            return not self._order.exists()

        await until(obeyed, SECONDS_TO_RECOVER, every=0.05)

    async def until_ready(self, ready: bool = True) -> None:
        """Waits until /readyz answers 200, or 503 without `ready`."""

        async def answers() -> bool:
            return (await self.worker.get("/readyz"))[0] == (200 if ready else 503)

        await until(answers, SECONDS_TO_RECOVER)

    async def until_working(self) -> None:
        """Waits until the worker has finished another batch."""

        async def done() -> float:
            return (await self.worker.metrics()).get("stream_batch_size_count", 0)

        before = await done()

        async def more() -> bool:
            return await done() > before

        await until(more, SECONDS_TO_RECOVER)

    def logged(self, what: str) -> int:
        """How often the worker's log has this text."""
        return self.worker.log.read_text().count(what)

    def _start(self) -> None:
        variables = {"STREAM_INSTANCE": self._instance, "ORDER": str(self._order)} | self._variables
        self.worker = Worker(self.stage, DYING, port=self._port, **variables)

    async def _keep(self) -> None:
        while True:
            while (code := self.worker.process.poll()) is None:
                await asyncio.sleep(0.05)
            self.exits.append(code)
            await self._may_start.wait()
            self._start()


class Pipeline:
    """Everything that a fault may touch."""

    def __init__(
        self,
        settings: Settings,
        stores: Stores,
        history: History,
        profile: Profile,
        embedder: Proxy,
        opensearch: Proxy,
    ) -> None:
        self.settings = settings
        self.history = history
        self.stores = stores
        self.embedder = embedder
        self.opensearch = opensearch
        self.workers = {stage: Kept(stage) for stage in STAGES}
        self.brokers = [program.name for program in programs(profile) if program.name.startswith("kafka")]
        self._profile = profile

    async def kill(self, server: str) -> None:
        """kill -9; the supervisor starts it again."""
        await asyncio.to_thread(supervisor.kill, self._profile, server, SIGKILL)

    async def stop(self, server: str) -> None:
        """A clean stop; it stays down until `start`."""
        await asyncio.to_thread(supervisor.stop, self._profile, server)

    async def start(self, server: str) -> None:
        """Starts a server that was stopped."""
        await asyncio.to_thread(supervisor.start, self._profile, server)

    async def until_up(self, server: str) -> None:
        """Waits until a server answers."""
        program = next(program for program in programs(self._profile) if program.name == server)
        await until(lambda: asyncio.to_thread(program.ready), SECONDS_TO_RECOVER)

    async def recovered(self) -> None:
        """Waits until all is well and nothing lies ahead of any stage."""
        async with asyncio.timeout(SECONDS_TO_RECOVER):
            for worker in self.workers.values():
                await worker.until_ready()
            await caught_up(self.settings)

    async def wrong(self, *, everything: bool = False) -> list[str]:
        """What is lost or wrong since the last call; of everything if anything is wrong, or with `everything`."""
        found = await self.history.differences(everything=everything)
        found += await self.history.unlike(self.stores)
        if found and not everything:
            return await self.wrong(everything=True)
        if everything:
            report = await verify(self.settings, self.stores, wait=10)
            found += [*report.differences, *report.ahead_chunks]
        return found

    async def dead_letters(self) -> int:
        return sum(stage.dead_letters for stage in await stages(self.settings))


@asynccontextmanager
async def pipeline(profile: Profile, variables: dict[str, str], seed: int) -> AsyncIterator[Pipeline]:
    """A pipeline with its own index and constantly compacted topics, and a history from that seed.

    In the block, this process's environment has the pipeline's settings.
    """
    async with AsyncExitStack() as stack:
        embedder = await stack.enter_async_context(Proxy(variables["STREAM_EMBED_URL"], "/v1/embeddings"))
        opensearch = await stack.enter_async_context(Proxy(variables["STREAM_OPENSEARCH_URL"], "/_bulk"))
        before = dict(os.environ)
        stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
        os.environ.update(
            variables
            | {
                "STREAM_EMBED_URL": embedder.url,
                "STREAM_OPENSEARCH_URL": opensearch.url,
                "STREAM_BATCH_SIZE": "32",
                "STREAM_EMBED_TIMEOUT": "2",
                "STREAM_STORE_TIMEOUT": "10",
                "STREAM_SESSION_TIMEOUT": "6",
            }
        )
        settings = Settings(_env_file=None)  # type: ignore[call-arg]
        await create_topics(settings, COMPACTED)
        stores = await stack.enter_async_context(open_stores(settings))
        await empty_neo4j(stores)
        await stores.set_up()
        LOGS.mkdir(parents=True, exist_ok=True)
        flow = Pipeline(settings, stores, History(settings, seed), profile, embedder, opensearch)
        for worker in flow.workers.values():
            await stack.enter_async_context(worker)
        for worker in flow.workers.values():
            await worker.until_ready()
        yield flow
