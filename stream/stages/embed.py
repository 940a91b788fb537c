"""embed: chunks to chunks with a dense vector."""

from collections.abc import Sequence

from stream.batches import split
from stream.models.embeddings import EmbeddingClient, estimated_tokens
from stream.outcomes import isolate
from stream.records import Chunk, Done, Embedded, Outcome, Rejected, text_sha256


async def embed(chunks: Sequence[Chunk], *, client: EmbeddingClient, request_tokens: int) -> list[Outcome]:
    """Embeds the text of each chunk; a text that the server refuses is rejected alone. Raises `Outage`.

    One request carries at most about `request_tokens` tokens.
    """
    vectors: list[str | Rejected] = []
    for texts in split([chunk["text"] for chunk in chunks], estimated_tokens, request_tokens):
        vectors += await isolate(texts, client.embed, "refused-by-model")
    return [
        vector if isinstance(vector, Rejected) else Done(dict(_embedded(chunk, vector, client)))
        for chunk, vector in zip(chunks, vectors, strict=True)
    ]


def _embedded(chunk: Chunk, vector: str, client: EmbeddingClient) -> Embedded:
    return {
        **chunk,
        "text_sha256": text_sha256(chunk["text"]),
        "embedding_qwen": vector,
        "embedding_provenance": client.provenance,
    }
