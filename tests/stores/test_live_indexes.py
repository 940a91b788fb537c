"""If these fail, other clients of the stores are given the name of an index that no longer is the live one."""

import pytest

from stream.config import Settings
from stream.stores import LiveIndexes, Stores, open_stores
from stream.stores.base import Generation

BOTH = frozenset({"Neo4j", "OpenSearch"})


@pytest.mark.parametrize(
    ("generations", "live"),
    [
        ([], {}),
        ([Generation(1, "", BOTH)], {"": LiveIndexes("chunks", "chunks-1", "chunk_qwen_idx")}),
        (
            [Generation(1, ""), Generation(2, "", BOTH), Generation(3, "v2", BOTH), Generation(4, "v3")],
            {
                "": LiveIndexes("chunks", "chunks-2", "chunk_qwen_idx_2"),
                "v2": LiveIndexes("chunks.v2", "chunks-3", "chunk_qwen_idx_3"),
            },
        ),
        (  # a swap is in progress
            [Generation(1, "", frozenset({"OpenSearch"})), Generation(2, "", frozenset({"Neo4j"}), swapping=True)],
            {"": LiveIndexes("chunks", "chunks-1", "chunk_qwen_idx_2")},
        ),
    ],
)
async def test_each_flow_has_the_names_of_what_is_live(monkeypatch, generations, live):
    async def known(_):
        return generations

    monkeypatch.setattr(Stores, "generations", known)
    async with open_stores(Settings(_env_file=None)) as stores:
        assert await stores.live_indexes() == live
