"""A worker that kills itself at an exact point of a batch: `dying_worker.py POINT BATCH STAGE`.

Before it dies it gives Faust the time to commit what was acknowledged, so that what was acknowledged too early is lost.
"""

import asyncio
import os
import signal
import sys
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace

from stream import config, worker
from stream.loop import BatchLoop
from stream.stages import open_stage

POINTS = {
    "taken": "once it has taken a batch",
    "sent": "when half of a batch's effects are out (in Kafka, or in one store of two) and none is acknowledged",
    "published": "when Kafka or the stores have a whole batch and Faust has no acknowledgement",
    "acknowledged": "when a batch is acknowledged and not committed",
}

batches = Counter()


def reached(point: str) -> bool:
    batches[point] += 1
    return point == wanted and batches[point] == int(number)


async def die() -> None:
    await asyncio.sleep(4 * settings.commit_interval)
    die_at_once()


def die_at_once() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@asynccontextmanager
async def dying_stage(name, settings):
    async with open_stage(name, settings) as stage:

        async def process(records):
            if reached("taken"):
                await die()
            if name == "index" and reached("sent"):
                both = stage.process.keywords["stores"]
                await stage.process.func(records, **stage.process.keywords | {"stores": both[:1]})
                await die()
            return await stage.process(records)

        yield replace(stage, process=process)


class DyingLoop(BatchLoop):
    async def _publish(self, outcomes):
        if not self.stage.writes_stores and reached("sent"):
            await super()._publish(outcomes[: (len(outcomes) + 1) // 2])
            await die()
        await super()._publish(outcomes)
        if reached("published"):
            await die()

    def _measure(self, batch, outcomes):
        if reached("acknowledged"):
            die_at_once()
        super()._measure(batch, outcomes)


if __name__ == "__main__":
    _, wanted, number, stage = sys.argv
    worker.open_stage, worker.BatchLoop = dying_stage, DyingLoop
    settings = config.load()
    worker.run(stage, settings)
