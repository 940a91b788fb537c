"""If these fail, nobody is paged when chunks stop flowing, or a dashboard panel is empty."""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import orjson
import pytest
import yaml
from ports import free_ports
from serving import Server
from support import LOGS, LONGEST, Worker, chunk, send, until
from typer.testing import CliRunner

from stream import metrics
from stream.cli import app
from stream.config import STAGES
from stream.operate.status import caught_up

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PROMETHEUS = ROOT / "compose" / "prometheus"
BIN = f"{ROOT / '.local/prometheus/usr/bin'}:{os.environ['PATH']}"
DASHBOARD = json.loads((ROOT / "compose/grafana/dashboards/chunk-stream.json").read_text())
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
RARE = {  # a healthy flow on a CPU has no values for these
    "increase(stream_splade_out_of_memory_total[1m])",
    'sum by (instance) (increase(stream_http_requests_total{status="429"}[1m]))',
    "sum by (leg) (increase(stream_searches_degraded_total[1m]))",
}


def program(name: str) -> str:
    """The path of a program that `make prometheus` installs."""
    found = shutil.which(name, path=BIN)
    assert found, f"{name} is missing: run `make prometheus`"
    return found


# Alerts


def test_each_alert_is_raised_by_what_it_is_for():
    subprocess.run([program("promtool"), "test", "rules", HERE / "alerts.yml"], check=True)


def test_no_alert_goes_without_a_test():
    cases = yaml.safe_load((HERE / "alerts.yml").read_text())["tests"]
    raised = {
        expected["alertname"]
        for case in cases
        for expected in case.get("alert_rule_test", ())
        if expected.get("exp_alerts")
    }
    assert raised == {rule["alert"] for rule in RULES}


def test_prometheus_takes_its_configuration():
    subprocess.run([program("promtool"), "check", "config", PROMETHEUS / "prometheus.yml"], check=True)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_leads_to_its_paragraph(rule):
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^## (.*)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


# Metrics


def test_the_page_lists_the_metrics_as_they_are():
    printed = CliRunner().invoke(app, ["metrics", "--markdown"]).stdout
    assert (ROOT / "docs/metrics.md").read_text() == printed


def test_no_panel_or_alert_asks_for_a_metric_that_is_not_there():
    own = {one.name for one in metrics.listed()}
    for expression in [*EXPRESSIONS, *(rule["expr"] for rule in RULES)]:
        for name in re.findall(r"\b(?:stream|embed)_\w+", expression):
            assert {name, re.sub(r"_(bucket|sum|count)$", "", name)} & own, name


# The dashboard


@pytest.mark.servers
async def test_every_panel_shows_something_while_chunks_flow(flow, stores, tmp_path):
    ports = dict(zip((*STAGES, "gpu", "prometheus"), free_ports(5), strict=True))
    async with AsyncExitStack() as stack:
        for stage in STAGES:
            await stack.enter_async_context(Worker(stage, port=ports[stage]))
        search = await stack.enter_async_context(Server({}))
        stack.enter_context(page(HERE / "gpu.prom", ports["gpu"]))
        embedder = flow.embed_urls[0].removeprefix("http://")
        targets = {
            "stream": [f"127.0.0.1:{ports[stage]}" for stage in STAGES],
            "search": [search.url.removeprefix("http://")],
            "vllm": [embedder],
            "gpu": [f"127.0.0.1:{ports['gpu']}"],
        }
        http = await stack.enter_async_context(prometheus(configuration(targets, tmp_path), ports["prometheus"]))

        async def asked(expression: str) -> list[dict]:
            answer = (await http.get("/api/v1/query", params={"query": expression})).json()
            assert answer["status"] == "success", (expression, answer)
            return [one for one in answer["data"]["result"] if one["value"][1] != "NaN"]

        for rule in RULES:
            await asked(rule["expr"])
        await search.says(200)
        left = {expression.replace("$__rate_interval", "1m") for expression in EXPRESSIONS} - RARE
        number = 0
        async with asyncio.timeout(LONGEST):
            while left:
                chunks = [chunk(f"c{number + n}", f"text {number + n} about sockets") for n in range(20)]
                number += len(chunks)
                await send(flow, [(one["chunk_id"].encode(), orjson.dumps(one)) for one in chunks])
                await send(flow, [(b"bad", b"{")])
                await caught_up(flow)
                assert (await search.post("/search", {"query": f"sockets {number}"})).status_code == 200
                left = {expression for expression in left if not await asked(expression)}

        async def no_lag_is_left() -> bool:
            return {one["metric"]["stage"] for one in await asked("stream_lag_records == 0")} == set(STAGES)

        await until(no_lag_is_left)  # a worker updates it every five seconds
        (age,) = await asked("stream_end_to_end_seconds_sum / stream_end_to_end_seconds_count")
        assert 0 < float(age["value"][1]) < 60
        done = {one["metric"]["stage"] for one in await asked('stream_record_bytes_total{outcome="done"} > 0')}
        assert done == set(STAGES)


def configuration(targets: dict[str, list[str]], folder: Path) -> Path:
    """The configuration of compose/ with these targets and a scrape interval of one second."""
    told = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    told["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    told["rule_files"] = [str(PROMETHEUS / "alerts.yml")]
    for job in told["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": targets.pop(job["job_name"])}]
    assert not targets
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(told))
    return file


@asynccontextmanager
async def prometheus(config: Path, port: int):
    """Runs a real Prometheus and yields an HTTP client for it."""
    address = f"127.0.0.1:{port}"
    with (LOGS / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={config.parent / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as http:

            async def ready() -> bool:
                assert process.poll() is None, (LOGS / "prometheus.log").read_text()[-2000:]
                try:
                    return (await http.get("/-/ready")).status_code == 200
                except httpx.TransportError:
                    return False

            await until(ready)
            yield http
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def page(file: Path, port: int) -> Iterator[None]:
    """Serves a file at /metrics, in place of a GPU exporter."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(file.read_bytes())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
