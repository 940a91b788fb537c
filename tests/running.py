"""A worker in the test's process: the product's app and loop, with the test's stage."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NoReturn

from stream.config import Settings
from stream.kafka import clients, deadletters
from stream.records import Done, Outcome
from stream.stages.base import Stage
from stream.worker.loop import BatchLoop
from stream.worker.outputs import Outputs
from stream.worker.source import Source


async def passing(chunks: Sequence[Any]) -> list[Outcome]:
    """A stage that returns its input unchanged."""
    return [Done(dict(chunk)) for chunk in chunks]


def _fail(error: BaseException) -> NoReturn:
    raise AssertionError(f"the worker would have ended: {error!r}") from error


@asynccontextmanager
async def running(
    settings: Settings, process: Callable[[Sequence[Any]], Awaitable[Sequence[Outcome]]] = passing
) -> AsyncIterator[Source]:
    """An embed worker that runs `process`; drained and stopped at the end."""
    async with clients.producer(settings) as producer, clients.letter_producer(settings) as letters:
        source = Source("embed", settings)
        outputs = Outputs("embed", producer, letters, settings)
        earlier = partial(deadletters.rejected, settings, "embed", settings.reject_count)
        loop = BatchLoop(Stage("embed", "chunk", process), source, outputs, settings, _fail, earlier=earlier)
        await source.start()
        try:
            yield source
        finally:
            await source.stop()
            loop._finisher.cancel()
            loop._watchdog.cancel()
