"""The real servers for the whole run, and separate settings for each test."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: its kernels run without a GPU

import shutil
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import hypothesis
import pytest
from dotenv import dotenv_values
from support import empty_neo4j

from stream import corpus
from stream.config import Settings
from stream.kafka import topics
from stream.local import splade_model
from stream.local.demo import embedder
from stream.local.profile import Profile
from stream.local.servers import install, servers
from stream.local.supervisor import down, up
from stream.stores import Stores, open_stores

ROOT = Path(__file__).parent.parent

# The default is deterministic. `HYPOTHESIS_PROFILE=nightly` draws new examples and prints how to repeat a failure.
hypothesis.settings.register_profile("default", derandomize=True, max_examples=90, deadline=None)
hypothesis.settings.register_profile("nightly", derandomize=False, max_examples=400, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@contextmanager
def own_servers() -> Iterator[Profile]:
    """Servers on free ports, with nothing in them; stopped at the end."""
    ports = ("kafka", "kafka_controller", "neo4j", "opensearch", "opensearch_transport", "embedder")
    profile = Profile(
        home=ROOT / ".local" / "test",
        artifacts=ROOT / ".local" / "artifacts",
        **dict(zip((f"{name}_port" for name in ports), free_ports(len(ports)), strict=True)),
    )
    down(profile)
    shutil.rmtree(profile.home, ignore_errors=True)
    try:
        install(profile, print)
        model = Path(profile.environment()["STREAM_SPLADE_MODEL"])
        splade_model.build((chunk["text"] for chunk in corpus.chunks()), model)
        up(profile, [*servers(profile), embedder(profile)], print)
        yield profile
    finally:
        down(profile)


@pytest.fixture(scope="session")
def profile() -> Iterator[Profile | None]:
    """Our own servers; None if STREAM_TEST_ENV_FILE names others, which no test may stop."""
    if "STREAM_TEST_ENV_FILE" in os.environ:
        yield None
    else:
        with own_servers() as profile:
            yield profile


@pytest.fixture(scope="session")
def environment(profile: Profile | None) -> dict[str, str]:
    """STREAM_… variables of running servers."""
    if profile:
        return profile.environment()
    return {n: value for n, value in dotenv_values(os.environ["STREAM_TEST_ENV_FILE"]).items() if value is not None}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def variables(environment: dict[str, str]) -> dict[str, str]:
    """The environment of one test."""
    return isolated(environment)


def isolated(environment: dict[str, str]) -> dict[str, str]:
    """An environment with its own topics, consumer groups and index."""
    name = f"t{uuid.uuid4().hex[:10]}"
    return environment | {
        "STREAM_TOPIC": name,
        "STREAM_OPENSEARCH_ALIAS": name,
        "STREAM_PARTITIONS": "2",
        "STREAM_BATCH_SIZE": "64",
        "STREAM_SESSION_TIMEOUT": "6",
        "STREAM_ENV_FILE": "/dev/null",
    }


@pytest.fixture
def settings(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of one test; the environment of this process has the same."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Settings(_env_file=None)


@pytest.fixture
async def flow(settings: Settings) -> Settings:
    """Settings whose topics exist."""
    await topics.create(settings)
    return settings


@pytest.fixture
async def stores(settings: Settings) -> AsyncIterator[Stores]:
    """Both stores, set up and empty."""
    async with open_stores(settings) as opened:
        await empty_neo4j(opened)
        await opened.set_up()
        yield opened
        await opened.opensearch._call("DELETE", f"/{settings.opensearch_alias}-*", ignore_unavailable="true")
