"""If these fail, Prometheus or Kubernetes gets wrong information about a worker."""

from collections.abc import AsyncIterator
from types import SimpleNamespace

import aiohttp
import pytest
from ports import free_ports
from prometheus_client.parser import text_string_to_metric_families

from stream import metrics
from stream.errors import ConfigurationError
from stream.health.web import serve


@pytest.fixture
async def worker() -> AsyncIterator[SimpleNamespace]:
    """A server whose checks answer what the test says, and a client of it."""
    (port,) = free_ports(1)
    state = SimpleNamespace(port=port, unhealthy=None, unready=None)
    async with (
        serve("127.0.0.1", port, lambda: state.unhealthy, lambda: state.unready),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as state.http,
    ):
        yield state


async def get(worker: SimpleNamespace, path: str) -> tuple[int, str]:
    async with worker.http.get(path) as answer:
        return answer.status, await answer.text()


async def test_a_worker_with_nothing_wrong_is_healthy_and_ready(worker):
    assert await get(worker, "/healthz") == await get(worker, "/readyz") == (200, "ok\n")


async def test_a_worker_that_waits_is_not_ready_and_says_why_but_needs_no_restart(worker):
    worker.unready = "Neo4j is down"
    assert await get(worker, "/readyz") == (503, "Neo4j is down\n")
    assert (await get(worker, "/healthz"))[0] == 200


async def test_a_worker_that_hangs_is_not_healthy(worker):
    worker.unhealthy = "the batch loop has ended"
    assert await get(worker, "/healthz") == (503, "the batch loop has ended\n")


@pytest.mark.parametrize("name", ["embed_chunks_sec", "embed_latency_ms", "embed_batch_size"])
async def test_the_metrics_that_dashboards_use_are_there(worker, name):
    _, text = await get(worker, "/metrics")
    assert name in {family.name for family in text_string_to_metric_families(text)}


async def test_metrics_are_those_of_this_moment(worker):
    for batches in (1, 2):
        metrics.in_flight.labels("index").set(batches)
        _, text = await get(worker, "/metrics")
        assert f'stream_in_flight{{stage="index"}} {float(batches)}' in text
    metrics.in_flight.labels("index").set(0)


async def test_a_port_that_is_taken_is_named_with_the_setting(worker):
    with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{worker.port}.*STREAM_WEB_PORT"):
        async with serve("127.0.0.1", worker.port, lambda: None, lambda: None):
            pass


async def test_the_port_is_free_again_afterwards():
    (port,) = free_ports(1)
    for _ in range(2):
        async with serve("127.0.0.1", port, lambda: None, lambda: None):
            pass
