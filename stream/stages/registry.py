"""Opens the three stages: connects the function of each stage with its clients."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial

from stream.config import Settings, StageName
from stream.models.embeddings import EmbeddingClient
from stream.stages.base import Stage
from stream.stages.embed import embed
from stream.stages.expand import expand
from stream.stages.index import index
from stream.stages.reuse import open_reuse
from stream.stores import open_stores


@asynccontextmanager
async def open_stage(name: StageName, settings: Settings) -> AsyncIterator[Stage]:
    """A stage ready to run, its model loaded or its stores set up; raises `Outage` or `ConfigurationError`."""
    match name:
        case "embed":
            async with AsyncExitStack() as stack:
                client = await stack.enter_async_context(EmbeddingClient(settings))
                reuse = open_reuse(settings, client.provenance) if settings.embed_reuse else nullcontext()
                known = await stack.enter_async_context(reuse)
                process = partial(embed, client=client, request_tokens=settings.embed_request_tokens, known=known)
                yield Stage("embed", "chunk", process, client.answer)
        case "expand":
            from stream.models.splade import SparseEncoder  # noqa: PLC0415 - torch takes seconds to import

            yield Stage("expand", "embedded", partial(expand, encoder=SparseEncoder(settings)))
        case "index":
            async with open_stores(settings) as stores:
                await stores.set_up()
                process = partial(index, stores=stores.both, dimensions=settings.embed_dimensions)
                yield Stage("index", "expanded", process, stores.answer, writes_stores=True)
