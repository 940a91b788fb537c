"""Workers that fail, on real servers: if these fail, chunks are lost between the topic and the stores."""

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path

import pytest
from ports import free_ports
from support import LONGEST, Worker, read

from stream import corpus
from stream.config import STAGES
from stream.kafka import topics
from stream.operate.publish import publish
from stream.operate.status import caught_up, stages
from stream.operate.verify import verify

pytestmark = pytest.mark.servers

COUNT = 1000
FAULTY = str(Path(__file__).parent / "faulty_worker.py")


@pytest.fixture
def lines() -> list[bytes]:
    return [json.dumps(chunk).encode() for chunk in islice(corpus.chunks(), COUNT)]


async def finished(flow) -> None:
    async with asyncio.timeout(LONGEST):
        await caught_up(flow)


@pytest.mark.parametrize("stage", STAGES)
async def test_a_bug_in_a_stage_ends_the_worker_and_nothing_is_acknowledged_early(flow, stores, lines, stage):
    ports = dict(zip(STAGES, free_ports(3), strict=True))
    await publish(lines[:256], flow)
    async with AsyncExitStack() as stack:
        for other in STAGES:
            if other != stage:
                await stack.enter_async_context(Worker(other, port=ports[other]))
        async with Worker(stage, FAULTY, "raising_in_process", port=ports[stage]) as faulty:
            assert await faulty.exit_code() == 75
        assert "a bug in the stage" in faulty.log.read_text()
        await assert_nothing_acknowledged_early(flow, stores, stage)
        await stack.enter_async_context(Worker(stage, port=ports[stage]))
        await finished(flow)
        report = await verify(flow, stores)
        assert (report.differences, report.ahead_chunks) == ([], [])


@pytest.mark.parametrize("fault", ["failing_to_send", "never_acknowledged"])
async def test_a_send_that_fails_ends_the_worker_and_nothing_is_acknowledged_early(flow, stores, lines, fault):
    port, *others = free_ports(3)
    await publish(lines[:256], flow)
    async with Worker("embed", FAULTY, fault, port=port, STREAM_OUTAGE_BOUND="3") as faulty:
        assert await faulty.exit_code() == 75
    await assert_nothing_acknowledged_early(flow, stores, "embed")
    if fault == "never_acknowledged":
        assert (await stages(flow))[0].done == 0
    async with (
        Worker("embed", port=port),
        Worker("expand", port=others[0]),
        Worker("index", port=others[1]),
    ):
        await finished(flow)
        report = await verify(flow, stores)
        assert (report.differences, report.ahead_chunks) == ([], [])


async def test_an_agent_that_ends_ends_the_worker_and_nothing_is_acknowledged_early(flow, lines):
    """Otherwise the worker would go on without taking records."""
    (port,) = free_ports(1)
    await publish(lines[:256], flow)
    async with Worker("embed", FAULTY, "ending_agent", port=port) as faulty:
        assert await faulty.exit_code() == 75
    await everything_embedded_by_another(flow, lines[:256], port)


async def test_a_worker_that_cannot_finish_before_its_partitions_move_ends(flow, lines):
    """Otherwise it would publish older records after the new owner has published newer ones."""
    port, other = free_ports(2)
    await publish(lines[:256], flow)
    async with Worker("embed", FAULTY, "stuck_in_process", port=port, STREAM_DRAIN_TIMEOUT="2") as stuck:
        await stuck.in_the_middle()
        async with Worker("embed", port=other, STREAM_INSTANCE="other"):
            assert await stuck.exit_code() == 75
    await everything_embedded_by_another(flow, lines[:256], port)


async def everything_embedded_by_another(flow, lines, port):
    done, *_ = await stages(flow)
    assert done.done <= len({record.key for record in await read(flow, topics.source(flow, "expand"))})
    async with Worker("embed", port=port), asyncio.timeout(LONGEST):
        await caught_up(flow, ["embed"])
    outputs = {record.key for record in await read(flow, topics.source(flow, "expand"))}
    assert outputs == {json.loads(line)["chunk_id"].encode() for line in lines}


async def assert_nothing_acknowledged_early(flow, stores, stage):
    """Asserts that a stage committed no more records than it has outputs. Each chunk is published once."""
    done = next(found.done for found in await stages(flow) if found.stage == stage)
    if target := topics.target(flow, stage):
        outputs = len({record.key for record in await read(flow, target)})
    else:
        outputs = await stores.neo4j.count()
    assert done <= outputs
    assert done < 256


async def test_sigterm_in_the_middle_of_a_batch_drains_it(flow, lines):
    (port,) = free_ports(1)
    await publish(lines, flow)
    async with Worker("embed", port=port) as worker:
        await worker.in_the_middle()
        assert await worker.end(signal.SIGTERM) == 0
    done, *_ = await stages(flow)
    outputs = [record.key for record in await read(flow, topics.source(flow, "expand"))]
    assert done.done == len(outputs) == len(set(outputs))
