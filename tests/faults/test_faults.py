"""If one of these fails, a fault that happens in production loses a chunk or leaves a wrong one."""

import os
import random
from collections.abc import AsyncIterator

import pytest
from conftest import isolated
from faults.faults import FAULTS, Fault
from faults.pipeline import Pipeline, pipeline
from faults.run import run

from stream.local.profile import Profile

pytestmark = pytest.mark.servers

SEED = int(os.environ.get("SEED", "1"))


@pytest.fixture(scope="module")
async def flow(profile: Profile | None, environment: dict[str, str]) -> AsyncIterator[Pipeline]:
    if profile is None:
        pytest.skip("faults are done to servers of our own: unset STREAM_TEST_ENV_FILE")
    async with pipeline(profile, isolated(environment), SEED) as started:
        yield started


@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_nothing_is_lost_or_wrong_and_nothing_is_dead_lettered(flow, fault: Fault):
    result = await run(fault, flow, random.Random(f"{SEED} {fault}"))
    print(result)
    assert result.strikes > 0
    assert result.wrong == []
    assert result.dead_letters == 0


async def test_after_all_of_them_nothing_that_was_ever_published_is_lost_or_wrong(flow):
    assert await flow.wrong(everything=True) == []
