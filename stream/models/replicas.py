"""Which of several servers that do the same gets the next request."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from stream import metrics
from stream.errors import Outage

REST = 10.0  # seconds without requests after one has failed


class Replicas:
    """Hands out addresses: the one with the fewest requests in flight; one that has just failed only if all have."""

    def __init__(self, addresses: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._in_flight = dict.fromkeys(addresses, 0)
        self._rests_until = dict.fromkeys(addresses, 0.0)
        self._clock = clock

    @contextmanager
    def one(self) -> Iterator[str]:
        """An address for one request; an `Outage` inside lets it rest."""
        address = min(self._in_flight, key=self._burden)
        up = metrics.embed_server_up.labels(address)
        self._in_flight[address] += 1
        try:
            yield address
            up.set(1)
        except Outage:
            self._rests_until[address] = self._clock() + REST
            up.set(0)
            raise
        finally:
            self._in_flight[address] -= 1

    def _burden(self, address: str) -> tuple[float, int]:
        until = self._rests_until[address]
        return (until if until > self._clock() else 0.0, self._in_flight[address])
