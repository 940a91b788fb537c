"""`stream worker STAGE` that kills itself at a point of a batch once the file that ORDER names holds the point's name.

Before the batch is acknowledged, it waits long enough for Faust to commit and then dies: a record that was acknowledged
too early is then lost. At the point "cut off" it does not die: nothing that it sends reaches Kafka for a while. At the
point "hang" it does not die: its stage never returns.
"""

import asyncio
import os
import signal
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.produce import ProduceRequest

from stream.cli import main
from stream.stages.registry import open_stage
from stream.worker import run
from stream.worker.loop import BatchLoop

POINTS = {
    "taken": "once it has taken a batch",
    "sent": "when outputs are on the wire and Kafka has not acknowledged them, or one store of two has a batch",
    "published": "when Kafka or the stores have a whole batch and Faust has no acknowledgement",
    "acknowledged": "when a batch is acknowledged and not committed",
}
SESSIONS_CUT_OFF = 4  # session timeouts during which nothing reaches Kafka


def ordered(point: str) -> bool:
    order = Path(os.environ["ORDER"])
    if not order.exists() or order.read_text() != point:
        return False
    order.unlink()  # otherwise the restarted worker dies too
    return True


async def die(settings) -> None:
    await asyncio.sleep(4 * settings.commit_interval)
    die_at_once()


def die_at_once() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@asynccontextmanager
async def dying_stage(name, settings):
    async with open_stage(name, settings) as stage:

        async def process(records):
            if ordered("taken"):
                await die(settings)
            if ordered("hang"):
                await asyncio.Event().wait()
            if name == "index" and ordered("sent"):
                both = stage.process.keywords["stores"]
                await stage.process.func(records, **stage.process.keywords | {"stores": both[:1]})
                await die(settings)
            return await stage.process(records)

        yield replace(stage, process=process)


class DyingLoop(BatchLoop):
    async def _publish(self, outcomes):
        if ordered("cut off"):
            Network.back = time.monotonic() + SESSIONS_CUT_OFF * self.settings.session_timeout
        await super()._publish(outcomes)
        if ordered("published"):
            await die(self.settings)

    def _measure(self, batch, outcomes):
        if ordered("acknowledged"):
            die_at_once()
        super()._measure(batch, outcomes)


class Network:
    """All connections to Kafka, those of Faust's thread included."""

    back = 0.0  # nothing is sent before this time.monotonic()
    send = AIOKafkaConnection.send

    @staticmethod
    def sending(connection, request, expect_response=True):
        if time.monotonic() < Network.back:
            return asyncio.ensure_future(Network.late(connection, request, expect_response))
        answer = Network.send(connection, request, expect_response)
        if isinstance(request, ProduceRequest) and ordered("sent"):
            die_at_once()
        return answer

    @staticmethod
    async def late(connection, request, expect_response):
        await asyncio.sleep(Network.back - time.monotonic())
        return await Network.send(connection, request, expect_response)


if __name__ == "__main__":
    AIOKafkaConnection.send = Network.sending
    run.open_stage, run.BatchLoop = dying_stage, DyingLoop
    sys.argv[:1] = ["stream", "worker"]
    main()
