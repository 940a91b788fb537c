"""If these fail, a person finds less on the page than a program over HTTP, or reads something that is not so.

The real service, workers and stores; a real Chromium.
"""

import asyncio
import json
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import processes
import pytest
from axe_playwright_python.async_playwright import Axe
from browsing import PHONE, WIDE, Visitor
from conftest import isolated
from playwright.async_api import Browser, Page, expect
from ports import free_ports
from processes import Process
from support import LOGS, Worker, empty_neo4j, send, until

from stream import corpus
from stream.config import STAGES, Settings
from stream.kafka import topics
from stream.local import supervisor
from stream.local.profile import Profile
from stream.operate.publish import publish
from stream.operate.status import caught_up
from stream.search.request import LEGS
from stream.stores import open_stores

pytestmark = pytest.mark.servers
expect.set_options(timeout=60_000)

MODULES = ("asyncio.events", "asyncio.streams", "queue", "selectors", "socket", "socketserver", "threading")
QUERY = "listen on a socket for connections"
EVIL = {
    "chunk_id": "evil/<b>id</b>?&#",
    "doc_id": "evil",
    "text": 'zyzzyva <img src=x onerror="alert(1)"> 🙂 zyzzyva </script><script>alert(2)</script>',
    "metadata": {"note": '"><svg onload=alert(3)>'},
}
FIGURES = os.environ.get("SCREENSHOTS")  # the folder into which `make screenshots` wants them


def chunks() -> list[dict[str, Any]]:
    """Docstrings of a few modules, and one chunk that tries to be more than text."""
    chosen = [dict(chunk) for chunk in corpus.chunks() if chunk["doc_id"] in MODULES]
    return [*chosen, EVIL]


@pytest.fixture(scope="module")
async def flow(environment: dict[str, str]) -> AsyncIterator[Settings]:
    """Settings whose topics and stores are set up; the environment of this process has the same."""
    with pytest.MonkeyPatch.context() as patch:
        names = {"STREAM_TOPIC": "chunks"} if FIGURES else {}
        for name, value in (isolated(environment) | names).items():
            patch.setenv(name, value)
        settings = Settings(_env_file=None)
        await topics.create(settings)
        async with open_stores(settings) as stores:
            await empty_neo4j(stores)
            await stores.set_up()
            yield settings
            await stores.opensearch._call("DELETE", f"/{settings.opensearch_alias}-*", ignore_unavailable="true")


@pytest.fixture(scope="module")
async def workers(flow: Settings) -> AsyncIterator[dict[str, Worker]]:
    """A worker of each stage, which have processed all chunks. A test that ends one puts another in its place."""
    ports = free_ports(len(STAGES))
    started = {stage: Worker(stage, port=port) for stage, port in zip(STAGES, ports, strict=True)}
    try:
        lines = [json.dumps(chunk).encode() for chunk in chunks()]
        assert (await publish(lines, flow)).sent == len(lines)
        await caught_up(flow)
        yield started
    finally:
        for worker in started.values():
            if worker.process.poll() is None:
                await worker.end(signal.SIGKILL)


@pytest.fixture(scope="module")
async def address(workers: dict[str, Worker]) -> AsyncIterator[str]:
    """Where `stream serve` answers."""
    (port,) = free_ports(1)
    LOGS.mkdir(parents=True, exist_ok=True)
    variables = os.environ | {"STREAM_SERVE_PORT": str(port)}
    process = Process(["serve"], environment=variables, log=LOGS / f"page-{port}.log")
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:

            async def ready() -> bool:
                try:
                    return (await http.get("/readyz")).status_code == 200
                except httpx.TransportError:
                    return False

            await until(ready)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture
async def http(address: str) -> AsyncIterator[httpx.AsyncClient]:
    """The service as a program sees it."""
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        yield client


@pytest.fixture
async def visitor(browser: Browser, address: str) -> AsyncIterator[Visitor]:
    """A person with a browser. Their pages ask nobody but the service, and have no faults."""
    opened = Visitor(browser, address)
    yield opened
    await opened.leave()
    assert opened.faults == []


async def found(http: httpx.AsyncClient, **asked: Any) -> list[str]:
    answer = await http.post("/search", json={"query": QUERY, **asked})
    return [hit["chunk_id"] for hit in answer.raise_for_status().json()["hits"]]


async def shown(page: Page, name: str = "fused") -> list[str]:
    """The chunks of a list, once the page does not search any more."""
    await expect(page.locator(".found[aria-busy=false]")).to_be_visible()
    hits = page.get_by_role("region", name=name).locator(".hit")
    await expect(hits.first).to_be_visible()
    return await hits.evaluate_all("hits => hits.map(hit => hit.dataset.chunk)")


async def until_shown(page: Page, expected: list[str], name: str = "fused") -> None:
    async def same() -> bool:
        return await shown(page, name) == expected

    await until(same, seconds=60)


def searched(query: str = QUERY, **more: Any) -> str:
    return str(httpx.URL("/", params={"q": query, **more}))


# Searching


async def test_typing_a_query_finds_what_a_program_finds(visitor, http):
    page = await visitor.visit()
    await page.locator("body").press("/")
    await page.keyboard.type(QUERY)
    await page.keyboard.press("Enter")
    ids = await found(http)
    await until_shown(page, ids)
    answer = (await http.post("/search", json={"query": QUERY})).json()
    first = page.locator(".hit").first
    for leg, part in answer["hits"][0]["legs"].items():
        await expect(first.locator(".ranks")).to_contain_text(f"{leg} {part['rank']}")
    label = await first.get_by_role("img").get_attribute("aria-label")
    assert label.startswith("score ") and all(leg in label for leg in answer["hits"][0]["legs"])
    snippet = answer["hits"][0]["snippet"]
    await expect(first.locator(".snippet")).to_have_text(" ".join(snippet["text"].split()))
    marked = await first.locator("mark").all_text_contents()
    assert marked == [snippet["text"][start:end] for start, end in snippet["highlights"]]
    await expect(page.locator(".timings")).to_contain_text("Neo4j: dense")


async def test_the_keyboard_is_enough_to_read_a_hit(visitor, http):
    page = await visitor.visit(searched())
    ids = await shown(page)
    for key in ("j", "j", "k", "ArrowDown"):
        await page.keyboard.press(key)
    await page.keyboard.press("Enter")
    opened = page.locator(".hit.opened")
    await expect(opened).to_have_attribute("data-chunk", ids[1])
    chunk = (await http.get(f"/chunks/{ids[1]}")).json()
    assert (await opened.locator(".text").text_content()) == chunk["text"].strip()
    await expect(opened).to_contain_text(chunk["metadata"]["python"])
    await expect(opened.locator(".terms").first).to_be_visible()
    if "provenance" in chunk:
        await expect(opened).to_contain_text(chunk["provenance"]["dense"]["model"])
        await expect(opened).to_contain_text("position.offset")
    await page.reload()
    await expect(page.locator(".hit.opened")).to_have_attribute("data-chunk", ids[1])
    await page.keyboard.press("Escape")
    await expect(page.locator(".hit.opened")).to_have_count(0)
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog")).to_contain_text("next hit")
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_a_term_is_left_out_and_put_back(visitor, http):
    page = await visitor.visit(searched(mode="splade"))
    before = await shown(page)
    chip = page.get_by_label("Expansion of the query").get_by_role("button").first
    term = (await chip.text_content()).split()[0]
    await chip.click()
    await expect(chip).to_have_attribute("aria-pressed", "false")
    await until_shown(page, await found(http, mode="splade", without_terms=[term]))
    assert httpx.URL(page.url).params["without"] == term
    await chip.click()
    await until_shown(page, before)


async def test_a_weight_changes_the_order_and_going_back_restores_it(visitor, http):
    page = await visitor.visit(searched())
    before = await shown(page)
    slider = page.get_by_role("slider", name="dense")
    await slider.focus()
    await slider.press("Home")
    after = await found(http, weights={"dense": 0})
    assert after != before
    await until_shown(page, after)
    assert httpx.URL(page.url).params["weights"] == "dense=0"
    await page.go_back()
    await until_shown(page, before)
    await expect(slider).to_have_value("1.5")
    await page.go_forward()
    await until_shown(page, after)


async def test_filters_are_ticked_or_written(visitor, http):
    page = await visitor.visit(searched())
    form = page.get_by_label("Filters")
    await form.get_by_label("field").fill("metadata.line")
    await form.get_by_label("operator").select_option("<=")
    await form.get_by_label("value", exact=True).fill("200")
    await form.get_by_role("button", name="Add").click()
    written = {"field": "metadata.line", "lte": 200}
    await until_shown(page, await found(http, filter=written))
    if (await http.post("/facets", json={})).status_code == 200:
        await page.get_by_role("group", name="facet_json.kind").get_by_label("method").check()
        await page.get_by_role("group", name="facet_json.kind").get_by_label("class").check()
        ticked = {"field": "facet_json.kind", "in": ["method", "class"]}
        await until_shown(page, await found(http, filter={"all": [written, ticked]}))
        await page.go_back()
        await page.go_back()
    await form.get_by_role("button", name="metadata.line<=200").click()
    await until_shown(page, await found(http))


async def test_the_legs_stand_beside_the_fused_list(visitor, http):
    page = await visitor.visit(searched())
    await page.get_by_label("legs side by side").check()
    await until_shown(page, await found(http))
    for leg in LEGS["hybrid"]:
        await until_shown(page, await found(http, mode=leg), leg)


async def test_pages_are_one_list_and_a_link_shows_them_all(visitor, http):
    page = await visitor.visit(searched())
    await page.get_by_role("button", name="more").click()
    both = await found(http, k=20)
    await until_shown(page, both)
    await page.reload()
    await until_shown(page, both)
    await page.go_back()
    await until_shown(page, both[:10])


async def test_why_not_this_chunk(visitor, http):
    page = await visitor.visit(searched(mode="bm25"))
    box = page.get_by_label("Why not this chunk?")
    await box.get_by_label("chunk_id").fill("queue:Queue.qsize")
    await box.get_by_role("button", name="Ask").click()
    why = (await http.post("/chunks/queue:Queue.qsize/why", json={"query": QUERY, "mode": "bm25"})).json()
    assert why["reasons"]
    for reason in why["reasons"]:
        await expect(box).to_contain_text(reason)


async def test_thumbs_make_a_measure_and_qrels(visitor):
    page = await visitor.visit(searched())
    ids = await shown(page)
    panel = page.get_by_label("Judgements", exact=True)
    await expect(panel.locator("output")).to_have_text("–")
    await page.get_by_role("button", name=f"not relevant: {ids[0]}", exact=True).click()
    await page.get_by_role("button", name=f"relevant: {ids[2]}", exact=True).click()
    await expect(panel.locator("output")).to_have_text("0.500")  # 1 / log2(1 + 3), and the best would be 1
    async with page.expect_download() as download:
        await panel.get_by_role("button", name="qrels.txt").click()
    assert Path(await (await download.value).path()).read_text() == f"q1 0 {ids[0]} 0\nq1 0 {ids[2]} 1\n"
    await page.reload()
    await expect(panel.locator("output")).to_have_text("0.500")


async def test_texts_stay_texts(visitor):
    page = await visitor.visit(searched("zyzzyva", hit=EVIL["chunk_id"], mode="lexical"))
    assert EVIL["chunk_id"] in await shown(page)
    opened = page.locator(".hit.opened")
    assert await opened.locator(".text").text_content() == EVIL["text"]
    await expect(opened).to_contain_text(EVIL["metadata"]["note"])
    assert await page.locator("main img, main script, main b:text('id'), svg[onload]").count() == 0


# Copies


@pytest.fixture(params=["plain", "hard to quote"])
def address_of_copies(request: pytest.FixtureRequest) -> str:
    """A search with every setting that a copy has to carry."""
    if request.param == "plain":
        return searched()
    query = """-it's a "socket" for $HOME `id` \\ & 100 % ü🙂!"""
    more = {"weights": ["dense=0.5", "bm25=2"], "filter": ["metadata.line>=1", "!metadata.absent"], "without": "##s"}
    return searched(query, **more, k=5, fusion="rrf", group=2, deadline=30)


async def copied(page: Page, way: str) -> str:
    panel = page.get_by_label("Copy as", exact=True).first
    await panel.get_by_role("button", name=way, exact=True).click()
    await panel.get_by_role("button", name="copy", exact=True).click()
    await expect(panel.get_by_role("button", name="copied")).to_be_visible()
    return str(await page.evaluate("navigator.clipboard.readText()"))


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_a_copy_finds_what_the_page_shows(visitor, address_of_copies):
    page = await visitor.visit(address_of_copies)
    ids = await shown(page)
    answer = json.loads(await output("bash", "-c", await copied(page, "curl")))
    assert [hit["chunk_id"] for hit in answer["hits"]] == ids
    lines = (await output(sys.executable, "-c", await copied(page, "Python"))).splitlines()
    assert [line.rsplit(" ", 1)[0] for line in lines] == ids
    program, command, *arguments = shlex.split(await copied(page, "CLI"))
    assert (program, command) == ("stream", "search")
    done = await asyncio.to_thread(processes.run, "search", "--json", *arguments)
    assert [hit["chunk_id"] for hit in json.loads(done.out)["hits"]] == ids


# What is missing


async def test_a_leg_that_is_late_is_red_and_says_why(visitor, profile: Profile | None):
    if profile is None:
        pytest.skip("these servers are not ours to stop")
    supervisor.kill(profile, "embedder", signal.SIGSTOP)
    try:
        page = await visitor.visit(searched("a query that is not in the cache", deadline=1.5))
        sentence = page.locator(".degraded[data-leg=dense]")
        await expect(sentence).to_contain_text("dense has not answered within 1.5 s")
        assert await shown(page)  # what the other legs have found
        colours = "element => getComputedStyle(element).color"
        red = await page.locator("p.degraded").evaluate(colours)
        assert red != await page.locator(".status").evaluate(colours)
    finally:
        supervisor.kill(profile, "embedder", signal.SIGCONT)


async def test_what_cannot_be_asked_is_said_in_a_sentence(visitor):
    page = await visitor.visit(searched(weights=["dense=0", "bm25=0", "splade=0"]))
    await expect(page.locator(".found .problem")).to_contain_text("the weights leave out each leg")
    await page.goto(visitor.address + searched(filter="text=a"))
    await expect(page.locator(".found .problem")).to_contain_text("cannot be filtered")


# The flow


def number(page: Page, stage: str, name: str) -> Callable[[], Any]:
    async def read() -> int:
        text = await page.locator(f"[data-stage={stage}] .{name}").text_content()
        return int(text.replace(",", ""))

    return read


async def test_the_flow_moves_while_chunks_arrive_and_while_a_worker_is_killed(visitor, http, flow, workers):
    page = await visitor.visit("/?view=flow")
    await expect(page.locator(".live")).to_have_text("live")
    done, lag = number(page, "index", "done"), number(page, "embed", "lag")
    before = await done()
    lines = [
        json.dumps({"chunk_id": f"new{n}", "doc_id": "new", "text": f"a new text {n}"}).encode() for n in range(50)
    ]
    await publish(lines, flow)

    async def indexed() -> bool:
        return await done() >= before + len(lines)

    await until(indexed)
    await workers["embed"].end(signal.SIGKILL)
    await publish(lines, flow)

    async def waiting() -> bool:
        return await lag() >= len(lines)

    await until(waiting)
    await expect(page.locator("[data-stage=embed].stuck")).to_contain_text("none is processed")
    workers["embed"] = Worker("embed", port=free_ports(1)[0])

    async def worked_off() -> bool:
        return await lag() == 0

    await until(worked_off)
    await send(flow, [(b"bad", b'{"chunk_id": "bad", "text": 7}')])
    letter = page.locator(".letter", has_text="bad").first
    await expect(page.locator(".letter").first).to_be_visible()
    await letter.locator("summary").click()
    await expect(letter.locator("pre")).to_have_text('{"chunk_id": "bad", "text": 7}')
    await expect(page.get_by_label("Generations")).to_contain_text("live in")


async def test_a_lost_connection_is_said_and_made_again(visitor):
    page = await visitor.visit()
    await page.route("**/flow/events", lambda route: route.abort(), times=1)
    await page.locator("body").press("Escape")
    await page.get_by_role("link", name="flow").click()
    await expect(page.locator(".live")).to_contain_text("connecting again")
    await expect(page.locator(".live")).to_have_text("live")


# For everyone

STATES = {  # an address, and what is there once it is complete
    "search": (searched(), ".hit"),
    "a hit opened": (searched(hit="socket:create_server", legs="1", filter="doc_id=socket"), ".hit.opened .terms"),
    "flow": ("/?view=flow", ".letters .letter"),
}


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize(("path", "complete"), STATES.values(), ids=STATES)
async def test_axe_finds_no_serious_fault(visitor, flow, path, complete, size):
    await send(flow, [(b"bad", b"no JSON")])  # so that there is a dead letter
    page = await visitor.visit(path, size)
    await expect(page.locator(complete).first).to_be_visible()
    if size == PHONE and "q=" in path:
        await page.get_by_text("Settings and filters").click()
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        results = await Axe().run(page)
        serious = [one for one in results.response["violations"] if one["impact"] in ("serious", "critical")]
        assert not serious, json.dumps([(one["id"], one["nodes"][0]["html"]) for one in serious], indent=1)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than the screen"


@pytest.mark.skipif(not FIGURES, reason="`make screenshots` writes the figures of the README")
async def test_the_screenshots_of_the_readme(visitor, flow):
    page = await visitor.visit(searched())
    ids = await shown(page)
    await page.get_by_role("button", name=f"relevant: {ids[1]}", exact=True).click()
    await page.reload()
    await shown(page)
    await page.screenshot(path=Path(FIGURES, "search-page.png"))

    await send(flow, [(b"a/7", b'{"chunk_id": "a/7", "doc_id": "a", "text": 7}'), (b"a/8", b"not JSON")])
    page = await visitor.visit("/?view=flow", (WIDE[0], 660))
    lines = [json.dumps({**chunk, "version": version}).encode() for version in range(2, 6) for chunk in chunks()]
    await publish(lines, flow)

    async def moves() -> bool:
        rates = await page.locator(".rate b").all_text_contents()
        return len(rates) == len(STAGES) and "0" not in rates and await page.locator(".letter").count() > 1

    await until(moves)
    await page.screenshot(path=Path(FIGURES, "flow-page.png"))
