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
    """Results of `attempt` for each item; where it raises `Refused`, the culprit is searched by halves.

    What a half gave is kept, and what lies behind the culprit goes out once it is found: one culprit among n items
    costs at most ⌈log2 n⌉ + 2 further calls, and items keep their order.
    """
    if not items:
        return []
    try:
        return list(await attempt(items))
    except Refused as refusal:
        if len(items) == 1:
            return [Rejected(reason, str(refusal))]
    before: list[Result | Rejected] = []
    end = len(items)
    while end - len(before) > 1:  # the first culprit is one of items[len(before):end]
        middle = (len(before) + end) // 2
        try:
            before += await attempt(items[len(before) : middle])
        except Refused:
            end = middle
    culprit = await isolate(items[len(before) : end], attempt, reason)
    behind = items[end:]
    try:
        return [*before, *culprit, *(await attempt(behind) if behind else [])]
    except Refused:
        half = (len(behind) + 1) // 2
        halves = [await isolate(part, attempt, reason) for part in (behind[:half], behind[half:])]
        return [*before, *culprit, *halves[0], *halves[1]]
