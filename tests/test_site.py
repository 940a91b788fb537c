"""If these fail, the docs have a broken link, or a page without a menu entry."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", folder]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_the_site_is_built_and_every_link_in_it_leads_somewhere(tmp_path):
    done = build(ROOT / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs")
        assert (tmp_path / "site" / name.with_suffix("") / "index.html").is_file()
        assert f"- {name}\n" in (ROOT / "mkdocs.yml").read_text(), "the page is not in the menu"


@pytest.mark.parametrize("link", ["nowhere.md", "flow.md#nowhere", "../README.md#nowhere"])
def test_a_link_that_leads_nowhere_is_noticed(tmp_path, link):
    for name in ("docs", "README.md", "mkdocs.yml"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    with (tmp_path / "docs" / "flow.md").open("a") as page:
        page.write(f"\n[a link]({link})\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert (done.returncode, "nowhere" in done.stdout + done.stderr) == (1, True)
