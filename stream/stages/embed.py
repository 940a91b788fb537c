"""embed: adds a dense vector to each chunk."""

from collections.abc import Awaitable, Callable, Sequence

from stream.batches import split
from stream.bisection import isolate
from stream.models.embeddings import EmbeddingClient, estimated_tokens
from stream.records import Chunk, Done, Embedded, Outcome, Rejected, sha256

Known = Callable[[Sequence[Chunk]], Awaitable[Sequence[bytes | None]]]


async def embed(
    chunks: Sequence[Chunk], *, client: EmbeddingClient, request_tokens: int, known: Known | None = None
) -> list[Outcome]:
    """Embeds the text of each chunk; rejects only those chunks whose text the server refuses. Raises `Outage`.

    One request carries at most about `request_tokens` tokens. A chunk for which `known` returns a vector gets this one.
    """
    vectors = await known(chunks) if known else [None] * len(chunks)
    new = [chunk["text"] for chunk, vector in zip(chunks, vectors, strict=True) if vector is None]
    made: list[bytes | Rejected] = []
    for texts in split(new, estimated_tokens, request_tokens):
        made += await isolate(texts, client.embed, "refused-by-model")
    rest = iter(made)
    complete = [next(rest) if vector is None else vector for vector in vectors]
    return [
        vector if isinstance(vector, Rejected) else Done(dict(_embedded(chunk, vector, client)))
        for chunk, vector in zip(chunks, complete, strict=True)
    ]


def _embedded(chunk: Chunk, vector: bytes, client: EmbeddingClient) -> Embedded:
    return {
        **chunk,
        "text_sha256": sha256(chunk["text"]),
        "embedding_qwen": vector,
        "embedding_provenance": client.provenance,
    }
