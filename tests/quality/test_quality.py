"""If this fails, search finds fewer of the right chunks than it did: a model, an analyser or a query has changed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from conftest import embedding_server
from processes import child
from quality import judged

from stream import children
from stream.config import SearchMode, Settings
from stream.evaluate.evaluation import run
from stream.local.profile import Profile
from stream.local.trained import MINILM, SPLADE_TINY

pytestmark = pytest.mark.servers

# The least nDCG@10 of each mode: what was measured with Python 3.11, minus 0.03 for the docstrings of other versions.
FLOORS: dict[SearchMode, float] = {"bm25": 0.30, "splade": 0.34, "dense": 0.43, "lexical": 0.35, "hybrid": 0.47}


@pytest.fixture
def variables(variables: dict[str, str], trained_models: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The models and the settings of the local profile."""
    models = {
        name: value
        for name, value in Profile(tmp_path).environment().items()
        if name.startswith(("STREAM_EMBED_", "STREAM_SPLADE_"))
    }
    with embedding_server("--model", MINILM.name, "--weights", str(MINILM.folder(trained_models))) as address:
        own = {"STREAM_EMBED_URL": address, "STREAM_SPLADE_MODEL": str(SPLADE_TINY.folder(trained_models))}
        yield variables | models | own


async def test_each_mode_finds_the_chunks_that_answer(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(children, "worker", child)
    chunks = {chunk["chunk_id"]: orjson.dumps(chunk) for chunk in judged.chunks()}
    collection = replace(judged.JUDGED, name="judged", chunks=chunks)
    report, _ = await run(settings, {}, collection, list(FLOORS), depth=100)
    found = {row.mode: row.figures["nDCG@10"].mean for row in report.rows}
    print(found)
    assert report.rejected == 0
    for mode, least in FLOORS.items():
        assert found[mode] >= least, f"{mode}: {found}"
