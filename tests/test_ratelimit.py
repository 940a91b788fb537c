"""If this fails, a replay or a reindex overloads the servers for other users."""

import pytest

from stream.ratelimit import RateLimiter


class Time:
    def __init__(self):
        self.now, self.slept = 100.0, []

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


async def test_no_more_than_so_many_a_second():
    time = Time()
    limiter = RateLimiter(4, lambda: time.now, time.sleep)
    for _ in range(4):
        await limiter.acquire()
    await limiter.acquire(8)
    await limiter.acquire()
    assert time.slept == pytest.approx([0, 0.25, 0.25, 0.25, 0.25, 2])


async def test_what_was_not_used_is_not_made_up_for():
    time = Time()
    limiter = RateLimiter(1, lambda: time.now, time.sleep)
    await limiter.acquire()
    time.now += 60
    await limiter.acquire()
    await limiter.acquire()
    assert time.slept == pytest.approx([0, 0, 1])


async def test_without_a_limit_nobody_waits():
    time = Time()
    limiter = RateLimiter(None, lambda: time.now, time.sleep)
    for _ in range(3):
        await limiter.acquire(1000)
    assert time.slept == []
