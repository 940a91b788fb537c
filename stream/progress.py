"""Signs of life from within a batch: they tell a stage that is slow from one that hangs.

Whatever a stage calls that may take long (a request, a query, a step on the GPU) says `made()` when it returns. Who
has started the work hears of it, and nobody else: a context variable goes along into tasks and `asyncio.to_thread`.
"""

from collections.abc import Callable
from contextvars import ContextVar

_told: ContextVar[Callable[[], None]] = ContextVar("progress", default=lambda: None)


def tell(listener: Callable[[], None]) -> None:
    """From now on `made` calls the listener, in this context and those that are copied from it."""
    _told.set(listener)


def made() -> None:
    """Says that a call has returned."""
    _told.get()()
