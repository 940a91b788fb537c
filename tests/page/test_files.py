"""If these fail, the page is not what its authors wrote, a browser refuses it, or it loads slowly."""

import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from serving import client, fake_service

from stream.serve.guards import SECURITY
from stream.serve.page import FOLDER

FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())
MODULES = sorted(FOLDER.glob("*.js"))
VENDOR = FOLDER / "vendor"
WEIGHT = 200 * 1024  # bytes


class Tags(HTMLParser):
    """The start tags of a document, each with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


TAGS = Tags((FOLDER / "index.html").read_text()).found


def test_vendored_files_are_those_that_were_published():
    listed = dict(re.findall(r"^\| `([^`]+)` \|.*`([0-9a-f]{64})` \|$", (VENDOR / "README.md").read_text(), re.M))
    files = {path.name for path in VENDOR.iterdir()} - {"README.md"}
    assert {name: hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() for name in files} == listed
    assert {name for name in files if name.startswith("LICENSE")}


def test_the_page_keeps_its_own_content_security_policy():
    assert "'unsafe" not in SECURITY["Content-Security-Policy"]
    for tag, attributes in TAGS:
        assert tag != "style"
        assert tag != "script" or attributes.get("src")
        assert not {name for name in attributes if name == "style" or name.startswith("on")}
        for address in (attributes.get("src"), attributes.get("href")):
            assert address is None or address.startswith("/page/")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_a_module_makes_no_html_from_data_and_calls_no_other_host(module):
    text = module.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert not re.search(r"dangerouslySetInnerHTML|javascript:", text)
    assert not re.search(r"""["'`]https?://""", text)


def imported(module: Path) -> set[Path]:
    """A module and all that it imports, but for `import()`, which loads when it is called."""
    names = re.findall(r"""^(?:import|export) .*from "([^"]+)";$""", module.read_text(), re.M)
    return {module}.union(*(imported((module.parent / name).resolve()) for name in names))


def test_the_browser_is_told_of_each_module_of_the_start_before_it_finds_it_out():
    preloaded = {attributes["href"] for tag, attributes in TAGS if attributes.get("rel") == "modulepreload"}
    scripts = {attributes["src"] for tag, attributes in TAGS if tag == "script"}
    needed = {f"/page/{path.relative_to(FOLDER)}" for path in imported(FOLDER / "main.js")}
    assert preloaded | scripts == needed


def test_the_whole_page_weighs_little():
    assert sum(path.stat().st_size for path in FILES) <= WEIGHT


async def test_every_file_is_served_and_asked_for_again_only_if_it_has_changed():
    service, _ = fake_service()
    async with client(service) as http:
        for path in ["/", *(f"/page/{file.relative_to(FOLDER)}" for file in FILES)]:
            answer = await http.get(path)
            assert answer.status_code == 200
            assert answer.headers["Cache-Control"] == "no-cache"
            assert answer.headers["Content-Security-Policy"] == SECURITY["Content-Security-Policy"]
            again = await http.get(path, headers={"If-None-Match": answer.headers["ETag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert (await http.get("/")).text == (FOLDER / "index.html").read_text()
        assert "javascript" in (await http.get("/page/main.js")).headers["Content-Type"]  # or browsers refuse modules


@pytest.mark.parametrize(
    "path", ["/page/", "/page/nothing.js", "/page/../app.py", "/page/%2e%2e/app.py", "/page//etc/passwd"]
)
async def test_nothing_but_the_files_of_the_page_is_served(path):
    service, _ = fake_service()
    async with client(service) as http:
        assert (await http.get(path)).status_code == 404
