"""If these fail, records stay unread while every worker reports that it is ready."""

import asyncio
import signal
from collections.abc import AsyncIterator

import aiohttp
import orjson
import pytest
from aiohttp import web
from aiokafka.admin import NewPartitions
from ports import free_ports
from support import Worker, chunk, read, until

from stream import metrics
from stream.config import STAGES, Settings
from stream.errors import Outage
from stream.health import watch
from stream.kafka import clients, topics
from stream.kafka.topic_ids import topic_ids
from stream.stages.base import Stage

pytestmark = pytest.mark.servers


@pytest.fixture(autouse=True)
def without_neo4j(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_EMBED_REUSE", "0")


async def publish(settings: Settings, *names: str, partition: int | None = None) -> None:
    async with clients.producer(settings) as producer:
        for name in names:
            value = orjson.dumps(chunk(name))
            await producer.send_and_wait(settings.topic, key=name.encode(), value=value, partition=partition)


async def done(settings: Settings, *names: str) -> None:
    """Waits until these chunks are in the topic that the embed stage publishes to."""

    async def all_there() -> bool:
        there = {record.key for record in await read(settings, topics.source(settings, "expand"))}
        return there >= {name.encode() for name in names}

    await until(all_there, every=0.5)


async def add_partitions(settings: Settings, total: int) -> None:
    async with clients.admin(settings) as admin:
        await admin.create_partitions({settings.topic: NewPartitions(total)})

        async def there() -> bool:
            return len(await clients.partitions(admin, [settings.topic])) == total

        await until(there)


async def make_again(settings: Settings, name: str) -> None:
    """Deletes a topic and recreates it at once."""
    async with clients.admin(settings) as admin:
        before = await topic_ids(admin, [name])
        await admin.delete_topics([name])

        async def made() -> bool:
            await topics.create(settings)
            return await topic_ids(admin, [name]) != before

        await until(made)


class Ended(BaseException):
    """Stands for the end of the process."""


async def watched(settings: Settings, failed: list[BaseException]):
    def fail(error: BaseException) -> None:
        failed.append(error)
        raise Ended

    async def read_again() -> None:
        failed.append(Exception("read again"))

    return watch.watched(settings, Stage("embed", "chunk", None), fail, read_again)


def lag() -> float:
    return metrics.lag.labels("embed")._value.get()


async def test_records_of_a_partition_that_was_added_count_for_the_lag(flow, monkeypatch, caplog):
    monkeypatch.setattr(watch, "INTERVAL", 0.2)
    async with await watched(flow, []):
        await until(lambda: asyncio.sleep(0, lag() == 0))
        await add_partitions(flow, 4)
        await publish(flow, "c1", "c2", partition=3)
        await until(lambda: asyncio.sleep(0, lag() == 2))
    assert f"{flow.topic} has 4 partitions now, it had 2" in caplog.text


async def test_a_running_worker_reads_a_partition_that_was_added(flow):
    async with Worker("embed", port=free_ports(1)[0]) as worker:
        await worker.ready()
        await add_partitions(flow, 3)
        await publish(flow, "new", partition=2)
        await done(flow, "new")
        assert await worker.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("which", ["source", "target", "dead letters"])
async def test_a_topic_that_was_made_again_ends_the_worker_and_one_that_is_gone_does_not(flow, monkeypatch, which):
    monkeypatch.setattr(watch, "INTERVAL", 0.2)
    name = dict(zip(("source", "target", "dead letters"), topics.of(flow, "embed"), strict=True))[which]
    failed: list[BaseException] = []
    async with await watched(flow, failed) as wrong:
        async with clients.admin(flow) as admin:
            await admin.delete_topics([name])
        await until(lambda: asyncio.sleep(0, name in (wrong() or "")))
        assert failed == []
        await topics.create(flow)
        await until(lambda: asyncio.sleep(0, any(isinstance(error, Outage) for error in failed)))
    assert f"{name} was deleted and recreated" in str(failed[-1])
    assert [str(error) for error in failed[:-1]] == (["read again"] if which == "source" else [])


class Embedder:
    """A proxy of the embedding server. It holds requests with the text "hold" until `open` is set."""

    async def __aenter__(self) -> "Embedder":
        self.open, self.asked = asyncio.Event(), asyncio.Event()
        self._http = aiohttp.ClientSession()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        return self

    def before(self, url: str) -> "Embedder":
        self._real = url
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._http.close()

    async def _pass_on(self, request: web.Request) -> web.Response:
        body = await request.read()
        if b"hold" in body:
            self.asked.set()
            await self.open.wait()
        headers = {"Content-Type": "application/json"}
        async with self._http.request(request.method, f"{self._real}{request.path}", data=body, headers=headers) as got:
            return web.Response(body=await got.read(), status=got.status, headers=headers)


@pytest.fixture
async def embedder(settings: Settings) -> AsyncIterator[Embedder]:
    async with Embedder().before(settings.embed_url) as server:
        yield server


async def test_nothing_of_a_source_that_was_made_again_is_skipped(flow, embedder):
    """A batch that was in flight is committed after the topic was recreated: its offset would skip new records."""
    old, new = [f"old{n}" for n in range(40)], [f"new{n}" for n in range(80)]
    (port,) = free_ports(1)
    async with Worker("embed", port=port, STREAM_EMBED_URL=embedder.url) as worker:
        await worker.ready()
        async with clients.producer(flow) as producer:
            for name in old:
                value = orjson.dumps(chunk(name, text="hold"))
                await producer.send_and_wait(flow.topic, key=name.encode(), value=value, partition=0)
        await embedder.asked.wait()
        await make_again(flow, flow.topic)
        await publish(flow, *new, partition=0)
        embedder.open.set()
        assert await worker.exit_code() == 75
        assert "deleted and recreated" in worker.log.read_text()
    async with Worker("embed", port=port) as worker:
        await done(flow, *new)
        assert await worker.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("stage", STAGES)
async def test_every_topic_of_a_stage_has_an_id_of_its_own(flow, stage):
    async with clients.admin(flow) as admin:
        found = await topic_ids(admin, topics.of(flow, stage))
    assert set(found) == set(topics.of(flow, stage))
    assert len(set(found.values())) == len(found)
