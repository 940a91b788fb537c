"""Measures what a stage costs without its model, and compares it with three other ways to copy a topic.

For each size of record: fills a topic, then lets each program of `peers.py` copy it, several times in turn, and in the
reverse order in every second round. Each run has its own process, consumer group and target. All topics have one
partition and one replica.

    pip install --target .local/peers confluent-kafka quixstreams
    STREAM_ENV_FILE=.local/stream.env python bench/plane.py

A program's rate is that of its steady state: the records after the first tenth, by the time between the append of the
record at the end of the first tenth and the append of the last record. The broker takes both times (`LogAppendTime`).
Start, joining of the group and end do not count. `records_a_cpu_second` divides by the CPU time of all threads of the
program instead, sampled over the same records: other work on the machine changes it less.

A run counts only if the target has as many records as the source, if the group has committed all of them, and if no
sample has found a committed offset beyond the target's end.

The settings must name a Kafka without TLS and SASL. The source topics are not deleted: use a disposable server.

    python bench/plane.py --only ours --profile plane

runs one round, and writes a flame graph of the steady state to plane-2KB.svg and plane-20KB.svg, with py-spy (on Linux,
py-spy must be allowed to trace a process that is not its child: run as root, or set kernel.yama.ptrace_scope=0).
"""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import orjson
import typer
from aiokafka import TopicPartition
from data import chunk, embedded, own_topics, publish
from matplotlib.axes import Axes
from measure import device, save
from peers import PACKAGES, PROGRAMS, STAGE, find
from workers import LOGS, started

from stream import config
from stream.config import Settings
from stream.contracts import Contract
from stream.kafka import clients, topics
from stream.kafka.lag import committed
from stream.records import Chunk, encode

EVERY = 0.1  # seconds between two samples
PATIENCE = 180.0  # seconds for one run
START = 0.1  # of the records: the first tenth does not count


@dataclass(frozen=True)
class Size:
    """A size of records: `json_bytes` of JSON, and what `made` adds to a chunk."""

    name: str
    contract: Contract
    json_bytes: int
    made: Callable[[Any], Any]


SIZES = (
    Size("2 KB", "chunk", 2_048, lambda of: of),
    Size("20 KB", "embedded", 4_096, embedded),  # with a vector of 16 KiB in a header
)


def padded(of: Chunk, size: Size) -> Any:
    """The chunk with its text repeated and cut, so that its record has this size."""
    others = len(encode(size.made({**of, "text": ""}))[0])
    words = f"{of['text']} "
    length = size.json_bytes - others
    return size.made({**of, "text": (words * (length // len(words) + 1))[:length]})


@dataclass(frozen=True)
class Filled:
    """A filled topic."""

    size: Size
    settings: Settings
    records: int
    record_bytes: int


async def filled(size: Size, records: int) -> Filled:
    """Fills a new topic with records of this size."""
    settings = await own_topics(config.load(partitions="1", replication_factor="1"))
    mean = await publish(settings, STAGE, (padded(chunk(n), size) for n in range(records)))
    print(f"{size.name}: published {records:,} records of {mean:,} bytes", file=sys.stderr)
    return Filled(size, settings, records, mean)


@asynccontextmanager
async def own_target(settings: Settings) -> AsyncIterator[TopicPartition]:
    """The target of a new flow, with the broker's timestamps; deleted at the end, because its records are large."""
    target = topics.target(settings, STAGE)
    assert target
    async with clients.admin(settings) as admin:
        (new,) = (topic for topic in topics.definitions(settings, 1) if topic.name == target)
        new.topic_configs = new.topic_configs | {"message.timestamp.type": "LogAppendTime"}
        await admin.create_topics([new])
        await topics.create(settings)  # the flow's other topics
        try:
            yield TopicPartition(target, 0)
        finally:
            own = (topic.name for topic in topics.definitions(settings, 1))
            await admin.delete_topics([name for name in own if name != topics.source(settings, STAGE)])


@dataclass(frozen=True)
class Rate:
    """Records per second of time, and per second of CPU time."""

    by_time: float
    by_cpu: float


def cpu(pid: int) -> float:
    """Seconds of CPU time that a process has used, in user and kernel mode. Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measured(name: str, source: Filled, flow: str, peers: Path, log: Path, profile: Path | None = None) -> Rate:
    """Lets one program copy the topic."""
    settings = source.settings.model_copy(update={"flow": flow})
    group, read = topics.group(settings, STAGE), TopicPartition(topics.source(settings, STAGE), 0)
    command = [sys.executable, Path(__file__).with_name("peers.py"), name, source.size.contract, str(source.records)]
    command += ["--topic", settings.topic, "--flow", flow, "--peers", peers]
    async with (
        own_target(settings) as target,
        clients.admin(settings) as admin,
        clients.offsets(settings) as client,
    ):
        with started(command, log, seconds=60) as (process,):
            done, spy, until = 0, None, time.monotonic() + PATIENCE
            samples: list[tuple[int, float]] = []  # records in the target, CPU seconds
            while done < source.records:
                await asyncio.sleep(EVERY)
                used = cpu(process.pid)  # before `poll`, after which an ended process has no entry in /proc
                if time.monotonic() > until or process.poll():
                    raise RuntimeError(f"{name} has copied {done:,} of {source.records:,} records; see {log}")
                done = (await committed(admin, group)).get(read, 0)
                written = (await client.end_offsets([target]))[target]
                assert done <= written, f"{name} has committed {done:,} records, but written {written:,}"
                if source.records * START <= written:
                    samples.append((written, used))
                if profile and done and not spy:
                    spy = subprocess.Popen(["py-spy", "record", "-o", profile, "-d", "600", "-p", str(process.pid)])
        if spy:
            spy.wait(60)
        assert written == source.records, f"{name} has written {written:,} records"
        (first, before), (last, after) = samples[0], samples[-1]
        if first == last:
            raise RuntimeError(f"{name} was too fast to sample its CPU time; raise --small and --large")
        return Rate(await by_time(settings, target, source.records), (last - first) / (after - before))


async def by_time(settings: Settings, target: TopicPartition, records: int) -> float:
    """Records per second after the first tenth, by the times at which the broker appended them."""
    first, last = int(records * START), records - 1
    async with clients.consumer(settings) as client:
        client.assign([target])

        async def appended(offset: int) -> float:
            client.seek(target, offset)
            return (await client.getone()).timestamp / 1000

        return (last - first) / (await appended(last) - await appended(first))


async def bench(
    names: Sequence[str], records: Sequence[int], rounds: int, peers: Path, logs: Path, profile: Path | None
) -> dict[str, Any]:
    """Measures the programs in turn, and in the reverse order in every second round."""
    sources = [await filled(size, count) for size, count in zip(SIZES, records, strict=True)]
    rates: dict[str, dict[str, list[Rate]]] = {size.name: {name: [] for name in names} for size in SIZES}
    for n in range(rounds):
        for source in sources:
            for name in names if n % 2 == 0 else reversed(names):
                flow = f"round{n}program{names.index(name)}"
                graph = profile and profile.with_name(f"{profile.name}-{source.size.name.replace(' ', '')}.svg")
                found = await measured(name, source, flow, peers, logs / f"bench-plane-{flow}.log", graph)
                rates[source.size.name][name].append(found)
                print(f"round {n + 1}, {source.size.name}, {name}: {found.by_time:,.0f} records/s", file=sys.stderr)
    return {
        "device": device(),
        "sizes": {
            source.size.name: {
                "records": source.records,
                "record_bytes": source.record_bytes,
                "records_a_second": {
                    name: summary([each.by_time for each in found]) for name, found in rates[source.size.name].items()
                },
                "records_a_cpu_second": {
                    name: summary([each.by_cpu for each in found]) for name, found in rates[source.size.name].items()
                },
            }
            for source in sources
        },
    }


def summary(rates: Sequence[float]) -> dict[str, Any]:
    """Median and spread."""
    return {"median": median(rates), "least": min(rates), "most": max(rates), "rounds": rates}


def draw(axes: Axes, sizes: dict[str, Any]) -> None:
    """Draws the medians; the thin line goes from the slowest to the fastest round."""
    height = 0.8 / len(sizes)
    for n, (size, results) in enumerate(sizes.items()):
        rates = results["records_a_second"]
        middle = [rate["median"] for rate in rates.values()]
        spread = [
            [rate["median"] - rate["least"] for rate in rates.values()],
            [rate["most"] - rate["median"] for rate in rates.values()],
        ]
        places = [place + n * height for place in range(len(rates))]
        bars = axes.barh(places, middle, height, xerr=spread, label=size, error_kw={"linewidth": 1})
        axes.bar_label(bars, fmt="{:,.0f}", padding=4)
        axes.set_yticks([place + 0.4 - height / 2 for place in range(len(rates))], list(rates))
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="records a second")
    axes.legend()


def main(
    only: Annotated[str | None, typer.Option(help="Measure one program; write no result.")] = None,
    rounds: Annotated[int, typer.Option(help="Runs of each program with each size.")] = 3,
    small: Annotated[int, typer.Option(help="Records of 2 KB in the topic.")] = 60_000,
    large: Annotated[int, typer.Option(help="Records of 20 KB in the topic.")] = 15_000,
    peers: Annotated[Path, typer.Option(help="Folder of the peers' packages.")] = Path(".local/peers"),
    profile: Annotated[Path | None, typer.Option(help="Write flame graphs with py-spy; needs --only.")] = None,
    logs: Annotated[Path, typer.Option(help="Folder of the programs' logs.")] = LOGS,
    out: Annotated[Path, typer.Option(help="Output path; writes .json and .svg.")] = Path("docs/figures/plane"),
) -> None:
    """Measure a stage's own cost, and that of its peers."""
    if only and only not in PROGRAMS:
        raise typer.BadParameter(f"--only must be one of: {'; '.join(PROGRAMS)}")
    if profile and not (only and shutil.which("py-spy")):
        raise typer.BadParameter("--profile needs --only, and py-spy on the PATH (`pip install py-spy`)")
    if config.load().kafka_security_protocol != "PLAINTEXT":
        raise typer.BadParameter("the peers need a Kafka without TLS and SASL: unset STREAM_KAFKA_SECURITY_PROTOCOL")
    if only != "ours":
        find(peers)
    names = [only] if only else list(PROGRAMS)
    results = asyncio.run(bench(names, (small, large), 1 if profile else rounds, peers, logs, profile))
    print(orjson.dumps(results, option=orjson.OPT_INDENT_2).decode())
    if not only:
        results["versions"] = {package: version(package) for package in ("aiokafka", "faust-streaming", *PACKAGES)}
        save(out, results, lambda axes: draw(axes, results["sizes"]))


if __name__ == "__main__":
    typer.run(main)
