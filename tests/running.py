"""A worker within the test's own process: the product's app and loop, and a stage that the test brings."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import faust

from stream import kafka, worker
from stream.config import Settings
from stream.loop import BatchLoop, Stage
from stream.records import Done, Outcome


async def passing(chunks: Sequence[Any]) -> list[Outcome]:
    """A stage that passes all on as it came."""
    return [Done(dict(chunk)) for chunk in chunks]


def _fail(error: BaseException) -> NoReturn:
    raise AssertionError(f"the worker would have ended: {error!r}") from error


@asynccontextmanager
async def running(
    settings: Settings, process: Callable[[Sequence[Any]], Awaitable[Sequence[Outcome]]] = passing
) -> AsyncIterator[faust.App]:
    """An embed worker that runs `process`; stopped, with a drain, at the end."""
    async with kafka.producer(settings) as producer, kafka.letter_producer(settings) as letters:
        app = worker._app("embed", settings)
        loop = BatchLoop(Stage("embed", "chunk", process), producer, letters, settings, _fail)
        loop.attach(app)
        await app.start()
        try:
            yield app
        finally:
            await app.stop()
            loop._finisher.cancel()
            loop._pulse.cancel()
