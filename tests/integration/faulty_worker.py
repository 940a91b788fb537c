"""Runs a worker with an injected fault: `faulty_worker.py FAULT STAGE`. The stage and the loop are the package's."""

import asyncio
import sys
from contextlib import asynccontextmanager
from dataclasses import replace

import faust
from aiokafka.errors import KafkaTimeoutError

from stream import config
from stream.kafka import clients
from stream.stages.registry import open_stage
from stream.worker import run

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


async def ending_stream(stream, max_, within):
    """Faust's stream ends after two batches."""
    batches = 0
    async for events in noack_take(stream, max_, within):
        yield events
        batches += 1
        if batches == GOOD_BATCHES:
            return


@asynccontextmanager
async def failing_to_send(settings):
    """Kafka acknowledges the first outputs. All later sends fail."""
    sent = 0
    async with real_producer(settings) as producer:
        send = producer.send

        async def failing(*args, **kwargs):
            nonlocal sent
            sent += 1
            if sent <= GOOD_BATCHES * settings.batch_size + settings.batch_size // 2:
                return await send(*args, **kwargs)
            future = asyncio.get_running_loop().create_future()
            future.set_exception(KafkaTimeoutError())
            return future

        producer.send = failing
        yield producer


@asynccontextmanager
async def never_acknowledged(settings):
    """Kafka has the outputs, but no acknowledgement ever arrives."""
    async with real_producer(settings) as producer:
        send = producer.send

        async def silent(*args, **kwargs):
            await send(*args, **kwargs)
            return asyncio.get_running_loop().create_future()

        producer.send = silent
        yield producer


real_producer = clients.producer
noack_take = faust.Stream.noack_take

if __name__ == "__main__":
    _, fault, stage = sys.argv
    if fault.endswith("_in_process"):
        run.open_stage = meeting(globals()[fault])
    elif fault == "ending_stream":
        faust.Stream.noack_take = ending_stream
    else:
        clients.producer = globals()[fault]
    run.run(stage, config.load())
