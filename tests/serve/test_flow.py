"""If these fail, an operator watches a flow that stands still while it moves, or moves while it stands still."""

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import orjson
import pytest
import uvicorn
from ports import free_ports
from serving import client, fake_service, problem
from support import LONGEST, send

from stream.config import Settings
from stream.kafka import clients, deadletters, topics
from stream.kafka.deadletters import letter_headers, redriven_headers
from stream.local import supervisor
from stream.local.profile import Profile
from stream.operate import watching
from stream.operate.watching import Look, Watch
from stream.records import Record, Rejected
from stream.serve import flow as serving
from stream.serve.access import Keys
from stream.serve.app import served
from stream.serve.flow import Broadcast
from stream.serve.service import Service
from stream.stores import Stores

# Readers, without servers


class Fake:
    """A watch without servers."""

    opened, looked, closed = 0, 0, 0

    def __init__(self, *_: Any) -> None: ...

    async def __aenter__(self) -> "Fake":
        Fake.opened += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        Fake.closed += 1

    async def look(self) -> Look:
        Fake.looked += 1
        return Look(at=Fake.looked)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    monkeypatch.setattr(serving, "Watch", Fake)
    monkeypatch.setattr(serving, "INTERVAL", 0)
    Fake.opened = Fake.looked = Fake.closed = 0
    return Fake


async def test_all_readers_share_one_watch_which_ends_with_the_last(fake):
    broadcast = Broadcast(fake_service()[0])
    async with asyncio.timeout(LONGEST):
        async with aclosing(broadcast.looks()) as one:
            seen = [(await anext(one)).at]
            async with aclosing(broadcast.looks()) as other:
                seen += [(await anext(other)).at, (await anext(one)).at, (await anext(other)).at]
                assert (broadcast.readers, fake.opened) == (2, 1)
            assert (await anext(one)).at > seen[0]
            assert fake.closed == 0
        while not fake.closed:
            await asyncio.sleep(0)
        looked = fake.looked
        async with aclosing(broadcast.looks()) as again:
            assert (await anext(again)).at > looked
    assert (broadcast.readers, fake.opened) == (0, 2)


async def test_a_reader_that_is_slow_misses_looks_and_holds_nobody_up(fake):
    broadcast = Broadcast(fake_service()[0])
    async with asyncio.timeout(LONGEST), aclosing(broadcast.looks()) as slow, aclosing(broadcast.looks()) as quick:
        first = (await anext(slow)).at
        for _ in range(20):
            newest = (await anext(quick)).at
        await anext(slow)
        assert (await anext(slow)).at >= newest > first + 10


async def test_readers_are_told_to_go_when_the_service_stops(fake, monkeypatch):
    monkeypatch.setattr(serving, "INTERVAL", LONGEST)
    service, _ = fake_service()
    async with asyncio.timeout(LONGEST), aclosing(Broadcast(service).looks()) as looks:
        await anext(looks)
        waiting = asyncio.create_task(anext(looks, None))
        await asyncio.sleep(0)
        service.drain()
        assert await waiting is None


async def test_a_fault_of_the_watch_ends_the_stream_instead_of_silence(fake, monkeypatch):
    async def look(_: Fake) -> Look:
        raise ZeroDivisionError

    monkeypatch.setattr(Fake, "look", look)
    async with asyncio.timeout(LONGEST), aclosing(Broadcast(fake_service()[0]).looks()) as looks:
        with pytest.raises(ZeroDivisionError):
            await anext(looks)


async def test_more_readers_than_the_maximum_are_refused(monkeypatch):
    monkeypatch.setattr(serving, "MOST_READERS", 0)
    async with client(fake_service()[0]) as http:
        assert problem(await http.get("/flow/events"))["status"] == 429


# The real flow


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no outage."""
    monkeypatch.setattr(watching, "PATIENCE", LONGEST)


@pytest.fixture
async def service(flow: Settings, stores: Stores) -> Service:
    return Service(flow, stores, SimpleNamespace())  # type: ignore[arg-type]


@asynccontextmanager
async def listening(service: Service) -> AsyncIterator[str]:
    """The service on a port; it must end by itself after `drain`."""
    listener = socket.create_server(("127.0.0.1", free_ports(1)[0]))
    config = uvicorn.Config(served(service, Keys(None)), log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        service.drain()
        async with asyncio.timeout(LONGEST):
            await task


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    kind = None
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            assert kind == "flow"
            yield orjson.loads(value)


async def until(looks: AsyncIterator[Any], wanted: Callable[[Any], bool]) -> Any:
    """The next look that is wanted."""
    async with asyncio.timeout(LONGEST):
        async for look in looks:
            if wanted(look):
                return look
    raise AssertionError("the stream has ended")


@pytest.mark.servers
async def test_the_events_move_as_records_arrive_and_are_done(service):
    settings = service.settings
    async with (
        listening(service) as url,
        httpx.AsyncClient(base_url=url, timeout=LONGEST) as http,
        http.stream("GET", "/flow/events") as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        looks = events(response)
        empty = await until(looks, lambda look: not look["error"])
        await send(settings, [(f"c{n}".encode(), b"{}") for n in range(6)])
        full = await until(looks, lambda look: look["stages"][0]["lag"] == 6)
        async with clients.admin(settings) as admin, clients.offsets(settings) as client:
            ends = await client.end_offsets(await clients.partitions(admin, [settings.topic]))
        await clients.commit(settings, topics.group(settings, "embed"), ends)
        done = await until(looks, lambda look: look["stages"][0]["lag"] == 0)
        service.drain()
        async with asyncio.timeout(LONGEST):
            assert all([True async for _ in looks])  # the stream ends
    embed = {"stage": "embed", "topic": settings.topic, "dead_letters": 0}
    assert empty["stages"][0] == {**embed, "total": 0, "done": 0, "lag": 0, "rate": 0, "age": None}
    assert [stage["stage"] for stage in empty["stages"]] == ["embed", "expand", "index"]
    assert (empty["stores"], empty["error"]) == ({"Neo4j": 0, "OpenSearch": 0}, None)
    generation = {"number": 1, "flow": "", "live_in": ["Neo4j", "OpenSearch"], "swapping": False, "lag": 0}
    assert empty["generations"] == [generation]
    assert 0 <= full["stages"][0]["age"] < LONGEST
    assert full["stages"][0] == {**embed, "total": 6, "done": 0, "lag": 6, "rate": 0, "age": full["stages"][0]["age"]}
    rate = done["stages"][0]["rate"]
    assert rate > 0
    assert done["stages"][0] == {**embed, "total": 6, "done": 6, "lag": 0, "rate": rate, "age": None}


@pytest.mark.servers
async def test_the_age_is_that_of_the_oldest_record_that_is_not_committed(flow, stores):
    now = 1_700_000_000_000
    async with clients.producer(flow) as producer:
        for partition, ages in enumerate(([50, 40, 30], [45, 20])):
            for age in ages:
                await producer.send_and_wait(
                    flow.topic, b"{}", partition=partition, timestamp_ms=now - 1000 * age, key=b"c"
                )
    async with clients.admin(flow) as admin:
        partitions = sorted(await clients.partitions(admin, [flow.topic]))
    found = []
    async with Watch(flow, stores) as watch:
        for committed in ({0: 0, 1: 0}, {0: 1, 1: 0}, {0: 1, 1: 1}, {0: 3, 1: 1}, {0: 3, 1: 2}):
            offsets = {tp: committed[tp.partition] for tp in partitions}
            await clients.commit(flow, topics.group(flow, "embed"), offsets)
            look = await watch.look()
            embed = look.stages[0]
            found.append(None if embed.age is None else (look.at - now) / 1000 - embed.age)
    assert found == [pytest.approx(-age) for age in (50, 45, 40, 20)] + [None]


@pytest.mark.servers
async def test_a_group_that_is_set_back_has_no_negative_rate(flow, stores):
    await send(flow, [(f"c{n}".encode(), b"{}") for n in range(4)])
    async with clients.admin(flow) as admin, clients.offsets(flow) as client:
        ends = await client.end_offsets(await clients.partitions(admin, [flow.topic]))
    group, rates = topics.group(flow, "embed"), []
    async with Watch(flow, stores) as watch:
        for offsets in (dict.fromkeys(ends, 0), ends, dict.fromkeys(ends, 0)):
            await clients.commit(flow, group, offsets)
            rates.append((await watch.look()).stages[0].rate)
    assert rates[0] == rates[2] == 0
    assert rates[1] > 0


@pytest.mark.servers
async def test_while_kafka_is_frozen_events_say_so_and_go_on_after_it(service, profile: Profile | None, monkeypatch):
    if profile is None:
        pytest.skip("these servers are not ours to stop")
    monkeypatch.setattr(watching, "PATIENCE", 3.0)
    monkeypatch.setattr(watching, "STORES_SECONDS", 0.0)
    monkeypatch.setattr(serving, "INTERVAL", 0.1)
    async with asyncio.timeout(LONGEST), aclosing(Broadcast(service).looks()) as looks:
        assert len((await until(looks, lambda look: not look.error)).stages) == 3
        supervisor.kill(profile, "kafka", signal.SIGSTOP)
        try:
            frozen = [await until(looks, lambda look: look.error), await anext(looks)]
        finally:
            supervisor.kill(profile, "kafka", signal.SIGCONT)
        assert len((await until(looks, lambda look: not look.error)).stages) == 3
    for look in frozen:
        assert look.error == "Kafka has not answered within 3 s"
        assert (look.stages, look.stores) == ([], {"Neo4j": 0, "OpenSearch": 0})
        assert [one.lag for one in look.generations] == [None]


@pytest.mark.servers
async def test_a_store_that_is_down_is_named_and_kafka_is_still_shown(flow, stores, monkeypatch):
    async def down() -> int:
        raise watching.Outage("Neo4j is away")

    monkeypatch.setattr(stores.neo4j, "count", down)
    async with Watch(flow, stores) as watch:
        look = await watch.look()
    assert (look.error, look.stores, len(look.stages)) == ("Neo4j is away", {"OpenSearch": 0}, 3)


# Dead letters


async def letters(settings: Settings, *made: tuple[str, bytes | None, str]) -> list[Record]:
    """Writes dead letters of embed: key, value and reason, a millisecond apart; returns their records."""
    topic, sent = topics.dead_letters(settings, "embed"), []
    first = int(time.time() * 1000) - len(made)
    async with clients.letter_producer(settings) as producer:
        for n, (key, value, reason) in enumerate(made):
            record = Record(settings.topic, 1, n, key.encode(), value, 1000)
            headers = letter_headers(record, "embed", Rejected(reason, f"because of {reason}"))  # type: ignore[arg-type]
            at = await producer.send_and_wait(
                topic, key=record.key, value=value, headers=headers, timestamp_ms=first + n
            )
            sent.append(replace(record, topic=topic, partition=at.partition, offset=at.offset, headers=headers))
    return sent


@pytest.mark.servers
async def test_the_newest_dead_letters_come_with_their_reasons(service):
    settings = service.settings
    sent = await letters(
        settings,
        ("a", b'{"text": 1}', "schema"),
        ("b", b"\xff", "not-json"),
        ("c", "ü".encode() * 3000, "not-json"),
        ("d", None, "schema"),
        ("e", bytes(5) + b'{"text": 5}', "schema"),  # in the Confluent wire format
    )
    marker = redriven_headers(deadletters.DeadLetter.of(sent[0]))
    async with clients.letter_producer(settings) as producer:
        await clients.send_letter(producer, topics.dead_letters(settings, "embed"), b"a", None, marker)
    async with client(service) as http:
        everything = (await http.get("/flow/dead-letters")).json()
        two = (await http.get("/flow/dead-letters", params={"stage": "embed", "limit": 2})).json()
        others = (await http.get("/flow/dead-letters", params={"stage": "index"})).json()
        wrong = [
            await http.get("/flow/dead-letters", params=asked)
            for asked in ({"limit": 0}, {"limit": 10**6}, {"stage": "x"})
        ]
    found = {letter["key"]: letter for letter in everything["letters"]}
    assert list(found) == ["e", "d", "c", "b", "a"]
    assert everything["reasons"] == {"embed": {"not-json": 2, "schema": 2}, "expand": {}, "index": {}}
    assert (found["a"]["redriven"] is None, found["b"]["redriven"]) == (False, None)
    assert [found[key]["value"] for key in "abde"] == ['{"text": 1}', None, None, '{"text": 5}']
    assert found["c"]["value"] == "ü" * serving.SHOWN_VALUE
    assert found["c"] | {"value": "", "at": 0} == {
        "stage": "embed",
        "place": "0@2",
        "at": 0,
        "redriven": None,
        "reason": "not-json",
        "detail": "because of not-json",
        "topic": settings.topic,
        "partition": 1,
        "offset": 2,
        "attempts": 1,
        "key": "c",
        "size": 6001,
        "value": "",
    }
    assert two == {"letters": everything["letters"][:2], "reasons": {"embed": everything["reasons"]["embed"]}}
    assert others == {"letters": [], "reasons": {"index": {}}}
    assert [problem(answer)["status"] for answer in wrong] == [422] * 3


@pytest.mark.servers
async def test_only_the_end_of_a_long_topic_of_dead_letters_is_read(flow):
    await letters(flow, *((f"c{n}", b"{", "not-json") for n in range(5)))
    newest = await deadletters.newest(flow, "embed", 2)
    assert [letter.record.key for letter in newest] == [b"c4", b"c3"]
