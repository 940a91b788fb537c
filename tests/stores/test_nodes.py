"""If these fail, work stops because one node of OpenSearch is away, or half an answer counts as a whole."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiohttp import web
from ports import free_ports

from stream import config
from stream.errors import Outage
from stream.stores import nodes
from stream.stores.opensearch import OpenSearchStore

ANSWER = {"count": 7, "_shards": {"total": 3, "successful": 3, "skipped": 0, "failed": 0}}
WITHOUT_A_SHARD = {  # as OpenSearch 2.19 answers, with status 200
    "stored": {
        "docs": [
            {"_index": "chunks-1", "_id": "a", "error": {"type": "no_shard_available_action_exception", "reason": ""}}
        ],
        "hits": {"hits": []},
    },
    "unfiltered": {"count": 7, "_shards": {"total": 3, "successful": 2, "skipped": 0, "failed": 0}},
}


class Server:
    """A node that answers every request, with 503, or not at all."""

    def __init__(self) -> None:
        self.status = 200
        self.answer: object = ANSWER
        self.first: list[object] = []  # answers that come before it
        self.hangs = False
        self.requests = 0
        self.url = ""

    async def handle(self, _: web.Request) -> web.Response:
        self.requests += 1
        if self.hangs:
            await asyncio.Event().wait()
        answer = self.first.pop(0) if self.first else self.answer
        return web.json_response(answer if self.status == 200 else {"error": "none"}, status=self.status)


@asynccontextmanager
async def cluster(count: int) -> AsyncIterator[tuple[OpenSearchStore, list[Server]]]:
    """A store with these nodes and one more address, at which nobody listens."""
    async with AsyncExitStack() as stack:
        servers = [Server() for _ in range(count)]
        for server in servers:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", server.handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        (closed,) = free_ports(1)
        addresses = [f"http://127.0.0.1:{closed}", *(server.url for server in servers)]
        settings = config.only({"STREAM_OPENSEARCH_URL": ", ".join(addresses)})
        yield await stack.enter_async_context(OpenSearchStore(settings)), servers


async def test_no_request_fails_because_a_node_is_down():
    async with cluster(2) as (store, servers):
        for _ in range(6):
            assert await store.count() == 7
        assert all(server.requests for server in servers)


async def test_a_node_that_is_down_is_not_asked_again_at_once(monkeypatch):
    """Otherwise every search waits for it."""
    asked: list[str] = []
    ask = nodes.AIOHttpConnection.perform_request

    async def noted(node, *request, **options):
        asked.append(node.host)
        return await ask(node, *request, **options)

    monkeypatch.setattr(nodes.AIOHttpConnection, "perform_request", noted)
    async with cluster(1) as (store, servers):
        for _ in range(6):
            await store.unfiltered()
        assert len([host for host in asked if host != servers[0].url]) == 1


async def test_a_node_that_starts_or_stops_passes_its_requests_to_another():
    async with cluster(2) as (store, servers):
        servers[0].status = 503
        for _ in range(4):
            assert await store.count() == 7


async def test_one_search_at_most_waits_for_a_node_that_hangs():
    async with cluster(2) as (store, servers):
        servers[0].hangs = True
        late = 0
        for _ in range(10):
            try:
                async with asyncio.timeout(0.5):
                    await store.unfiltered()
            except TimeoutError:
                late += 1
        assert late == servers[0].requests == 1


async def test_a_node_that_hangs_is_asked_again_later(monkeypatch):
    monkeypatch.setattr(nodes, "COOLDOWN", 0.0)
    async with cluster(2) as (store, servers):
        servers[0].hangs = True
        before = time.monotonic()
        while not servers[0].requests:
            try:
                async with asyncio.timeout(0.5):
                    await store.unfiltered()
            except TimeoutError:
                servers[0].hangs = False
        assert time.monotonic() > before + 0.4
        for _ in range(4):
            assert await store.unfiltered() == 7
        assert servers[0].requests > 1


async def test_without_any_node_the_sentence_names_every_address_and_no_connection_stays_open():
    async with cluster(2) as (store, servers):
        for server in servers:
            server.status = 503
        with pytest.raises(Outage) as raised:
            await store.count()
        assert all(address in str(raised.value) for address in store._settings.opensearch_urls)
        connections = store._client.transport.seed_connections
        assert len(connections) == 3
    assert [connection.session for connection in connections] == [None] * 3


async def test_an_answer_without_all_shards_is_an_outage():
    """Otherwise `verify` misses what is lost, a reindex goes live with less, and searches leave chunks out."""
    async with cluster(1) as (store, servers):
        servers[0].answer = WITHOUT_A_SHARD["unfiltered"]
        with pytest.raises(Outage, match="1 of 3"):
            await store.unfiltered()
        servers[0].answer = WITHOUT_A_SHARD["stored"]
        with pytest.raises(Outage, match="no_shard_available"):
            await store.stored(["a"])


async def test_a_search_that_lost_a_shard_on_its_way_is_made_again():
    """A search is made in steps: after a node dies between two of them, OpenSearch does not ask another node."""
    async with cluster(1) as (store, servers):
        servers[0].first = [WITHOUT_A_SHARD["unfiltered"]]
        assert await store.unfiltered() == 7
