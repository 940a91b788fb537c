"""`stream worker STAGE` that kills itself at a point of a batch once the file that ORDER names holds the point's name.

Before it dies it gives Faust the time to commit what was acknowledged, so that what was acknowledged too early is lost.
"""

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from stream import worker
from stream.cli import main
from stream.loop import BatchLoop
from stream.stages import open_stage

POINTS = {
    "taken": "once it has taken a batch",
    "sent": "when half of a batch's effects are out (in Kafka, or in one store of two) and none is acknowledged",
    "published": "when Kafka or the stores have a whole batch and Faust has no acknowledgement",
    "acknowledged": "when a batch is acknowledged and not committed",
}


def ordered(point: str) -> bool:
    order = Path(os.environ["ORDER"])
    if not order.exists() or order.read_text() != point:
        return False
    order.unlink()  # else its successor would die of it too
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
            if name == "index" and ordered("sent"):
                both = stage.process.keywords["stores"]
                await stage.process.func(records, **stage.process.keywords | {"stores": both[:1]})
                await die(settings)
            return await stage.process(records)

        yield replace(stage, process=process)


class DyingLoop(BatchLoop):
    async def _publish(self, outcomes):
        if not self.stage.writes_stores and ordered("sent"):
            await super()._publish(outcomes[: (len(outcomes) + 1) // 2])
            await die(self.settings)
        await super()._publish(outcomes)
        if ordered("published"):
            await die(self.settings)

    def _measure(self, batch, outcomes):
        if ordered("acknowledged"):
            die_at_once()
        super()._measure(batch, outcomes)


if __name__ == "__main__":
    worker.open_stage, worker.BatchLoop = dying_stage, DyingLoop
    sys.argv[:1] = ["stream", "worker"]
    main()
