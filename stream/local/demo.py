"""The programs of the local profile that are not servers (embedder, workers, search service), and the demo's steps."""

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import orjson

from stream.config import STAGES, SearchMode, Settings
from stream.corpus import chunks
from stream.errors import Outage
from stream.kafka import reader, topics
from stream.local.profile import HOST, Profile
from stream.local.supervisor import Program
from stream.local.trained import MINILM
from stream.operate.publish import Published, publish

ANSWER_SECONDS = 60  # for all questions
# Two programs run a model at the same time. If each used all cores, their threads would wait for each other.
HALF = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // 2, 1))}


def embedder(profile: Profile) -> Program:
    """The development embedder as a supervised program."""
    return Program(
        name="embedder",
        command=[
            *(sys.executable, "-m", "stream.local.embedder", "--host", HOST, "--port", str(profile.embedder_port)),
            *("--model", MINILM.name, "--weights", str(MINILM.folder(profile.models))),
        ],
        log=profile.home / "logs" / "embedder.log",
        ready=lambda: _answers(f"http://{HOST}:{profile.embedder_port}/health"),
        address=f"http://{HOST}:{profile.embedder_port}",
        directory=profile.home,
        environment={"OMP_WAIT_POLICY": "PASSIVE", **HALF},  # the policy is what `stream` sets for itself
        ports=("embedder_port",),
    )


def workers(profile: Profile, env_file: Path) -> list[Program]:
    """The three workers as supervised programs, with the settings of `env_file`."""
    programs = []
    for stage in STAGES:
        port = getattr(profile, f"{stage}_port")
        programs.append(
            Program(
                name=f"worker-{stage}",
                command=[sys.executable, "-m", "stream", "worker", stage],
                log=profile.home / "logs" / f"worker-{stage}.log",
                ready=lambda port=port: _answers(f"http://{HOST}:{port}/readyz"),  # type: ignore[misc]
                address=f"http://{HOST}:{port}/metrics",
                directory=profile.home,
                environment={
                    "STREAM_ENV_FILE": str(env_file),
                    "STREAM_WEB_PORT": str(port),
                    "STREAM_INSTANCE": "local",
                    **(HALF if stage == "expand" else {}),
                },
                ports=(f"{stage}_port",),
            )
        )
    return programs


def search(profile: Profile, env_file: Path) -> Program:
    """The search service as a supervised program. It is ready when the index worker has created the index."""
    address = f"http://{HOST}:{profile.serve_port}"
    return Program(
        name="search",
        command=[sys.executable, "-m", "stream", "serve"],
        log=profile.home / "logs" / "search.log",
        ready=lambda: _answers(f"{address}/readyz"),
        address=address,
        directory=profile.home,
        environment={"STREAM_ENV_FILE": str(env_file), "STREAM_SERVE_PORT": str(profile.serve_port)},
        ports=("serve_port",),
    )


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.TransportError:
        return False


def publish_corpus(settings: Settings, progress: Callable[[int], None]) -> Published:
    """Publishes the standard library's docstrings, except those that the topic already holds."""

    async def missing() -> Published:
        held = {record.value async for record in reader.read_to_end(settings, topics.source(settings, "embed"))}
        lines = (orjson.dumps(chunk) for chunk in chunks())
        return await publish((line for line in lines if line not in held), settings, progress)

    return asyncio.run(missing())


def ask(address: str, questions: Sequence[str], modes: Sequence[SearchMode], k: int) -> list[list[list[str]]]:
    """The chunk_ids that each mode finds for each question, the best first; asks the search service at `address`.

    Raises `Outage` if the service does not answer a question.
    """
    requests = [
        {"query": question, "mode": mode, "k": k, "deadline": ANSWER_SECONDS}
        for question in questions
        for mode in modes
    ]
    try:
        response = httpx.post(
            f"{address}/search/batch", json={"requests": requests}, timeout=2 * ANSWER_SECONDS, trust_env=False
        )
        response.raise_for_status()
    except httpx.HTTPError as error:
        raise Outage(f"the search service at {address} does not answer: {error}") from None
    found = iter(response.json()["answers"])
    return [[_chunk_ids(next(found)) for _ in modes] for _ in questions]


def _chunk_ids(answered: dict[str, Any]) -> list[str]:
    if problem := answered["problem"]:
        raise Outage(f"the search service does not answer: {problem['detail']}")
    return [hit["chunk_id"] for hit in answered["answer"]["hits"]]
