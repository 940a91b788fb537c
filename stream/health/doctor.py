"""Checks of what the stages need. A check returns what it found, or raises an error: what is wrong and what to do.

The checks change nothing. `stream doctor` runs all checks; a worker runs those of its stage before it starts.
"""

import platform
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from stream.config import STAGES, Settings
from stream.errors import StreamError
from stream.health import tried
from stream.health.probes import cuda, embedding_server, nvidia_smi, remedy
from stream.kafka import topics
from stream.stores.neo4j import Neo4jStore
from stream.stores.opensearch import OpenSearchStore

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
    yield _python()
    checks: dict[str, Check] = {"nvidia-smi": nvidia_smi, "PyTorch": cuda} if settings.require_gpu else {}
    checks |= {f"embedding server {url}": partial(embedding_server, address=url) for url in settings.embed_urls}
    for name, check in checks.items():
        yield await _found(name, check, settings)
    async for finding in kafka(settings):
        yield finding
    async for finding in stores(settings):
        yield finding


def _python() -> Finding:
    version = platform.python_version()
    remark = tried.remark("Python", version)
    return Finding("Python", True, remark or version, warning=remark is not None)


async def _found(name: str, check: Check, settings: Settings) -> Finding:
    try:
        return Finding(name, True, await check(settings))
    except StreamError as error:
        return Finding(name, False, str(error))


async def kafka(settings: Settings) -> AsyncIterator[Finding]:
    """The brokers and the topics of all stages: whether they exist, and which settings weaken a guarantee."""
    names = [each(settings, stage) for each in (topics.source, topics.dead_letters) for stage in STAGES]
    try:
        warnings = await topics.check(settings, names)
    except StreamError as error:
        yield Finding("Kafka", False, str(error))
        return
    ran_with = f"the tests ran with Kafka {', '.join(tried.versions('Kafka'))}; it does not say its version"
    yield Finding("Kafka", True, f"{settings.kafka_servers} has {', '.join(names)}; {ran_with}")
    for warning in warnings:
        yield Finding("Kafka", True, warning, warning=True)


async def stores(settings: Settings) -> AsyncIterator[Finding]:
    """The server and the index of each store, what filters do not find, and settings that the index does not have.

    Also each node, if several addresses are configured.
    """
    for opened, start in ((Neo4jStore, START_NEO4J), (OpenSearchStore, START_OPENSEARCH)):
        try:
            async with opened(settings) as store:
                with remedy(start):
                    said, missed = await store.examine(), await store.unfiltered()
                    version = await store.version()
                    unlike = await store.unlike_settings() if isinstance(store, OpenSearchStore) else []
        except StreamError as error:
            yield Finding(opened.name, False, str(error))
            continue
        yield Finding(opened.name, True, said)
        if remark := tried.remark(opened.name, version):
            yield Finding(opened.name, True, remark, warning=True)
        if missed:
            warning = (
                f"{missed:,} chunks were stored by an earlier release, so filters do not find them: "
                "`stream reindex start` brings them over"
            )
            yield Finding(opened.name, True, warning, warning=True)
        if unlike:
            warning = f"{', '.join(unlike)}: `stream reindex start` makes an index with the configured settings"
            yield Finding(opened.name, True, warning, warning=True)
    if len(settings.opensearch_urls) > 1:
        for address in settings.opensearch_urls:
            yield await _found(f"OpenSearch {address}", _node, settings.model_copy(update={"opensearch_url": address}))


async def _node(settings: Settings) -> str:
    async with OpenSearchStore(settings) as store:
        return await store.examine()
