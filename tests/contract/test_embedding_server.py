"""The behaviour that the embed stage needs, tested on a real vLLM and on the development embedder.

If these fail for vLLM, the stage loses chunks or stops. If they fail for the embedder, tests with the embedder prove
nothing about vLLM. STREAM_TEST_VLLM_URL names a vLLM to test; otherwise the tests start one on the CPU.
"""

import asyncio
import base64
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from conftest import isolated
from contract.vllm import PATIENCE, Server, random_model, vllm
from ports import free_ports
from prometheus_client.parser import text_string_to_metric_families
from searchable import Encoder, searchable
from support import Worker, chunk, read, until

from stream import config
from stream.config import Settings
from stream.errors import ConfigurationError, Outage
from stream.kafka import topics
from stream.models import splade
from stream.models.embeddings import EmbeddingClient
from stream.operate.publish import publish
from stream.records import VECTOR_HEADER, Done, Rejected, header
from stream.search.request import Request
from stream.search.searcher import Searcher
from stream.stages.embed import embed
from stream.stores import open_stores
from stream.vectors import has_unit_norm, unpack

pytestmark = pytest.mark.servers

MODEL = "Qwen/Qwen3-Embedding-8B"
KEY = "of-this-run"
LIMIT = 32_768
TEXTS = [f"Text {n} says what nothing else says: {'again ' * n}" for n in range(64)]
TOO_LONG = "x y " * LIMIT
BUSY = 20  # texts with different beginnings, because vLLM caches beginnings


def much_work(run: str) -> list[str]:
    """Texts that keep a vLLM on a CPU busy for seconds."""
    return [f"{run} {n} {'many words ' * 250}" for n in range(BUSY)]


@pytest.fixture(scope="module")
def embedder() -> Iterator[Server]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "stream.local.embedder", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield Server(f"http://127.0.0.1:{port}", process)
        process.terminate()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if url := os.environ.get("STREAM_TEST_VLLM_URL"):
        yield Server(url)
    else:
        with vllm(random_model(tmp_path_factory.mktemp("model")), MODEL, KEY, *free_ports(1)) as server:
            yield server


@pytest.fixture
def ours(real: Server) -> Server:
    if not real.process:
        pytest.skip("nobody knows the key of that server, and nobody may stop it")
    return real


@pytest.fixture(scope="module", params=["embedder", "real"], ids=["embedder", "vLLM"])
def address(request: pytest.FixtureRequest) -> str:
    server: Server = request.getfixturevalue(request.param)
    return server.address


@pytest.fixture
async def http(address: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=PATIENCE, trust_env=False) as client:
        yield client


def with_(address: str, **more: Any) -> Settings:
    return Settings(_env_file=None, embed_url=address, embed_api_key=KEY, embed_timeout=PATIENCE, **more)


async def asked(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post("/v1/embeddings", json={"model": MODEL, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def refused(http: httpx.AsyncClient, body: object, status: int, message: str) -> None:
    response = await http.post("/v1/embeddings", json=body)
    error = response.json()["error"]
    assert response.status_code == status
    assert message in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == status


async def older_than_0_32(http: httpx.AsyncClient) -> bool:
    """Whether the server is a vLLM with faults that 0.32 no longer has; the development embedder tells no version."""
    version = await http.get("/version")
    return version.is_success and tuple(map(int, version.json()["version"].split(".")[:2])) < (0, 32)


async def test_a_healthy_server_says_so(http):
    assert (await http.get("/health")).status_code == 200


async def test_the_model_and_its_limit_are_listed(http):
    models = (await http.get("/v1/models")).json()
    assert [(card["id"], card["max_model_len"]) for card in models["data"]] == [(MODEL, LIMIT)]


async def test_an_answer_has_a_vector_for_each_text_and_counts_tokens(http):
    answer = await asked(http, input=["one", "two"])
    assert (answer["object"], answer["model"]) == ("list", MODEL)
    assert answer["id"].startswith("embd-")
    assert [(item["object"], item["index"]) for item in answer["data"]] == [("embedding", 0), ("embedding", 1)]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 2
    vectors = np.array([item["embedding"] for item in answer["data"]])
    assert vectors.shape == (2, 4096)
    assert has_unit_norm(vectors).all()


@pytest.mark.parametrize(("endianness", "dtype"), [("little", "<f4"), ("big", ">f4"), ("native", "=f4")])
async def test_base64_is_float32_in_the_order_of_bytes_asked_for(http, endianness, dtype):
    floats = await asked(http, input="a text")
    packed = await asked(http, input="a text", encoding_format="base64", embed_dtype="float32", endianness=endianness)
    vector = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), dtype)
    assert vector == pytest.approx(floats["data"][0]["embedding"], abs=1e-4)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "other", "input": "a"}, 404, "The model `other` does not exist."),
        ({"model": MODEL, "input": "a", "dimensions": 4096}, 400, "does not support Matryoshka"),
        ({"model": MODEL, "input": "a", "normalize": True}, 400, "`normalize` was removed"),
        ({"model": MODEL, "input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"model": MODEL, "input": []}, 400, "at least one prompt"),
        ({"model": MODEL}, 400, "input"),
        ({"model": MODEL, "input": ["short", TOO_LONG]}, 400, f"maximum context length is {LIMIT} tokens"),
    ],
    ids=["model", "dimensions", "normalize", "format", "no texts", "no input", "too long"],
)
async def test_what_is_refused_is_refused_with_a_status_and_a_reason(http, body, status, message):
    await refused(http, body, status, message)


async def test_a_body_that_is_no_object_is_refused(http):
    status, message = (500, "") if await older_than_0_32(http) else (400, "body")
    await refused(http, ["not", "an", "object"], status, message)


@pytest.mark.parametrize("body", [b"", b"{", b'{"model": "\xff"}', b'{"input": "\\ud800"}'])
async def test_bad_json_is_the_client_s_fault(http, body):
    response = await http.post("/v1/embeddings", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400


async def test_a_text_is_cut_to_as_many_tokens_as_asked_for(http):
    for limit in (LIMIT - 1, 5):
        answer = await asked(http, input=TOO_LONG, encoding_format="base64", truncate_prompt_tokens=limit)
        assert answer["usage"]["prompt_tokens"] == limit


async def test_a_text_of_as_many_tokens_as_the_model_reads_gets_a_vector(http):
    if await older_than_0_32(http):
        pytest.skip("vLLM before 0.32 does not answer, as docs/vllm.md says")
    answer = await asked(http, input=TOO_LONG, encoding_format="base64", truncate_prompt_tokens=-1)
    assert answer["usage"]["prompt_tokens"] == LIMIT


async def at_work(http: httpx.AsyncClient) -> list[float]:
    """The numbers of running and of waiting texts."""
    families = text_string_to_metric_families((await http.get("/metrics")).text)
    gauges = {family.name: family.samples for family in families}
    samples = [*gauges["vllm:num_requests_running"], *gauges["vllm:num_requests_waiting"]]
    assert all(sample.labels["model_name"] == MODEL for sample in samples)
    return [sample.value for sample in samples]


async def test_each_text_of_a_batch_counts_as_one_that_runs_or_waits(http):
    """An autoscaler's target is this number of texts."""
    runs = count()

    async def several_are_seen() -> bool:
        batch = asyncio.create_task(asked(http, input=much_work(f"run {next(runs)}"), encoding_format="base64"))
        seen = False
        while not seen and not batch.done():
            seen = sum(await at_work(http)) > 1
        await batch
        return seen

    async def none_is_left() -> bool:
        return await at_work(http) == [0, 0]

    await until(several_are_seen)
    await until(none_is_left)


async def test_the_client_takes_it_for_what_it_needs(address):
    async with EmbeddingClient(with_(address)) as client:
        assert await client.examine(address) == f"{MODEL}, at most {LIMIT} tokens a text"
        assert all(map(has_unit_norm, await client.embed_queries(["sockets", "files"])))


async def test_vectors_belong_to_their_texts(address):
    """A vector does not depend on its batch, up to bfloat16's rounding, and is nearest to its own text's vector."""
    async with EmbeddingClient(with_(address)) as client:
        together = np.array([unpack(vector) for vector in await client.embed(TEXTS)])
        alone = np.array([unpack(vector) for text in TEXTS[::9] for vector in await client.embed([text])])
    similarity = alone @ together.T
    assert np.diag(similarity[:, ::9]) == pytest.approx(1, abs=1e-3)
    assert similarity.argmax(axis=1).tolist() == list(range(64))[::9]


async def test_a_text_that_is_too_long_is_rejected_alone_with_its_tokens_and_the_limit(address):
    chunks = [chunk(f"c{n}", text) for n, text in enumerate([*TEXTS, TOO_LONG, "the last"])]
    async with EmbeddingClient(with_(address)) as client:
        outcomes = await embed(chunks, client=client, request_tokens=2**18)
    rejected = {n: outcome for n, outcome in enumerate(outcomes) if isinstance(outcome, Rejected)}
    assert list(rejected) == [64]
    assert f"maximum context length is {LIMIT} tokens" in rejected[64].detail
    assert "input tokens" in rejected[64].detail


async def test_a_text_that_is_too_long_is_cut_if_that_is_wanted(address):
    async with EmbeddingClient(with_(address, embed_long_texts="truncate")) as client:
        outcomes = await embed([chunk("c1", TOO_LONG), chunk("c2")], client=client, request_tokens=2**18)
    assert all(isinstance(outcome, Done) for outcome in outcomes)


@pytest.mark.servers
async def test_chunks_pass_the_stage_from_topic_to_topic(flow, address):
    lines = [orjson.dumps(chunk(f"c{n}", text)) for n, text in enumerate([*TEXTS, TOO_LONG])]
    await publish(lines, flow)
    own = {
        "STREAM_EMBED_DIMENSIONS": "4096",
        "STREAM_EMBED_URL": address,
        "STREAM_EMBED_API_KEY": KEY,
        "STREAM_EMBED_TIMEOUT": "300",
        "STREAM_NEO4J_INDEX": "contract",  # other tests' indexes, of shorter vectors, are in the same database
        "STREAM_NEO4J_LABEL": "Contract",
    }
    sent_on, refused = topics.source(flow, "expand"), topics.dead_letters(flow, "embed")
    async with Worker("embed", port=free_ports(1)[0], **own) as worker:

        async def done() -> bool:
            return len(await read(flow, sent_on)) + len(await read(flow, refused)) == len(lines)

        await until(done)
        assert await worker.end(signal.SIGTERM) == 0
    embedded = await read(flow, sent_on)
    assert {record.key for record in embedded} == {f"c{n}".encode() for n in range(len(TEXTS))}
    vectors = [unpack(header(record.headers, VECTOR_HEADER) or b"") for record in embedded]
    assert has_unit_norm(np.array(vectors)).all()
    assert [letter.key for letter in await read(flow, refused)] == [f"c{len(TEXTS)}".encode()]


async def test_a_wrong_key_is_a_matter_of_settings(ours):
    settings = with_(ours.address).model_copy(update={"embed_api_key": None})
    async with EmbeddingClient(settings) as client:
        with pytest.raises(ConfigurationError, match="STREAM_EMBED_API_KEY"):
            await client.embed(["a"])


async def test_a_search_while_vllm_hangs_lacks_the_dense_leg_and_no_more(ours, environment, monkeypatch):
    monkeypatch.setattr(splade, "SparseEncoder", Encoder)
    async with (
        searchable(config.only(isolated(environment))) as settings,
        open_stores(settings) as stores,
        EmbeddingClient(with_(ours.address)) as client,
    ):
        await client.embed_queries(["a socket"])
        ours.signal_engine(signal.SIGSTOP)
        try:
            answer = await Searcher(settings, stores, client).search(Request(query="a thread", deadline=5))
        finally:
            ours.signal_engine(signal.SIGCONT)
        assert {leg: "has not answered" in said for leg, said in answer.degraded.items()} == {"dense": True}
        assert answer.hits
        assert len(await client.embed_queries(["a file"])) == 1


async def test_a_vllm_that_dies_in_the_middle_of_a_batch_is_an_outage(ours):
    """As a `Refused` it would turn good chunks into dead letters. This test is the last one: it kills vLLM."""
    async with EmbeddingClient(with_(ours.address)) as client:
        batch = asyncio.create_task(client.embed(much_work("interrupted")))
        async with httpx.AsyncClient(base_url=ours.address, trust_env=False) as http:
            while not sum(await at_work(http)):
                assert not batch.done(), "the batch ended before vLLM was seen at work"
        ours.signal_engine(signal.SIGKILL)
        with pytest.raises(Outage):
            await batch
