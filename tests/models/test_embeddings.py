"""If these fail, a wrong or missing vector reaches the stores, or a temporary fault loses a good one."""

import asyncio
import base64
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import numpy as np
import orjson
import pytest
from prometheus_client import REGISTRY
from support import chunk, vector

from stream.config import Settings
from stream.errors import ConfigurationError, Outage, Refused
from stream.models.embeddings import EmbeddingClient
from stream.records import Rejected
from stream.stages.embed import embed
from stream.vectors import pack, unpack

SETTINGS = Settings(_env_file=None, embed_dimensions=8)


def answering(
    *answers: httpx.Response | Exception, settings: Settings = SETTINGS
) -> tuple[EmbeddingClient, list[dict]]:
    """A client whose server returns these answers in turn and then repeats the last; and the request bodies."""
    bodies: list[dict] = []

    def handle(request: httpx.Request) -> httpx.Response:
        bodies.append(orjson.loads(request.content or b"null"))
        answer = answers[min(len(bodies), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    client = EmbeddingClient(settings, httpx.MockTransport(handle))
    client._pause = lambda _: 0
    return client, bodies


def sent(vector: bytes) -> str:
    """A vector as vLLM sends it."""
    return base64.b64encode(vector).decode()


def vectors(*seeds: int, dimensions: int = 8) -> httpx.Response:
    data = [{"index": i, "embedding": sent(vector(seed, dimensions))} for i, seed in enumerate(seeds)]
    return httpx.Response(200, json={"data": data})


def numbered(*numbers: object) -> httpx.Response:
    return httpx.Response(200, json={"data": [{"index": n, "embedding": sent(vector(1, 8))} for n in numbers]})


def broken_tls(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


def packed(*numbers: float) -> httpx.Response:
    return httpx.Response(200, json={"data": [{"index": 0, "embedding": sent(pack(np.array(numbers)))}]})


async def test_what_is_sent_is_what_vllm_takes():
    client, bodies = answering(vectors(1, 2))
    await client.embed(["a", "b"])
    assert bodies == [
        {
            "model": "Qwen/Qwen3-Embedding-8B",
            "input": ["a", "b"],
            "encoding_format": "base64",
            "embed_dtype": "float32",
            "endianness": "little",
        }
    ]


async def test_vectors_come_back_in_the_order_of_the_texts():
    data = [{"index": 1, "embedding": sent(vector(2, 8))}, {"index": 0, "embedding": sent(vector(1, 8))}]
    client, _ = answering(httpx.Response(200, json={"data": data}))
    assert await client.embed(["a", "b"]) == [vector(1, 8), vector(2, 8)]


async def test_a_query_carries_the_instruction_and_is_unpacked():
    client, bodies = answering(vectors(1))
    (found,) = await client.embed_queries(["sockets"])
    assert bodies[0]["input"] == [f"Instruct: {SETTINGS.embed_instruction}\nQuery:sockets"]
    assert found == pytest.approx(unpack(vector(1, 8)))
    assert found.shape == (8,)


async def test_without_an_instruction_a_query_is_sent_as_it_is():
    client, bodies = answering(vectors(1), settings=SETTINGS.model_copy(update={"embed_instruction": ""}))
    await client.embed_queries(["sockets"])
    assert bodies[0]["input"] == ["sockets"]


@pytest.mark.parametrize(
    "fault",
    [
        httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("cut"),
        httpx.Response(429),
        httpx.Response(500),
        httpx.Response(503, text="overloaded"),
        httpx.ReadTimeout("slow"),
        httpx.Response(200, content=b'{"data": [{"ind'),
        httpx.Response(200, json={"data": [{"index": 0, "embedding": "!"}]}),
        httpx.Response(200, json={"data": []}),
        vectors(1, 2),
        vectors(1, dimensions=4),
        numbered(1),
        broken_tls("APPLICATION_DATA_AFTER_CLOSE_NOTIFY"),
    ],
    ids=str,
)
async def test_a_fault_of_the_server_is_retried_three_times_and_then_an_outage(fault):
    client, bodies = answering(fault)
    with pytest.raises(Outage):
        await client.embed(["a"])
    assert len(bodies) == 4

    client, bodies = answering(fault, vectors(1))
    assert await client.embed(["a"]) == [vector(1, 8)]


async def test_vectors_of_other_lengths_are_an_outage_even_if_their_total_is_right():
    data = [{"index": i, "embedding": sent(vector(i, d))} for i, d in enumerate([4, 12])]
    client, _ = answering(httpx.Response(200, json={"data": data}))
    with pytest.raises(Outage, match="not 8"):
        await client.embed(["a", "b"])


@pytest.mark.parametrize("numbers", [(0, 0), (0, 2), (1, 2), (-1, 0), (0, "1"), (0, None)])
async def test_vectors_that_are_numbered_wrongly_are_an_outage(numbers):
    """Otherwise a chunk gets the vector of another."""
    client, _ = answering(numbered(*numbers))
    with pytest.raises(Outage):
        await client.embed(["a", "b"])


async def test_a_server_that_hangs_is_told_after_one_time_out():
    """Without the bound, the outage is reported after four timeouts."""
    requests = []

    async def hang(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        await asyncio.sleep(settings.embed_timeout)
        raise httpx.ReadTimeout("slow")

    settings = SETTINGS.model_copy(update={"embed_timeout": 0.05})
    with pytest.raises(Outage, match="slow"):
        await EmbeddingClient(settings, httpx.MockTransport(hang)).embed(["a"])
    assert len(requests) == 1


async def test_a_server_that_lacks_the_model_is_an_outage_at_once():
    client, bodies = answering(httpx.Response(404, json={"error": {"message": "no such model"}}))
    with pytest.raises(Outage, match="no such model"):
        await client.embed(["a", "b"])
    assert len(bodies) == 1


@pytest.mark.parametrize(
    ("asked", "waits"),
    [("7", 7), ("3600", 30), ("0", 0), ("soon", 0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0), ("-1", 0)],
)
async def test_an_overloaded_server_says_when_to_come_back(asked, waits):
    client, _ = answering(httpx.Response(429, headers={"Retry-After": asked}), vectors(1))
    slept = []
    client._retrying.sleep = lambda seconds: asyncio.sleep(0, slept.append(seconds))
    await client.embed(["a"])
    assert slept == [waits]


async def test_a_date_says_when_to_come_back_too():
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    client, _ = answering(httpx.Response(503, headers={"Retry-After": date}), vectors(1))
    slept = []
    client._retrying.sleep = lambda seconds: asyncio.sleep(0, slept.append(seconds))
    await client.embed(["a"])
    assert 15 < slept[0] <= 20


async def test_retries_are_counted_by_cause_and_tokens_as_the_server_says():
    def value(name, **labels):
        return REGISTRY.get_sample_value(name, labels) or 0

    before = value("embed_retries_total", cause="503"), value("embed_tokens_total")
    answer = vectors(1)
    answer = httpx.Response(200, json=answer.json() | {"usage": {"prompt_tokens": 12}})
    client, _ = answering(httpx.Response(503), answer)
    await client.embed(["a"])
    assert (value("embed_retries_total", cause="503"), value("embed_tokens_total")) == (before[0] + 1, before[1] + 12)
    assert value("embed_in_flight") == 0


@pytest.mark.parametrize(
    ("policy", "context", "sent"), [("reject", 100, None), ("truncate", 100, 99), ("truncate", None, -1)]
)
async def test_a_long_text_is_cut_only_if_that_is_wanted(policy, context, sent):
    bodies = []

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": SETTINGS.embed_model, "max_model_len": context}]})
        bodies.append(orjson.loads(request.content))
        return vectors(1)

    settings = SETTINGS.model_copy(update={"embed_long_texts": policy})
    client = EmbeddingClient(settings, httpx.MockTransport(handle))
    await client.embed(["a"])
    assert bodies[0].get("truncate_prompt_tokens") == sent
    assert client.provenance["parameters"]["long_texts"] == policy


def replicated(handle) -> EmbeddingClient:
    settings = Settings(_env_file=None, embed_dimensions=8, embed_url="http://one:1,http://two:1")
    client = EmbeddingClient(settings, httpx.MockTransport(handle))
    client._pause = lambda _: 0
    return client


async def test_two_requests_go_to_two_replicas():
    hosts, both = [], asyncio.Event()

    async def handle(request: httpx.Request) -> httpx.Response:
        hosts.append(request.url.host)
        if len(hosts) == 2:
            both.set()
        await both.wait()
        return vectors(1)

    client = replicated(handle)
    await asyncio.gather(client.embed(["a"]), client.embed(["b"]))
    assert sorted(hosts) == ["one", "two"]


async def test_a_dead_replica_costs_a_retry_and_is_then_left_alone():
    hosts = []

    def handle(request: httpx.Request) -> httpx.Response:
        hosts.append(request.url.host)
        if request.url.host == "one":
            raise httpx.ConnectError("refused")
        return vectors(1)

    client = replicated(handle)
    for _ in range(3):
        await client.embed(["a"])
    assert hosts == ["one", "two", "two", "two"]


async def test_the_stage_has_what_it_needs_until_its_last_replica_is_down():
    down = {"one"}

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.host in down:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json={"data": [{"id": SETTINGS.embed_model, "max_model_len": 32}]})

    client = replicated(handle)
    await client.answer()
    up = {url: REGISTRY.get_sample_value("embed_server_up", {"server": url}) for url in client._settings.embed_urls}
    assert up == {"http://one:1": 0, "http://two:1": 1}
    down.add("two")
    with pytest.raises(Outage, match="two:1 does not answer"):
        await client.answer()


async def test_a_replica_that_refuses_everything_costs_no_text():
    def handle(request: httpx.Request) -> httpx.Response:
        texts = orjson.loads(request.content)["input"]
        return httpx.Response(400) if request.url.host == "one" else vectors(*range(len(texts)))

    chunks = [chunk(f"c{n}") for n in range(9)]
    outcomes = await embed(chunks, client=replicated(handle), request_tokens=100)
    assert not any(isinstance(outcome, Rejected) for outcome in outcomes)


WRONG = {
    "unit norm": [packed(*[number] * 8) for number in (float("nan"), float("inf"), 0.0, 1.0)],
    "too long": [httpx.Response(status, json={"error": {"message": "too long"}}) for status in (400, 413, 422)],
}


@pytest.mark.parametrize(("said", "wrong"), [(said, answer) for said, each in WRONG.items() for answer in each])
async def test_a_text_is_refused_only_if_the_server_still_embeds_another(said, wrong):
    """Otherwise a server that rejects everything turns the whole corpus into dead letters."""
    client, _ = answering(wrong)
    with pytest.raises(Outage, match=said):
        await client.embed(["a"])

    client, bodies = answering(wrong, vectors(1), wrong)
    with pytest.raises(Refused, match=said):
        await client.embed(["a"])
    assert [body["input"] for body in bodies] == [["a"], ["probe"], ["a"]]

    client, _ = answering(wrong, vectors(1), vectors(1))
    assert await client.embed(["a"]) == [vector(1, 8)]


async def test_a_batch_that_is_refused_is_split_at_once():
    client, bodies = answering(httpx.Response(400))
    with pytest.raises(Refused):
        await client.embed(["a", "b"])
    assert len(bodies) == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_is_refused_is_a_matter_of_settings_and_not_retried(status):
    """The error omits the server's message: some servers quote the key."""
    said = httpx.Response(status, json={"error": {"message": "hush is no key"}})
    for call in (lambda client: client.embed(["a"]), lambda client: client.examine(SETTINGS.embed_url)):
        client, bodies = answering(said)
        with pytest.raises(ConfigurationError, match="STREAM_EMBED_API_KEY") as error:
            await call(client)
        assert len(bodies) == 1
        assert "hush" not in str(error.value)


async def test_the_key_is_sent_as_a_bearer_token_and_never_shown():
    settings = Settings(_env_file=None, embed_api_key="hush", embed_dimensions=8)
    seen = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Authorization"])
        return vectors(1)

    await EmbeddingClient(settings, httpx.MockTransport(handle)).embed(["a"])
    assert seen == ["Bearer hush"]
    assert "hush" not in repr(settings)


@pytest.mark.parametrize("poisoned", [0, 100, 255])
async def test_a_text_that_yields_no_vector_costs_its_batch_few_requests(poisoned):
    """⌈log2 256⌉ to find the text, one for the texts after it, and three or six for the probe."""
    requests = []

    def handle(request: httpx.Request) -> httpx.Response:
        texts = orjson.loads(request.content)["input"]
        requests.append(texts)
        numbers = [[float("nan")] * 8 if text == f"text {poisoned}" else [1.0] + [0.0] * 7 for text in texts]
        data = [{"index": i, "embedding": sent(pack(np.array(each)))} for i, each in enumerate(numbers)]
        return httpx.Response(200, json={"data": data})

    chunks = [chunk(f"c{n}", f"text {n}") for n in range(256)]
    outcomes = await embed(chunks, client=EmbeddingClient(SETTINGS, httpx.MockTransport(handle)), request_tokens=2**18)
    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Rejected)] == [poisoned]
    assert len(requests) - 1 <= 16
