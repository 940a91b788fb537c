"""Limits a rate."""

import asyncio
import time
from collections.abc import Awaitable, Callable


class RateLimiter:
    """Allows at most `rate` items a second on average; None: no limit."""

    def __init__(
        self,
        rate: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._due = clock()

    async def acquire(self, count: int = 1) -> None:
        """Waits until `count` more items are allowed."""
        if self._rate:
            now = self._clock()
            due, self._due = self._due, max(self._due, now) + count / self._rate
            await self._sleep(max(due - now, 0))
