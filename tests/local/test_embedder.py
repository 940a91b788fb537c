"""If these fail, the development embedder differs from vLLM, or searches find nothing."""

import asyncio
import hashlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

from stream.config import Settings
from stream.local.embedder import Server
from stream.local.hashing import MAX_MODEL_LEN, HashedWords, embed, tokens
from stream.models.embeddings import EmbeddingClient
from stream.vectors import unpack

MODEL = "Qwen/Qwen3-Embedding-8B"


@pytest.fixture
async def client() -> AsyncIterator[TestClient[Any, Any]]:
    async with TestClient(TestServer(Server(MODEL, HashedWords()).application())) as client:
        yield client


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stream.local.embedder", "--port", str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def similarity(first: str, second: str) -> float:
    return float(embed(first) @ embed(second))


@pytest.mark.parametrize("text", ["a", "The socket, the SOCKET!", "日本語", "...", "  ", "", "___", "x" * 100_000])
def test_every_text_has_a_unit_vector(text: str):
    vector = embed(text)
    assert vector.shape == (4096,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_vectors_stored_on_another_machine_still_match():
    vector = embed("Open a TCP socket with socket.create_connection(); open it twice.")
    digest = hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()
    assert digest == "5b73637324c480c0ffaf654c298a42c1bdca8587278c732538972ff3d5a94a7f"


def test_a_text_is_nearest_to_one_that_shares_its_words():
    question = "open a network socket"
    assert similarity(question, "Open the socket of a network peer.") > 0.3
    assert abs(similarity(question, "Parse command line options.")) < 0.1


def test_the_order_of_words_counts():
    assert similarity("event loop runs", "the event loop") > similarity("event loop runs", "the loop event")


@pytest.mark.parametrize("identifier", ["read_csv_file", "readCsvFile", "ReadCSVFile"])
def test_an_identifier_is_found_by_its_parts(identifier: str):
    assert similarity(identifier, "read csv file") > 0.7


def test_texts_without_words_are_told_apart():
    assert similarity("...", "!?") < 0.5
    assert similarity("___", "...") < 0.5


def test_the_instruction_does_not_blur_a_query():
    query = "Instruct: Given a web search query, retrieve passages\nQuery:open a socket"
    assert np.array_equal(embed(query), embed("open a socket"))


def test_a_thousand_short_texts_a_second_on_one_core():
    texts = [f"Return the value of field {i} in record {i * 7}, or None if it is missing." for i in range(2_000)]
    started = time.thread_time()
    for text in texts:
        embed(text)
    assert len(texts) / (time.thread_time() - started) > 1_000


async def test_the_stage_s_own_client_accepts_the_vectors(client: TestClient[Any, Any]):
    url = str(client.make_url(""))
    async with EmbeddingClient(Settings(_env_file=None, embed_url=url)) as stage:
        assert await stage.examine(url) == f"{MODEL}, at most {MAX_MODEL_LEN} tokens a text"
        vectors = await stage.embed(["one", "two"])
        assert [unpack(vector).tolist() for vector in vectors] == [embed("one").tolist(), embed("two").tolist()]


async def test_the_longest_text_that_fits_is_embedded(client: TestClient[Any, Any]):
    text = "word " * (MAX_MODEL_LEN - 1)
    assert tokens(text) == MAX_MODEL_LEN
    response = await client.post("/v1/embeddings", json={"model": MODEL, "input": text})
    assert response.status == 200


async def test_probes_are_answered_while_a_batch_is_embedded(client: TestClient[Any, Any]):
    texts = [" ".join(f"w{i}x{j}" for j in range(2_000)) for i in range(50)]
    batch = asyncio.create_task(client.post("/v1/embeddings", json={"model": MODEL, "input": texts}))
    running = f'vllm:num_requests_running{{model_name="{MODEL}"}} 50.0'
    while not batch.done():
        if running in await (await client.get("/metrics")).text():
            break
    else:
        pytest.fail("no request was answered before the batch was done")
    assert (await client.get("/health")).status == 200
    assert not batch.done()
    assert (await batch).status == 200
    metrics = await (await client.get("/metrics")).text()
    assert f'vllm:num_requests_running{{model_name="{MODEL}"}} 0.0' in metrics
    assert f'vllm:num_requests_waiting{{model_name="{MODEL}"}} 0.0' in metrics


async def test_the_model_card_says_that_it_is_not_the_real_model(client: TestClient[Any, Any]):
    (card,) = (await (await client.get("/v1/models")).json())["data"]
    assert "lexical not semantic" in card["owned_by"]


def test_it_says_what_it_is_and_stops_on_sigterm(free_port: int):
    with program(free_port) as process:
        assert process.stdout
        greeting = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert f"http://127.0.0.1:{free_port}" in greeting
    assert "lexical not semantic" in greeting
    assert (process.returncode, errors) == (0, "")


def test_a_taken_port_is_one_sentence_and_exit_code_78():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with program(port) as process:
            output, errors = process.communicate(timeout=30)
    assert process.returncode == 78
    assert output == ""
    assert errors.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{port}" in errors
    assert "--port" in errors
