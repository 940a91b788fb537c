"""Finds the rejected items of a batch by bisection."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from stream.errors import Refused
from stream.records import Reason, Rejected

Item = TypeVar("Item")
Result = TypeVar("Result")


async def isolate(
    items: Sequence[Item], attempt: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], reason: Reason
) -> list[Result | Rejected]:
    """Returns one result of `attempt` for each item, in order. Bisects the items when `attempt` raises `Refused`.

    Keeps successful results and sends the rest after the first rejected item is found. One rejected item among n
    costs at most ⌈log2 n⌉ + 2 further calls.
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
    while end - len(before) > 1:  # the first rejected item is one of items[len(before):end]
        middle = (len(before) + end) // 2
        try:
            before += await attempt(items[len(before) : middle])
        except Refused:
            end = middle
    rejected = await isolate(items[len(before) : end], attempt, reason)
    rest = items[end:]
    try:
        return [*before, *rejected, *(await attempt(rest) if rest else [])]
    except Refused:
        half = (len(rest) + 1) // 2
        halves = [await isolate(part, attempt, reason) for part in (rest[:half], rest[half:])]
        return [*before, *rejected, *halves[0], *halves[1]]
