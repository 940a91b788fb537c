"""What becomes of a batch: one outcome a record, and the search for the one at fault."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from stream.errors import Refused
from stream.records import Reason, Rejected

Item = TypeVar("Item")
Result = TypeVar("Result")


async def isolate(
    items: Sequence[Item], attempt: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], reason: Reason
) -> list[Result | Rejected]:
    """Results of `attempt` for each item; where it raises `Refused`, the batch is halved until the culprit is alone.

    One culprit among n items costs at most 2·⌈log2 n⌉ further calls.
    """
    if not items:
        return []
    try:
        return list(await attempt(items))
    except Refused as refusal:
        if len(items) == 1:
            return [Rejected(reason, str(refusal))]
    half = len(items) // 2
    return [*await isolate(items[:half], attempt, reason), *await isolate(items[half:], attempt, reason)]
