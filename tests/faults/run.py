"""One run of one fault: publish, strike, recover, check."""

import random
import time
from dataclasses import dataclass, field

from faults.faults import Fault
from faults.pipeline import Pipeline


@dataclass
class Result:
    """`wrong` names what was lost or is wrong; `recovery` is seconds from the end of the fault to full recovery."""

    seed: int = 0
    records: int = 0
    strikes: int = 0
    seconds: float = 0
    recovery: float = 0
    dead_letters: int = 0
    wrong: list[str] = field(default_factory=list)


async def run(fault: Fault, pipeline: Pipeline, rng: random.Random) -> Result:
    """Publishes while the fault strikes and until it is over, waits for recovery, and checks what was published."""
    history = pipeline.history
    started, sent = time.monotonic(), history.sent
    async with history.publishing():
        for worker in pipeline.workers.values():
            await worker.until_working()
        strikes = await fault.strike(pipeline, rng)
    over = time.monotonic()
    await pipeline.recovered()
    recovery = time.monotonic() - over
    wrong = await pipeline.wrong()
    return Result(
        records=history.sent - sent,
        strikes=strikes,
        seconds=time.monotonic() - started,
        recovery=recovery,
        dead_letters=await pipeline.dead_letters(),
        wrong=wrong,
    )
