"""Progress within a batch: distinguishes a slow stage from one that hangs.

Each call of a stage that may take long (a request, a query, a step on the GPU) calls `made()` when it returns. This
notifies only the listener of the code that started the work: tasks and `asyncio.to_thread` copy the context variable.
"""

from collections.abc import Callable
from contextvars import ContextVar

_listener: ContextVar[Callable[[], None]] = ContextVar("progress", default=lambda: None)


def tell(listener: Callable[[], None]) -> None:
    """From now on `made` calls the listener, in this context and its copies."""
    _listener.set(listener)


def made() -> None:
    """Notifies the listener that a call has returned."""
    _listener.get()()
