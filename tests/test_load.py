"""If these fail, the figures in the docs are wrong."""

import asyncio
import json
import math

import numpy as np
import pytest
from support import DIMENSIONS, expanded
from typer.testing import CliRunner

from stream.benchmark.load import quantile
from stream.cli import app
from stream.config import STAGES
from stream.errors import ConfigurationError
from stream.stores.base import Put

BUCKETS = [(1.0, 50.0), (2.0, 90.0), (10.0, 100.0), (math.inf, 100.0)]


@pytest.mark.parametrize(("q", "seconds"), [(0.25, 0.5), (0.5, 1), (0.7, 1.5), (0.95, 6), (1, 10)])
def test_a_quantile_lies_within_its_bucket_by_its_rank(q, seconds):
    assert quantile(BUCKETS, q) == pytest.approx(seconds)


def test_beyond_the_last_bound_it_is_that_bound_and_of_nothing_it_is_none():
    assert quantile([(1.0, 1.0), (math.inf, 100.0)], 0.99) == 1
    assert math.isnan(quantile([(1.0, 0.0), (math.inf, 0.0)], 0.5))


@pytest.mark.servers
async def test_chunks_are_followed_to_the_stores(settings, stores, tmp_path):
    plot = tmp_path / "load.svg"
    asked = ["bench", "load", "--chunks", "100", "--json", "--plot", str(plot)]
    ended = await asyncio.to_thread(CliRunner().invoke, app, asked, catch_exceptions=False)
    result = json.loads(ended.stdout)
    assert result["chunks"] == 100
    assert set(result["chunks_a_second"]) == set(result["peak_memory_mib"]) == set(STAGES)
    assert 0 < result["latency_seconds"]["50%"] <= result["latency_seconds"]["99%"] <= result["seconds"]
    assert result["looks"][-1]["done"] == dict.fromkeys(STAGES, 100)
    assert all(mib > 0 for mib in result["peak_memory_mib"].values())
    assert plot.read_text().startswith("<?xml")


@pytest.mark.servers
async def test_a_store_that_is_in_use_is_left_alone(settings, stores):
    await stores.neo4j.write([Put(expanded("mine"), np.ones(DIMENSIONS) / DIMENSIONS**0.5)])
    with pytest.raises(ConfigurationError, match="Neo4j holds 1 chunks"):
        await asyncio.to_thread(CliRunner().invoke, app, ["bench", "load"], catch_exceptions=False)
