"""expand: adds weighted terms to each embedded chunk."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from stream.records import Chunk, Done, Embedded, Outcome

if TYPE_CHECKING:
    from stream.models.splade import SparseEncoder


async def expand(chunks: Sequence[Embedded], *, encoder: "SparseEncoder") -> list[Outcome]:
    """Expands text, facets and table lines of each chunk; an empty vector is valid and is published."""
    texts = [encoder.join(parts(chunk)) for chunk in chunks]
    expansions = await asyncio.to_thread(_expansions, texts, encoder)
    return [Done({**chunk, **expansion}) for chunk, expansion in zip(chunks, expansions, strict=True)]


def parts(chunk: Chunk) -> list[str]:
    """What is expanded of a chunk: its text, its facets as "key: value" lines sorted by key, its table lines."""
    facets = "\n".join(f"{key}: {value}" for key, value in sorted(_flat(chunk.get("facet_json", {}))))
    return [chunk["text"], facets, "\n".join(chunk.get("table_lines", []))]


def _flat(facets: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in facets.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield prefix + key, ", ".join(str(item) for item in value)
        elif value is not None:
            yield prefix + key, str(value)


def _expansions(texts: Sequence[str], encoder: "SparseEncoder") -> list[dict[str, Any]]:
    vectors, provenance = encoder.encode(texts), encoder.provenance
    return [
        {"splade_terms": orjson.Fragment(terms), "splade_norm": vector.norm, "splade_provenance": provenance}
        for vector, terms in zip(vectors, encoder.vocabulary.as_json(vectors), strict=True)
    ]
