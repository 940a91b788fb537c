"""Measures what it costs when one of three brokers is killed.

Starts three brokers with a replication factor of three, and a supervised worker of each stage. While chunks are
published, each broker in turn is killed with SIGKILL and restarted. At the end `verify` compares both stores with the
topic.

    STREAM_ENV_FILE=.local/stream.env python bench/brokers.py

The embedding server and the stores are those of the settings. Neo4j must hold no chunks. The stored chunks are not
deleted: use disposable servers.
"""

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import orjson
import typer
from data import chunk
from matplotlib.axes import Axes
from measure import device, save
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from stream import children, config
from stream.config import STAGES, Settings, StageName
from stream.errors import Outage
from stream.kafka import clients, topics
from stream.local import java
from stream.local.kafka import LOG_FORMAT, MAX_MESSAGE_BYTES
from stream.local.profile import Profile
from stream.operate.status import caught_up
from stream.operate.verify import verify
from stream.stores import Stores, open_stores

BROKERS = (1, 2, 3)
CLUSTER = "MkU3OEVBNTcwNTJENDM2Qg"
DOWN, UP = 20.0, 20.0  # seconds that a broker is down, and that all run before the next one is killed
PAUSE = 0.25  # seconds between two samples

Sample = tuple[float, int]  # monotonic seconds, chunks in Neo4j


class Brokers:
    """Three processes, each a broker and a controller."""

    def __init__(self, folder: Path, first_port: int) -> None:
        self._folder, self._first_port = folder, first_port
        self._jars = java.assemble(Profile(), "kafka", lambda line: print(line, file=sys.stderr)) / "lib"
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self.servers = ",".join(f"127.0.0.1:{self._port(n)}" for n in BROKERS)

    def format(self, n: int) -> None:
        self._conf(n).write_text(self._properties(n))
        tool = ("kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c", str(self._conf(n)))
        java.run(java.find(), [*LOG_FORMAT, "-cp", f"{self._jars}/*", *tool], self._folder)

    def start(self, n: int) -> None:
        with (self._folder / "kafka.log").open("ab") as log:
            command = [java.find().executable, "-Xmx512m", *LOG_FORMAT, "-cp", f"{self._jars}/*"]
            self._running[n] = subprocess.Popen([*command, "kafka.Kafka", str(self._conf(n))], stdout=log, stderr=log)

    def kill(self, n: int) -> None:
        self._running[n].kill()
        self._running[n].wait()

    def _conf(self, n: int) -> Path:
        return self._folder / f"{n}.properties"

    def _port(self, n: int) -> int:
        return self._first_port + 2 * n

    def _properties(self, n: int) -> str:
        voters = ",".join(f"{one}@127.0.0.1:{self._port(one) + 1}" for one in BROKERS)
        return f"""\
process.roles=broker,controller
node.id={n}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{self._port(n)},CONTROLLER://127.0.0.1:{self._port(n) + 1}
controller.listener.names=CONTROLLER
log.dirs={self._folder}/{n}
auto.create.topics.enable=false
offsets.topic.num.partitions=4
message.max.bytes={MAX_MESSAGE_BYTES}
replica.fetch.max.bytes={MAX_MESSAGE_BYTES}
"""


@contextmanager
def brokers(folder: Path, first_port: int) -> Iterator[Brokers]:
    """Runs three brokers."""
    cluster = Brokers(folder, first_port)
    for n in BROKERS:
        cluster.format(n)
        cluster.start(n)
    try:
        yield cluster
    finally:
        for n in BROKERS:
            cluster.kill(n)


@retry(retry=retry_if_exception_type((Outage, AssertionError)), wait=wait_fixed(0.5), stop=stop_after_delay(60))
async def until_up(settings: Settings) -> None:
    """Waits until the cluster has all brokers."""
    async with clients.admin(settings) as admin:
        assert len((await admin.describe_cluster())["brokers"]) == len(BROKERS)


class Workers:
    """One worker of each stage. A worker that ends is restarted, as a supervisor would."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._own = {name: getattr(settings, name) for name in ("kafka_servers", "topic", "opensearch_alias")}
        self._own |= {"instance": f"bench-{os.getpid()}", "web_port": "0"}
        self._folder = folder
        self.ends: list[str] = []  # stage and exit code of each

    async def __aenter__(self) -> "Workers":
        self._running = {stage: self._start(stage) for stage in STAGES}
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
        for worker in self._running.values():
            worker.terminate()
        for worker in self._running.values():
            await asyncio.to_thread(worker.wait)

    def _start(self, stage: StageName) -> "subprocess.Popen[bytes]":
        with (self._folder / f"{stage}.log").open("ab") as log:
            return children.worker(stage, self._own, {}, log)

    async def _watch(self) -> None:
        while True:
            for stage, worker in self._running.items():
                if worker.poll() is not None:
                    self.ends.append(f"{stage} {worker.returncode}")
                    self._running[stage] = self._start(stage)
            await asyncio.sleep(PAUSE)


async def publish(settings: Settings, rate: float, acknowledged: list[float]) -> None:
    """Publishes until it is cancelled. Appends the time at which all in-sync replicas had each chunk."""
    begin = time.monotonic()
    async with clients.producer(settings) as producer, asyncio.TaskGroup() as group:

        async def send(one: Any) -> None:
            await producer.send_and_wait(settings.topic, orjson.dumps(one), key=one["chunk_id"].encode())
            acknowledged.append(time.monotonic())

        for n in count():
            await asyncio.sleep(begin + n / rate - time.monotonic())
            group.create_task(send(chunk(n)))


async def watch(stores: Stores, looks: list[Sample]) -> None:
    """Samples the number of chunks in Neo4j until it is cancelled."""
    while True:
        looks.append((time.monotonic(), await stores.neo4j.count()))
        await asyncio.sleep(PAUSE)


def longest_pause(moments: list[float], since: float, until: float) -> float:
    """The longest time in seconds without one of these moments, between `since` and `until`."""
    inside = [moment for moment in moments if since < moment < until]
    return max(after - before for before, after in pairwise([since, *inside, until]))


async def bench(settings: Settings, rate: float, folder: Path, first_port: int) -> dict[str, Any]:
    """Kills each broker once."""
    looks: list[Sample] = []
    acknowledged: list[float] = []
    accidents: list[dict[str, Any]] = []
    with brokers(folder, first_port) as cluster:
        settings = settings.model_copy(update={"kafka_servers": cluster.servers})
        await until_up(settings)
        await topics.create(settings)
        async with open_stores(settings) as stores, Workers(settings, folder) as workers:
            assert not await stores.neo4j.count(), "Neo4j must be empty: its chunks would be counted"
            tasks = [asyncio.create_task(watch(stores, looks))]
            tasks.append(asyncio.create_task(publish(settings, rate, acknowledged)))
            begin = time.monotonic()
            while not looks or not looks[-1][1]:  # the workers are still starting
                await asyncio.sleep(PAUSE)
            await asyncio.sleep(UP)
            for n in BROKERS:
                since, ends = time.monotonic(), len(workers.ends)
                cluster.kill(n)
                await asyncio.sleep(DOWN)
                cluster.start(n)
                await asyncio.sleep(UP)
                more = [after[0] for before, after in pairwise(looks) if after[1] > before[1]]
                accidents.append(
                    {
                        "at": since - begin,
                        "producers_waited": longest_pause(acknowledged, since, time.monotonic()),
                        "nothing_indexed_for": longest_pause(more, since, time.monotonic()),
                        "workers_ended": workers.ends[ends:],
                    }
                )
                print(accidents[-1], file=sys.stderr)
            for task in reversed(tasks):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await caught_up(settings)
            report = await verify(settings, stores, wait=60)
    return {
        "device": device(),
        "rate": rate,
        "acknowledged": [moment - begin for moment in acknowledged],
        "accidents": accidents,
        "verify": {
            "indexed": report.indexed,
            "dead_letters": report.dead_lettered,
            "wrong": report.different + report.ahead,
        },
        "looks": [(at - begin, chunks) for at, chunks in looks],
    }


def draw(results: dict[str, Any], axes: Axes) -> None:
    """Draws chunks over time."""
    axes.plot(results["acknowledged"], range(len(results["acknowledged"])), label="acknowledged by Kafka")
    axes.plot(*zip(*results["looks"], strict=True), label="in Neo4j")
    for accident in results["accidents"]:
        axes.axvspan(accident["at"], accident["at"] + DOWN, alpha=0.15, color="tab:red")
    axes.set(xlabel="seconds; red while a broker is down", ylabel="chunks")
    axes.legend()


def main(
    rate: Annotated[float, typer.Option(help="Chunks per second.")] = 20,
    first_port: Annotated[int, typer.Option(help="First of eight ports for the brokers.")] = 29500,
    out: Annotated[Path, typer.Option(help="Output path; writes .json and .svg.")] = Path("docs/figures/brokers"),
) -> None:
    """Kill each of three brokers while chunks flow."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    settings = config.load(topic=name, opensearch_alias=name)
    with TemporaryDirectory(prefix="stream-brokers-") as folder:
        results = asyncio.run(bench(settings, rate, Path(folder), first_port))
    save(out, results, lambda axes: draw(results, axes))
    shown = {key: value for key, value in results.items() if key not in ("acknowledged", "looks")}
    print(orjson.dumps(shown | {"acknowledged": len(results["acknowledged"])}, option=orjson.OPT_INDENT_2).decode())


if __name__ == "__main__":
    typer.run(main)
