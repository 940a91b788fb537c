"""Checks that a worker's memory stays bounded while a server that it needs hangs for minutes.

For each stage: fills its topic, starts a worker, lets it work, stops a server with SIGSTOP (it then neither answers nor
refuses connections), continues the server, and samples the worker's memory and its number of records all the time.

    embed: the embedder hangs      expand: Kafka hangs and takes no outputs      index: OpenSearch hangs

    STREAM_ENV_FILE=.local/stream.env python bench/stall.py --home .local

The servers must be those of the local profile in `--home`, without workers. The topics and the stored chunks are not
deleted: use disposable servers.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx
import orjson
import typer
from data import chunk, embedded, expanded, publish
from matplotlib.axes import Axes
from measure import MIB, device, memory, save
from prometheus_client.parser import text_string_to_metric_families

from stream import config
from stream.config import STAGES, StageName
from stream.kafka import topics
from stream.local import supervisor
from stream.local.profile import Profile
from stream.worker.ports import WEB_PORTS

EVERY = 0.5  # seconds between two samples
STALLED: dict[StageName, str] = {"embed": "embedder", "expand": "kafka", "index": "opensearch"}
MADE: dict[StageName, Callable[[Any], Any]] = {"embed": lambda of: of, "expand": embedded, "index": expanded}


async def watched(stage: StageName, profile: Profile, times: Sequence[float], log: Path) -> dict[str, Any]:
    """Samples the memory in bytes and the number of records of one worker, before, during and after the stall."""
    before, stalled, after = times
    variables = os.environ | {"STREAM_OUTAGE_BOUND": str(2 * stalled), "STREAM_WEB_PORT": str(WEB_PORTS[stage])}
    samples: list[dict[str, float]] = []
    with log.open("wb") as file:
        worker = subprocess.Popen([sys.executable, "-m", "stream", "worker", stage], env=variables, stderr=file)
    server = STALLED[stage]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{WEB_PORTS[stage]}", trust_env=False) as http:

            async def watch(until: float, enough: Callable[[float], bool] = lambda _: False) -> float:
                while time.monotonic() < until:
                    if worker.poll() is not None:
                        raise RuntimeError(f"the {stage} worker ended with {worker.returncode}; see {log}")
                    done = await _done(http)
                    samples.append({"seconds": time.monotonic(), "memory": memory(worker.pid), "done": done})
                    if enough(done):
                        break
                    await asyncio.sleep(EVERY)
                return time.monotonic()

            begin = await watch(time.monotonic() + 120, lambda done: done > 0)
            from_ = await watch(begin + before)
            supervisor.kill(profile, server, signal.SIGSTOP)
            try:
                to = await watch(from_ + stalled)
            finally:
                supervisor.kill(profile, server, signal.SIGCONT)
            await watch(to + after)
    finally:
        worker.terminate()
        try:
            code = worker.wait(60)
        except subprocess.TimeoutExpired:
            worker.kill()
            code = worker.wait()
    for sample in samples:
        sample["seconds"] = round(sample["seconds"] - begin, 1)
    return {
        "server": server,
        "stalled": [round(from_ - begin, 1), round(to - begin, 1)],
        "exit_code": code,
        **_summary(samples, from_ - begin, to - begin),
        "samples": samples,
    }


async def _done(http: httpx.AsyncClient) -> float:
    try:
        text = (await http.get("/metrics")).text
    except httpx.TransportError:  # the worker is still starting
        return 0
    families = text_string_to_metric_families(text)
    return sum(s.value for family in families for s in family.samples if s.name == "stream_records_total")


def _summary(samples: Sequence[dict[str, float]], begin: float, end: float) -> dict[str, float]:
    parts = {
        "before": [s for s in samples if s["seconds"] < begin],
        "during": [s for s in samples if begin <= s["seconds"] < end],
        "after": [s for s in samples if s["seconds"] >= end],
    }
    half = parts["during"][len(parts["during"]) // 2 :]
    return {f"peak_{name}": max(s["memory"] for s in part) for name, part in parts.items()} | {
        "growth_in_second_half": half[-1]["memory"] - half[0]["memory"],
        "done_during": parts["during"][-1]["done"] - parts["during"][0]["done"],
        "done_after": parts["after"][-1]["done"] - parts["after"][0]["done"],
    }


def draw(axes: Axes, stages: dict[str, Any]) -> None:
    """Draws memory over time. The stall is the broad part of each line."""
    for stage, run in stages.items():
        begin, end = run["stalled"]
        seconds = [s["seconds"] for s in run["samples"]]
        mib = [s["memory"] / MIB for s in run["samples"]]
        (line,) = axes.plot(seconds, mib, linewidth=1, label=f"{stage}, {run['server']} stopped")
        during = [(s, m) for s, m in zip(seconds, mib, strict=True) if begin <= s < end]
        axes.plot(*zip(*during, strict=True), linewidth=4, alpha=0.5, color=line.get_color())
    axes.set(xlabel="seconds since the first batch (broad: the server is stopped)", ylabel="worker's memory, MiB")
    axes.set_ylim(bottom=0)
    axes.legend()


async def bench(
    stages: Sequence[StageName], profile: Profile, records: int, times: Sequence[float], logs: Path
) -> dict[str, Any]:
    """Measures the stages one after another, each with its own topics."""
    results: dict[str, Any] = {}
    for stage in stages:
        name = f"bench-{uuid.uuid4().hex[:8]}"
        os.environ |= {"STREAM_TOPIC": name, "STREAM_OPENSEARCH_ALIAS": name}
        settings = config.load()
        await topics.create(settings)
        size = await publish(settings, stage, (MADE[stage](chunk(n)) for n in range(records)))
        print(f"{stage}: published {records:,} records of {size:,} bytes", file=sys.stderr)
        results[stage] = {"records": records, "record_bytes": size} | await watched(
            stage, profile, times, logs / f"bench-stall-{stage}.log"
        )
        print(orjson.dumps(_short(results[stage])).decode(), file=sys.stderr)
    return {"device": device(), "stages": results}


def _short(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name != "samples"}


def main(
    only: Annotated[StageName | None, typer.Option(help="Measure one stage; keep the results of the others.")] = None,
    home: Annotated[Path, typer.Option(help="The folder of the local profile.")] = Path(".local"),
    records: Annotated[int, typer.Option(help="Records in the topic before the worker starts.")] = 20_000,
    before: Annotated[float, typer.Option(help="Seconds of work before the stall.")] = 15,
    seconds: Annotated[float, typer.Option(help="Seconds of the stall.")] = 180,
    after: Annotated[float, typer.Option(help="Seconds of work after the stall.")] = 40,
    out: Annotated[Path, typer.Option(help="Output path; writes .json and .svg.")] = Path("docs/figures/stall"),
) -> None:
    """Stop a server that each stage's worker needs and measure the worker's memory."""
    profile = Profile(home)
    times, logs = (before, seconds, after), profile.home / "logs"
    results = asyncio.run(bench([only] if only else STAGES, profile, records, times, logs))
    if only and out.with_suffix(".json").exists():
        merged = orjson.loads(out.with_suffix(".json").read_bytes())["stages"] | results["stages"]
        results["stages"] = {name: merged[name] for name in STAGES if name in merged}
    save(out, results, lambda axes: draw(axes, results["stages"]))


if __name__ == "__main__":
    typer.run(main)
