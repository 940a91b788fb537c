"""If this fails, an operator does not learn what a worker waits for, or an outage of hours costs chunks."""

import asyncio
import json

import pytest
from faults.proxy import Proxy
from ports import free_ports
from support import LONGEST, Worker, send, until

from stream.operate.status import caught_up, stages

pytestmark = pytest.mark.servers


async def test_an_outage_beyond_its_bound_is_seen_ends_the_worker_with_75_and_costs_nothing(flow):
    async with Proxy(flow.embed_url, "/v1/embeddings") as proxy:
        (port,) = free_ports(1)
        lines = [json.dumps({"chunk_id": f"c{i}", "doc_id": "d", "text": f"text {i}"}).encode() for i in range(40)]
        async with Worker("embed", port=port, STREAM_EMBED_URL=proxy.url, STREAM_OUTAGE_BOUND="4") as worker:
            await worker.ready()
            async with proxy.refusing():
                await send(flow, [(json.loads(line)["chunk_id"].encode(), line) for line in lines])
                assert "does not answer" in await unready(worker)
                metrics = await worker.metrics()
                assert metrics["stream_retries_total"] > 0
                assert metrics["stream_outage"] == 1
                assert await worker.exit_code() == 75
        assert worker.log.read_text().splitlines()[-1].startswith("stream: the embedding server at")
        embed, *_ = await stages(flow)
        assert (embed.done, embed.dead_letters) == (0, 0)
        async with Worker("embed", port=port, STREAM_EMBED_URL=proxy.url), asyncio.timeout(LONGEST):
            await caught_up(flow, ["embed"])
        embed, expand, _ = await stages(flow)
        assert (embed.lag, embed.dead_letters, expand.total) == (0, 0, len(lines))


@pytest.mark.parametrize(("stage", "variable"), [("embed", "STREAM_EMBED_URL"), ("index", "STREAM_OPENSEARCH_URL")])
async def test_a_worker_without_work_says_who_is_down_until_they_are_back(flow, stage, variable):
    upstream = flow.embed_url if stage == "embed" else flow.opensearch_url
    (port,) = free_ports(1)
    async with Proxy(upstream, "") as proxy, Worker(stage, port=port, **{variable: proxy.url}) as worker:
        await worker.ready()
        async with proxy.refusing():
            assert f"{proxy.url} does not answer" in await unready(worker)
            assert (await worker.get("/healthz"))[0] == 200
            if stage == "embed":
                assert (await worker.metrics())["embed_server_up"] == 0
        await worker.ready()


async def unready(worker: Worker) -> str:
    """The answer of /readyz once its status is no longer 200."""
    said: list[str] = []

    async def refuses() -> bool:
        status, body = await worker.get("/readyz")
        said.append(body)
        return status == 503

    await until(refuses)
    return said[-1]
