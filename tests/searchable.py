"""A small index in the real stores, for tests that search: its texts, and a SPLADE whose terms are a text's words."""

import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from support import empty_neo4j, expanded, sparse_vector

from stream.config import Settings
from stream.models.embeddings import EmbeddingClient
from stream.records import Tombstone
from stream.stores import open_stores
from stream.stores.base import Put
from stream.vectors import unpack

WORDS = ["socket", "queue", "lock", "thread", "parser", "timer", "file", "path", "string", "number"]
COUNT = 300


class Encoder:
    """SPLADE whose terms are a text's words, weighted by length."""

    def __init__(self, _: Settings) -> None: ...

    def encode(self, texts: list[str]) -> list[Any]:
        return [self.one(text) for text in texts]

    def one(self, text: str) -> Any:
        counted = {word: 1.0 + len(word) / 10 for word in re.findall(r"\w+", text)}
        heaviest = dict(sorted(counted.items(), key=lambda item: -item[1]))
        norm = float(np.linalg.norm(list(heaviest.values())))
        return sparse_vector({word: weight / norm for word, weight in heaviest.items()}, norm)


def text(n: int) -> str:
    """The text of chunk `n`: every one has a word of the query."""
    chosen = random.Random(n).choices(WORDS, k=5 + n % 7)
    return " ".join(["socket" if n % 2 else "thread", *chosen])


@asynccontextmanager
async def searchable(settings: Settings) -> AsyncIterator[Settings]:
    """The settings of `COUNT` indexed chunks, and two that were deleted again."""
    names = [f"c{n}" for n in range(COUNT + 2)]
    async with EmbeddingClient(settings) as embedder, open_stores(settings) as stores:
        await empty_neo4j(stores)
        await stores.set_up()
        vectors = await embedder.embed([text(n) for n in range(len(names))])
        puts = []
        for n, (name, vector) in enumerate(zip(names, vectors, strict=True)):
            sparse = Encoder(settings).one(text(n))
            made = expanded(
                name,
                text(n),
                doc_id=f"d{n // 10}",
                metadata={"n": n, "lang": "en" if n % 3 else "de"},
                embedding_qwen=vector,
                embedding_provenance=embedder.provenance,
                splade_terms=sparse.terms,
                splade_norm=sparse.norm,
            )
            puts.append(Put(made, unpack(vector)))
        for store in stores.both:
            assert await store.write(puts) == {}
            assert await store.write([Tombstone(name, 2) for name in names[COUNT:]]) == {}
            assert await store.count() == COUNT
        yield settings
        await stores.opensearch._call("DELETE", f"/{settings.opensearch_alias}-*", ignore_unavailable="true")
