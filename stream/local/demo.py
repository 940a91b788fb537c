"""The programs of the local profile that are not servers (the embedder, the three workers), and the demo's text."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import orjson

from stream.config import STAGES, Settings
from stream.corpus import chunks
from stream.kafka import reader, topics
from stream.local.profile import HOST, Profile
from stream.local.supervisor import Program
from stream.local.trained import MINILM
from stream.operate.publish import Published, publish

Say = Callable[[str], None]


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
        # OpenMP's threads spin while they wait, which takes the core from whoever else computes on this machine.
        environment={"OMP_WAIT_POLICY": "PASSIVE"},
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
                },
                ports=(f"{stage}_port",),
            )
        )
    return programs


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
