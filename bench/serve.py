"""Measures the service: HTTP against the library, 50 clients for a minute, generated requests, and the page.

    STREAM_ENV_FILE=.local/stream.env python bench/serve.py

It uses the index that `bench/search.py speed` fills. The service runs in a process of its own, on the same cores.
"""

import asyncio
import os
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import aiohttp
import httpx
import orjson
import typer
from measure import device
from playwright.async_api import async_playwright
from rich.console import Console
from search import OWN, Spread, asked, opened

from stream import config
from stream.search.request import LEGS, Request

app = typer.Typer(pretty_exceptions_enable=False)
console = Console(stderr=True)

WARM_UP = 20  # requests that are not measured
READY_SECONDS = 120
USABLE = "#query:focus"  # the page is usable when its search box has the focus
WATCH = """
addEventListener("focusin", (event) => { if (event.target.matches("#query")) window.usable ??= performance.now(); })
"""


@contextmanager
def service(port: int) -> Iterator[str]:
    """The address of a service for the bench's index, which is ready."""
    names = {f"STREAM_{name.upper()}": value for name, value in OWN.items()} | {"STREAM_SERVE_PORT": str(port)}
    command, environment = [sys.executable, "-m", "stream"], os.environ | names
    subprocess.run([*command, "topics", "create"], env=environment, check=True)  # the flow's routes read them
    process = subprocess.Popen([*command, "serve"], env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        ends = time.monotonic() + READY_SECONDS
        while not _ready(address):
            assert process.poll() is None and time.monotonic() < ends, "the service is not ready"
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz").is_success
    except httpx.TransportError:
        return False


@asynccontextmanager
async def browser() -> AsyncIterator[Any]:
    """Debian's Chromium, headless."""
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            args=["--no-sandbox", "--disable-background-networking", "--disable-component-update"],
        )
        yield chromium
        await chromium.close()


async def latency(address: str, queries: list[str]) -> dict[str, Any]:
    """One client that asks new queries, by turns over HTTP and in the library, each with the models loaded.

    The client is aiohttp: httpx takes some milliseconds of its own for a request.
    """
    seconds: dict[str, list[float]] = {"http": [], "library": []}
    async with (
        opened(config.load().model_copy(update=OWN)) as (_, make),
        aiohttp.ClientSession(address, raise_for_status=True) as http,
    ):
        searcher = make()
        await searcher.warm(LEGS["hybrid"])
        for number, query in enumerate(queries):
            request = Request(query=query)
            for way in ("http", "library") if number % 2 else ("library", "http"):
                start = time.perf_counter()
                if way == "library":
                    await searcher.search(request)
                else:
                    async with http.post("/search", json={"query": query}) as answer:
                        await answer.read()
                seconds[way].append(time.perf_counter() - start)
    return {way: Spread.of(each[WARM_UP:]) for way, each in seconds.items()}


async def load(http: httpx.AsyncClient, queries: list[str], clients: int, seconds: float) -> dict[str, Any]:
    """Some clients that ask one new query after the other, `hybrid`."""
    ends = time.perf_counter() + seconds
    durations: list[float] = []
    statuses: Counter[str] = Counter()
    left = iter(f"{query} {n}" for n in range(1000) for query in queries)

    async def client() -> None:
        while time.perf_counter() < ends:
            start = time.perf_counter()
            try:
                answer = await http.post("/search", json={"query": next(left)})
                degraded = answer.is_success and answer.json()["degraded"]
                statuses["degraded" if degraded else str(answer.status_code)] += 1
            except httpx.HTTPError as error:
                statuses[type(error).__name__] += 1
            durations.append(time.perf_counter() - start)

    await asyncio.gather(*(client() for _ in range(clients)))
    return {
        "clients": clients,
        "seconds": seconds,
        "a second": round(len(durations) / seconds, 1),
        "ms": Spread.of(durations),
        "answers": dict(statuses),
    }


def generated(address: str, each: int) -> dict[str, Any]:
    """Requests that schemathesis makes from the description of the interface: how many, and which statuses came."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [Path(sysconfig.get_path("scripts")) / "st", "run", f"{address}/openapi.json", "--seed", "1"]
        command += ["--phases", "fuzzing", "--max-examples", str(each), "--checks", "not_a_server_error"]
        command += ["--suppress-health-check", "all", "--report", "json", "--report-json-path", report]
        before = _statuses(address)
        ended = subprocess.run(command, cwd=folder, check=False)
        statuses = _statuses(address) - before
    return {"exit code": ended.returncode, "requests": statuses.total(), "statuses": dict(sorted(statuses.items()))}


def _statuses(address: str) -> Counter[str]:
    """The service's own count of its answers."""
    found: Counter[str] = Counter()
    for line in httpx.get(f"{address}/metrics").text.splitlines():
        if line.startswith("stream_http_requests_total{") and 'route="/metrics"' not in line:
            labels, count = line.rsplit(" ", 1)
            found[labels.split('status="')[1][:3]] += int(float(count))
    return found


async def page(address: str, times: int) -> dict[str, Any]:
    """From the request for the page until its search box has the focus, each time with an empty cache; its bytes."""
    times_ms, sizes = [], []
    async with browser() as chromium:
        for _ in range(times + 1):  # the first one starts Chromium's own processes
            context = await chromium.new_context()
            tab = await context.new_page()
            await tab.add_init_script(WATCH)
            await tab.goto(address)
            await tab.locator(USABLE).wait_for()
            times_ms.append(await tab.evaluate("window.usable"))
            await tab.wait_for_load_state("networkidle")
            sizes.append(
                await tab.evaluate(
                    "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
                    ".filter(e => e.name === location.href || e.name.includes('/page/'))"
                    ".reduce((sum, e) => sum + e.encodedBodySize, 0)"
                )
            )
            await context.close()
    return {"ms": Spread.of([each / 1000 for each in times_ms[1:]]), "bytes": max(sizes)}


@app.command()
def main(
    queries: Annotated[int, typer.Option(help="Queries of the measurement of latency.")] = 400,
    seconds: Annotated[float, typer.Option(help="Seconds with 50 clients.")] = 60,
    each: Annotated[int, typer.Option(help="Generated requests of each operation.")] = 1000,
    port: Annotated[int, typer.Option(help="The service's port.")] = 18090,
    out: Annotated[Path, typer.Option(help="The result.")] = Path("docs/figures/serve.json"),
) -> None:
    """Latency, load, generated requests, the page."""
    words = asked(queries)
    results: dict[str, Any] = {"device": device()}

    async def measured(address: str) -> None:
        results["latency"] = await latency(address, words)
        console.print(results["latency"], highlight=False)
        async with httpx.AsyncClient(base_url=address, timeout=60, limits=httpx.Limits(max_connections=100)) as http:
            results["load"] = await load(http, words, 50, seconds)
            console.print(results["load"], highlight=False)
        results["page"] = await page(address, 20)
        console.print(results["page"], highlight=False)

    with service(port) as address:
        asyncio.run(measured(address))
        results["generated"] = generated(address, each)
        console.print(results["generated"], highlight=False)
    out.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")


if __name__ == "__main__":
    app()
