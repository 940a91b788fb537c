"""Opens the three stages: connects the function of each stage with its clients.

A stage is imported when it is opened: no worker pays for the libraries of the other two.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial

from stream.config import Settings, StageName
from stream.stages.base import Stage


def open_stage(name: StageName, settings: Settings) -> AbstractAsyncContextManager[Stage]:
    """A stage ready to run, its model loaded or its stores set up; raises `Outage` or `ConfigurationError`."""
    return {"embed": _embed, "expand": _expand, "index": _index}[name](settings)


@asynccontextmanager
async def _embed(settings: Settings) -> AsyncIterator[Stage]:
    from stream.models.embeddings import EmbeddingClient  # noqa: PLC0415
    from stream.stages.embed import embed  # noqa: PLC0415
    from stream.stages.reuse import open_reuse  # noqa: PLC0415

    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(EmbeddingClient(settings))
        reuse = open_reuse(settings, client.provenance) if settings.embed_reuse else nullcontext()
        known = await stack.enter_async_context(reuse)
        process = partial(embed, client=client, request_tokens=settings.embed_request_tokens, known=known)
        yield Stage("embed", "chunk", process, client.answer)


@asynccontextmanager
async def _expand(settings: Settings) -> AsyncIterator[Stage]:
    from stream.models.splade import SparseEncoder  # noqa: PLC0415
    from stream.stages.expand import expand  # noqa: PLC0415

    yield Stage("expand", "embedded", partial(expand, encoder=SparseEncoder(settings)))


@asynccontextmanager
async def _index(settings: Settings) -> AsyncIterator[Stage]:
    from stream.stages.index import index  # noqa: PLC0415
    from stream.stores import open_stores  # noqa: PLC0415

    async with open_stores(settings) as stores:
        await stores.set_up()
        process = partial(index, stores=stores.both, dimensions=settings.embed_dimensions)
        yield Stage("index", "expanded", process, stores.answer, writes_stores=True)
