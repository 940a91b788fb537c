"""If these fail, one bad record makes good ones fail or costs too many requests."""

import math

import pytest

from stream.bisection import isolate
from stream.errors import Outage, Refused
from stream.records import Rejected


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256])
async def test_the_culprit_alone_is_rejected_for_few_calls(size):
    calls = []

    async def attempt(items):
        calls.append(len(items))
        if 0 in items:
            raise Refused("no zero")
        return [-i for i in items]

    for culprit in {0, size // 2, size - 1}:
        calls.clear()
        items = [1] * size
        items[culprit] = 0
        results = await isolate(items, attempt, "refused-by-model")
        assert results[culprit] == Rejected("refused-by-model", "no zero")
        assert [r for i, r in enumerate(results) if i != culprit] == [-1] * (size - 1)
        assert len(calls) <= 1 + math.ceil(math.log2(size)) + 2


@pytest.mark.parametrize("culprits", [{0, 1}, {0, 255}, {3, 4, 200}, set(range(0, 256, 7)), set(range(256))])
async def test_every_culprit_is_found_and_what_is_good_goes_out_once_and_in_order(culprits):
    done, calls = [], []

    async def attempt(items):
        calls.append(items)
        if culprits & set(items):
            raise Refused("no")
        done.extend(items)
        return items

    results = await isolate(range(256), attempt, "refused-by-model")
    assert {i for i, result in enumerate(results) if isinstance(result, Rejected)} == culprits
    assert done == [i for i in range(256) if i not in culprits]
    assert len(calls) <= 4 * 256


async def test_an_outage_is_nobody_s_fault():
    async def attempt(items):
        raise Outage("down")

    with pytest.raises(Outage):
        await isolate([1, 2], attempt, "refused-by-model")


async def test_nothing_costs_nothing():
    async def attempt(items):
        raise AssertionError

    assert await isolate([], attempt, "refused-by-model") == []
