"""The time of one request."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stream.search.answer import Timing


@dataclass(slots=True)
class Clock:
    """What is left of a request's time, and how long each step took."""

    seconds: float
    began: float = field(default_factory=time.perf_counter)
    timings: list[Timing] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return max(self.began + self.seconds - time.perf_counter(), 0)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Records when a step begins and how long it takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings.append(Timing(name, 1000 * (start - self.began), 1000 * (time.perf_counter() - start)))
