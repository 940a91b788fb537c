"""If these fail, a worker with a slow server or a long text counts as hanging."""

import pytest

from stream import progress
from stream.models.embeddings import EmbeddingClient
from stream.stores import open_stores

pytestmark = pytest.mark.servers


async def test_each_request_to_the_embedding_server_is_a_sign_of_life(settings):
    steps = []
    progress.tell(lambda: steps.append(None))
    async with EmbeddingClient(settings) as client:
        for n in range(1, 3):
            await client.embed(["a text"])
            assert len(steps) == n


async def test_each_query_of_a_store_is_a_sign_of_life(settings):
    steps = []
    progress.tell(lambda: steps.append(None))
    async with open_stores(settings) as stores:
        for store in stores.both:
            before = len(steps)
            await store.examine()
            assert len(steps) > before


async def test_each_step_of_the_sparse_model_is_a_sign_of_life(settings):
    from stream.models.splade import SparseEncoder  # noqa: PLC0415 - torch takes seconds to import

    steps = []
    progress.tell(lambda: steps.append(None))
    encoder = SparseEncoder(settings)
    steps.clear()
    encoder.encode(["socket " * 600] * 8)  # more than one forward pass on a CPU
    assert len(steps) > 2
