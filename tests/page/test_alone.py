"""If these fail, the page reads a filter as something else than the command line, or loses the access key.

The service has no stores here.
"""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from browsing import Visitor
from playwright.async_api import Browser, expect
from serving import fake_service

from stream.cli import filters
from stream.errors import InvalidRequest
from stream.search.answer import Answer, Hit, Part, Snippet, Timing
from stream.search.request import LEGS, WEIGHTS
from stream.serve.access import Keys
from stream.serve.app import served

HIT = Hit("c1", "d1", 1, 0.5, {"bm25": Part(1, 2.0, 0.5)}, "a text", Snippet("a text", []))
ANSWER = Answer([HIT], 1, 0, 1, None, {}, [Timing("fuse", 0, 1)])
FILTERS = [
    *("metadata.lang=en", "metadata.year>=2020", "metadata.year<1e3", "metadata.lang!=en", " doc_id = a b ", "!doc_id"),
    *("metadata.x", 'metadata.x=["a", 1, true]', 'metadata.x!="2020"', "metadata.x=true", "metadata.x=01"),
    *('{"any": [{"field": "doc_id", "equal": "a"}]}', "metadata.x=a=b<c", "metadata.x=NaN", "metadata.x=-1.5"),
    *("=a", "!!a", "metadata.x=", "metadata.x==a", "{", 'metadata.x="a', "!", "!a=b", "metadata.x=.5"),
]
VALUES = ["en", "true", "2020", 2020, True, "", " a ", "a=b", "=b", '"x"', "[1]", "<b>", "ü, v", "1e5", "null", "!a"]


@asynccontextmanager
async def listening(keys: Path | None = None) -> AsyncIterator[str]:
    """The address of a service in this process that gives the same answer to every search."""
    service, _ = fake_service(ANSWER)
    config = uvicorn.Config(served(service, Keys(keys)), log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


@asynccontextmanager
async def visiting(browser: Browser, keys: Path | None = None) -> AsyncIterator[Visitor]:
    """A person before such a service."""
    async with listening(keys) as address:
        visitor = Visitor(browser, address)
        yield visitor
        await visitor.leave()
    assert visitor.faults == []


async def test_filters_mean_the_same_as_on_the_command_line(browser):
    read = """async texts => {
      const { condition } = await import("/page/syntax.js");
      return texts.map(text => { try { return condition(text); } catch { return null; } });
    }"""
    write = """async values => {
      const { equals } = await import("/page/syntax.js");
      const one = values.map(value => equals("metadata.x", [value]));
      return [...one, equals("metadata.x", values), equals("metadata.a=b", values)];
    }"""

    def expected(text: str) -> Any:
        try:
            return filters.condition(text)
        except InvalidRequest:
            return None

    async with visiting(browser) as visitor:
        page = await visitor.visit()
        assert await page.evaluate(read, FILTERS) == [expected(text) for text in FILTERS]
        assert [filters.condition(text) for text in await page.evaluate(write, VALUES)] == [
            *({"field": "metadata.x", "equal": value} for value in VALUES),
            {"field": "metadata.x", "in": VALUES},
            {"field": "metadata.a=b", "in": VALUES},
        ]


async def test_modes_and_default_weights_are_those_of_the_library(browser):
    read = """async () => {
      const { LEGS, WEIGHTS } = await import("/page/request.js");
      return { LEGS, WEIGHTS };
    }"""
    own = {"LEGS": {mode: list(legs) for mode, legs in LEGS.items()}, "WEIGHTS": WEIGHTS}
    async with visiting(browser) as visitor:
        assert await (await visitor.visit()).evaluate(read) == own


async def test_the_page_asks_for_the_key_and_keeps_it_until_the_tab_is_closed(browser, key: tuple[Path, str]):
    file, secret = key
    async with visiting(browser, file) as visitor:
        page = await visitor.visit("/?q=a+text")
        dialog = page.get_by_role("dialog", name="Access key")
        await dialog.get_by_label("Access key").fill("stream_wrong")
        await page.keyboard.press("Enter")
        await expect(dialog).to_contain_text("does not know this key")
        await dialog.get_by_label("Access key").fill(secret)
        await page.keyboard.press("Enter")
        await expect(page.locator(".hit")).to_have_attribute("data-chunk", "c1")
        await expect(dialog).to_have_count(0)

        await page.reload()
        await expect(page.locator(".hit")).to_have_count(1)
        assert secret not in page.url + json.dumps(await page.evaluate("({...localStorage})"))
        other = await visitor.visit("/?q=a+text")
        await expect(other.get_by_role("dialog", name="Access key")).to_be_visible()

        curl = str(await page.get_by_label("the request as curl").text_content())
        assert secret not in curl
        variables = {**os.environ, "STREAM_KEY": secret}
        pipe = asyncio.subprocess.PIPE
        done = await asyncio.create_subprocess_exec("bash", "-c", curl, env=variables, stdout=pipe)
        out, _ = await done.communicate()
        assert json.loads(out)["hits"][0]["chunk_id"] == "c1"


async def test_who_gives_no_key_reads_why_nothing_is_found(browser, key: tuple[Path, str]):
    file, _ = key
    async with visiting(browser, file) as visitor:
        page = await visitor.visit("/?q=a+text")
        await expect(page.get_by_role("dialog", name="Access key")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.locator(".found .problem")).to_contain_text("this needs a key")
