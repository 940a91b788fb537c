"""Chooses the replica that gets the next request."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from stream import metrics
from stream.errors import Outage

COOLDOWN = 10.0  # seconds without requests after a failure


class Replicas:
    """Chooses the address with the fewest requests in flight; one in cooldown only if all are."""

    def __init__(self, addresses: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._in_flight = dict.fromkeys(addresses, 0)
        self._cooldown_until = dict.fromkeys(addresses, 0.0)
        self._clock = clock

    @contextmanager
    def one(self) -> Iterator[str]:
        """An address for one request; an `Outage` inside the block starts the address's cooldown."""
        address = min(self._in_flight, key=self._priority)
        up = metrics.embed_server_up.labels(address)
        self._in_flight[address] += 1
        try:
            yield address
            up.set(1)
        except Outage:
            self._cooldown_until[address] = self._clock() + COOLDOWN
            up.set(0)
            raise
        finally:
            self._in_flight[address] -= 1

    def _priority(self, address: str) -> tuple[float, int]:
        until = self._cooldown_until[address]
        return (until if until > self._clock() else 0.0, self._in_flight[address])
