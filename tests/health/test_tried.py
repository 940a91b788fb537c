"""If these fail, the doctor does not say that nobody has tried a user's version of a server."""

import json

import pytest

from stream.health import tried


@pytest.fixture(autouse=True)
def passed(tmp_path, monkeypatch):
    rows = [{"what": "Neo4j", "version": version} for version in ("2026.08.1", "5.26.30")]
    monkeypatch.setattr(tried, "FILE", tmp_path / "tried.json")
    tried.FILE.write_text(json.dumps([*rows, {"what": "Python", "version": "3.11"}]))
    tried.versions.cache_clear()
    yield
    tried.versions.cache_clear()


@pytest.mark.parametrize("version", ["5.26.30", "5.26.12", "2026.08.0"])
def test_a_minor_version_that_passed_is_fine(version):
    assert tried.remark("Neo4j", version) is None


@pytest.mark.parametrize("version", ["5.27.0", "2026.10.0", "5.27-aura"])
def test_any_other_is_named_with_those_that_passed(version):
    assert f"Neo4j {version}, only with 5.26.30, 2026.08.1" in (tried.remark("Neo4j", version) or "")
