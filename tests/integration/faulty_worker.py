"""Runs a worker with an injected fault: `faulty_worker.py FAULT STAGE`. The stage and the loop are the package's."""

import asyncio
import sys
from contextlib import asynccontextmanager
from dataclasses import replace

from aiokafka.errors import KafkaTimeoutError

from stream import config
from stream.kafka import clients
from stream.stages.registry import open_stage
from stream.worker import run
from stream.worker.source import Source

GOOD_BATCHES = 2  # before the fault


async def raising_in_process():
    """The third batch raises an exception."""
    raise RuntimeError("a bug in the stage")


async def stuck_in_process():
    """The third batch never ends."""
    await asyncio.Event().wait()


def meeting(fault):
    """An `open_stage` whose stage processes `GOOD_BATCHES` batches and then has the fault in each."""

    @asynccontextmanager
    async def open_faulty(name, settings):
        batches = 0
        async with open_stage(name, settings) as stage:

            async def process(records):
                nonlocal batches
                batches += 1
                if batches > GOOD_BATCHES:
                    await fault()
                return await stage.process(records)

            yield replace(stage, process=process)

    return open_faulty


async def ending_agent(source):
    """Faust ends the agent after two batches."""
    source.batches = getattr(source, "batches", 0) + 1
    if source.batches > GOOD_BATCHES:
        raise asyncio.CancelledError
    return await take(source)


@asynccontextmanager
async def failing_to_send(settings, **options):
    """Kafka acknowledges the first outputs. All later sends fail."""
    sent = 0
    async with real_producer(settings, **options) as producer:
        send = producer.send_batch

        async def failing(batch, *args, **kwargs):
            nonlocal sent
            sent += batch.record_count()
            if sent <= GOOD_BATCHES * settings.batch_size + settings.batch_size // 2:
                return await send(batch, *args, **kwargs)
            future = asyncio.get_running_loop().create_future()
            future.set_exception(KafkaTimeoutError())
            return future

        producer.send_batch = failing
        yield producer


@asynccontextmanager
async def never_acknowledged(settings, **options):
    """Kafka has the outputs, but no acknowledgement ever arrives."""
    async with real_producer(settings, **options) as producer:
        send = producer.send_batch

        async def silent(*args, **kwargs):
            await send(*args, **kwargs)
            return asyncio.get_running_loop().create_future()

        producer.send_batch = silent
        yield producer


real_producer = clients.producer
take = Source.take

if __name__ == "__main__":
    _, fault, stage = sys.argv
    if fault.endswith("_in_process"):
        run.open_stage = meeting(globals()[fault])
    elif fault == "ending_agent":
        Source.take = ending_agent
    else:
        clients.producer = globals()[fault]
    run.run(stage, config.load())
