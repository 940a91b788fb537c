"""How fast a stage is without Kafka: from the bytes of input records to the bytes of output records."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from stream.config import Settings
from stream.contracts import Contract
from stream.records import Decoder, Done, Outcome, Record
from stream.worker.outputs import encoded


async def rate_of_stage(
    process: Callable[[Sequence[Any]], Awaitable[Sequence[Outcome]]],
    contract: Contract,
    batches: Iterator[Sequence[Record]],
    settings: Settings,
    seconds: float,
) -> float:
    """Records a second, with as many concurrent batches as a worker has in flight."""
    decode = Decoder.of(contract, settings)
    started, done = time.perf_counter(), 0

    async def one_after_another() -> None:
        nonlocal done
        while time.perf_counter() - started < seconds:
            records = next(batches)
            chunks: list[Any] = [decode(record) for record in records]
            for record, outcome in zip(records, await process(chunks), strict=True):
                assert isinstance(outcome, Done) and outcome.output
                encoded(record, outcome.output)
            done += len(records)

    await asyncio.gather(*(one_after_another() for _ in range(settings.in_flight)))
    return done / (time.perf_counter() - started)
