"""The real servers for the whole run, and separate settings for each test."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: its kernels run without a GPU
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before PyTorch is imported: its idle threads leave the cores to others
os.environ["OMP_NUM_THREADS"] = "1"  # several processes share the cores: threads would wait for each other

import shutil
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
from dotenv import dotenv_values
from faults import cluster
from filelock import FileLock, Timeout
from ports import PROCESS, free_ports
from processes import Process
from support import DIMENSIONS, LOGS, empty_neo4j, wait_until

from stream import corpus
from stream.config import Settings
from stream.kafka import topics
from stream.local import embedder as embedder_script
from stream.local import splade_model, trained
from stream.local.demo import embedder
from stream.local.profile import Profile
from stream.local.servers import install, servers
from stream.local.supervisor import Program, down, status, up
from stream.stores import Stores, open_stores

ROOT = Path(__file__).parent.parent
LONG = ("test_faults.py", "test_swap.py", "test_embedding_server.py", "test_reindex.py", "test_quality.py")
MODELS = ROOT / ".local" / "test-models"  # built and downloaded once
STAND_INS = {  # an embedder that hashes words, and a SPLADE that was computed
    "STREAM_EMBED_MODEL": "Qwen/Qwen3-Embedding-8B",
    "STREAM_EMBED_REVISION": "development",
    "STREAM_EMBED_DIMENSIONS": str(DIMENSIONS),
    "STREAM_EMBED_INSTRUCTION": Settings.model_fields["embed_instruction"].default,
    "STREAM_EMBED_LONG_TEXTS": "reject",
    "STREAM_SPLADE_MODEL": str(MODELS / "splade"),
    "STREAM_SPLADE_REVISION": "development",
}

# The default is deterministic. `HYPOTHESIS_PROFILE=nightly` draws new examples and prints how to repeat a failure.
hypothesis.settings.register_profile("default", derandomize=True, max_examples=70, deadline=None)
hypothesis.settings.register_profile("nightly", derandomize=False, max_examples=400, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first: a file runs in one process of `pytest -n`, and the others should not wait for its end."""
    items.sort(key=lambda item: item.path.name not in LONG)


@contextmanager
def only_run(home: Path) -> Iterator[None]:
    """Keeps other runs of the tests out of a folder: each would stop the other's servers."""
    try:
        lock = FileLock(f"{home}.lock").acquire(timeout=0)
    except Timeout:
        raise RuntimeError(f"another run of the tests has its servers in {home}: wait until it ends") from None
    with lock:
        yield


@contextmanager
def own_servers(brokers: int = 1) -> Iterator[Profile]:
    """Servers on free ports, with nothing in them, in a folder that only its owner may enter; stopped at the end.

    With several brokers the profile is a `Cluster`. Each process of `pytest -n` has its own.
    """
    ports = ("kafka", "kafka_controller", "neo4j", "opensearch", "opensearch_transport", "embedder")
    profile = Profile(
        home=ROOT / ".local" / "test" / (PROCESS or "main"),
        artifacts=ROOT / ".local" / "artifacts",
        **dict(zip((f"{name}_port" for name in ports), free_ports(len(ports)), strict=True)),
    )
    if brokers > 1:
        own, controllers = free_ports(brokers), free_ports(brokers)
        profile = cluster.Cluster(**vars(profile), brokers=tuple(zip(own, controllers, strict=True)))
    with only_run(profile.home):
        down(profile)
        shutil.rmtree(profile.home, ignore_errors=True)
        profile.home.mkdir(parents=True, mode=0o700)
        try:
            install(profile, print)
            if isinstance(profile, cluster.Cluster):
                cluster.install(profile)
            MODELS.mkdir(exist_ok=True)
            with FileLock(MODELS / "lock"):
                splade_model.build((chunk["text"] for chunk in corpus.chunks()), Path(STAND_INS["STREAM_SPLADE_MODEL"]))
            up(profile, programs(profile), print)
            yield profile
        finally:
            running = [program.pid for program in status(profile) if program.pid]
            down(profile)
            assert [pid for pid in running if Path(f"/proc/{pid}").exists()] == []


def programs(profile: Profile) -> list[Program]:
    """The servers, and the embedder without a trained model."""
    hashing = [sys.executable, "-m", "stream.local.embedder", "--port", str(profile.embedder_port)]
    kafka, *stores = servers(profile)
    brokers = cluster.programs(profile) if isinstance(profile, cluster.Cluster) else [kafka]
    return [
        *brokers,
        *stores,
        replace(embedder(profile), command=[*hashing, "--dimensions", str(DIMENSIONS)]),
    ]


@contextmanager
def embedding_server(*options: str) -> Iterator[str]:
    """The address of a development embedder with these options."""
    (port,) = free_ports(1)

    def listens() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    LOGS.mkdir(parents=True, exist_ok=True)
    arguments, log = ["--port", str(port), *options], LOGS / f"embedder-{port}.log"
    process = Process(arguments, script=embedder_script.__file__, environment=os.environ, log=log)
    try:
        wait_until(listens)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def trained_models() -> Path:
    """The folder of the trained models."""
    trained.install(MODELS)
    return MODELS


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
    variables = profile.environment() if profile else dotenv_values(os.environ["STREAM_TEST_ENV_FILE"])
    return {name: value for name, value in variables.items() if value is not None} | STAND_INS


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
