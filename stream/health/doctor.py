"""Checks of what the stages need. A check returns what it found, or raises an error: what is wrong and what to do.

The checks change nothing. `stream doctor` runs all checks; a worker runs those of its stage before it starts.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from stream.config import STAGES, Settings
from stream.errors import GpuRequired, Outage, StreamError
from stream.kafka import topics
from stream.models.embeddings import PROBE, EmbeddingClient
from stream.stores.neo4j import Neo4jStore
from stream.stores.opensearch import OpenSearchStore

QUERY = ("--query-gpu=name,driver_version,memory.free,memory.total", "--format=csv,noheader")
INSTALL_DRIVER = "install NVIDIA's driver (docs/gpu.md), or set REQUIRE_GPU=0 for development on a CPU"
NVIDIA_SMI_TIMEOUT = 20.0  # seconds

START_VLLM = "start it, or set STREAM_EMBED_URL and STREAM_EMBED_MODEL"
START_NEO4J = "start it, or set STREAM_NEO4J_URI"
START_OPENSEARCH = "start it, or set STREAM_OPENSEARCH_URL"

Check = Callable[[Settings], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. If it is not `ok`, `said` is what is wrong and what to do.

    With a `warning` everything works, but a guarantee is weaker than it should be.
    """

    check: str
    ok: bool
    said: str
    warning: bool = False


async def diagnose(settings: Settings) -> AsyncIterator[Finding]:
    """The findings of all checks, one after another; GPU checks run only if a GPU is required."""
    checks: dict[str, Check] = {"nvidia-smi": nvidia_smi, "PyTorch": cuda} if settings.require_gpu else {}
    checks |= {f"embedding server {url}": partial(embedding_server, address=url) for url in settings.embed_urls}
    for name, check in checks.items():
        yield await _found(name, check, settings)
    async for finding in kafka(settings):
        yield finding
    for name, check in {"Neo4j": neo4j, "OpenSearch": opensearch}.items():
        yield await _found(name, check, settings)


async def _found(name: str, check: Check, settings: Settings) -> Finding:
    try:
        return Finding(name, True, await check(settings))
    except StreamError as error:
        return Finding(name, False, str(error))


async def nvidia_smi(_: Settings) -> str:
    """GPUs, their driver and their memory, as `nvidia-smi` lists them."""
    program = shutil.which("nvidia-smi")
    if not program:
        raise GpuRequired(f"there is no nvidia-smi: {INSTALL_DRIVER}")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(program, *QUERY, stdout=pipe, stderr=pipe)
    try:
        out, err = await asyncio.wait_for(process.communicate(), NVIDIA_SMI_TIMEOUT)
    except TimeoutError:
        process.kill()
        raise GpuRequired(f"nvidia-smi did not answer within {NVIDIA_SMI_TIMEOUT:g} s: {INSTALL_DRIVER}") from None
    said = " | ".join(out.decode(errors="replace").split("\n")).strip(" |")
    if process.returncode or not said:
        said = said or err.decode(errors="replace").strip()
        raise GpuRequired(f"nvidia-smi finds no GPU ({said}): {INSTALL_DRIVER}")
    return said


async def cuda(_: Settings) -> str:
    """The GPUs that PyTorch can use."""
    return await asyncio.to_thread(_cuda)


def _cuda() -> str:
    import torch  # noqa: PLC0415 - the import takes seconds, and only a stage with a GPU needs it

    if not torch.cuda.is_available():
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            why = "PyTorch names no reason"
        except (RuntimeError, AssertionError) as error:
            why = str(error).splitlines()[0]
        raise GpuRequired(f"no CUDA GPU is available to PyTorch ({why}): check nvidia-smi, or {INSTALL_DRIVER}")
    gib = [size / 2**30 for size in torch.cuda.mem_get_info()]
    names = ", ".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count()))
    return f"{torch.__version__} with CUDA {torch.version.cuda}: {names}; {gib[0]:.0f} of {gib[1]:.0f} GiB are free"


async def embedding_server(settings: Settings, address: str) -> str:
    """The server's health, its model and its answer to a probe: length, numbers, norm."""
    async with EmbeddingClient(settings.model_copy(update={"embed_url": address})) as client:
        with _remedy(START_VLLM):
            said = await client.examine(address)
            await client.embed([PROBE])
    return f"{said}; the probe's vector has {settings.embed_dimensions} numbers and unit norm"


async def kafka(settings: Settings) -> AsyncIterator[Finding]:
    """The brokers and the topics of all stages: whether they exist, and which settings weaken a guarantee."""
    names = [each(settings, stage) for each in (topics.source, topics.dead_letters) for stage in STAGES]
    try:
        warnings = await topics.check(settings, names)
    except StreamError as error:
        yield Finding("Kafka", False, str(error))
        return
    yield Finding("Kafka", True, f"{settings.kafka_servers} has {', '.join(names)}")
    for warning in warnings:
        yield Finding("Kafka", True, warning, warning=True)


async def neo4j(settings: Settings) -> str:
    """The server and the vector index."""
    async with Neo4jStore(settings) as store:
        with _remedy(START_NEO4J):
            return await store.examine()


async def opensearch(settings: Settings) -> str:
    """The server and the index behind the alias."""
    async with OpenSearchStore(settings) as store:
        with _remedy(START_OPENSEARCH):
            return await store.examine()


@contextmanager
def _remedy(what_to_do: str) -> Iterator[None]:
    try:
        yield
    except Outage as error:
        raise Outage(f"{error}: {what_to_do}") from None
