"""Dynamic batching: queries that wait at the same time are encoded together, as model servers do it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 64  # items of one call


class Together(Generic[Item, Result]):
    """Calls a function with all items that wait for it, one call at a time.

    The function returns a result or an exception for each item, in order; an exception that it raises is the result of
    each item of its call. All calls must come from one event loop.
    """

    def __init__(self, call: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]]) -> None:
        self._call = call
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """The result of one item."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        """Belongs to no caller: one that is cancelled does not take the results from the others."""
        await asyncio.sleep(0)  # callers that begin in the same step of the event loop share the first call
        while self._waiting:
            taken, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            results: Sequence[Result | Exception]
            try:
                results = await self._call([item for item, _ in taken])
            except Exception as error:
                results = [error] * len(taken)
            for (_, future), result in zip(taken, results, strict=True):
                if future.cancelled():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
        self._running = None
