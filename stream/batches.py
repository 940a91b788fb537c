"""Splits a sequence into parts of a bounded size."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def split(items: Iterable[Item], size: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
    """Consecutive parts whose sizes add up to at most `limit`; a larger item is a part of its own."""
    part: list[Item] = []
    total = 0
    for item in items:
        more = size(item)
        if part and total + more > limit:
            yield part
            part, total = [], 0
        part.append(item)
        total += more
    if part:
        yield part
