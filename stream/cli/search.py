"""The commands that encode and search."""

import asyncio
from contextlib import ExitStack
from typing import Annotated

import orjson
import typer

from stream import errors
from stream.cli.options import non_blank, open_file, settings_of
from stream.cli.output import Json, out, print_json
from stream.config import SearchMode, Settings
from stream.models.embeddings import EmbeddingClient
from stream.search.searcher import Searcher
from stream.stores import open_stores
from stream.stores.base import Hit
from stream.terminal import printable

app = typer.Typer()

ENCODED_AT_ONCE = 1024  # texts
HIT_LENGTH = 100  # characters of a hit's text that are printed


@app.command()
def search(
    context: typer.Context,
    query: Annotated[str, typer.Argument(parser=non_blank, metavar="QUERY", help="What to search for.")],
    mode: Annotated[
        SearchMode,
        typer.Option(
            help="bm25: words. splade: terms. lexical: words and terms in one query. dense: vectors in Neo4j."
        ),
    ] = "lexical",
    limit: Annotated[int, typer.Option("--limit", "-k", min=1, max=1000, help="Maximum number of hits.")] = 10,
    json: Json = False,
) -> None:
    """Search one of the stores."""
    hits = asyncio.run(find(settings_of(context), query, mode, limit))
    if json:
        return print_json(hits)
    print_hits(hits)
    return None


async def find(settings: Settings, query: str, mode: SearchMode, limit: int) -> list[Hit]:
    """Opens clients, searches once and closes them."""
    async with open_stores(settings) as stores, EmbeddingClient(settings) as embedder:
        return await Searcher(settings, stores, embedder).search(query, mode, limit)


def print_hits(hits: list[Hit]) -> None:
    """Prints each hit's score and chunk_id, and the beginning of its text on the next line."""
    for hit in hits:
        out.print(f"{hit.score:8.3f}  {printable(hit.chunk_id)}", markup=False)
        out.print(f"          {' '.join(hit.text.split())[:HIT_LENGTH]}", markup=False, style="dim")
    if not hits:
        out.print("nothing found")


@app.command()
def encode(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="One text per line; - means standard input.")],
) -> None:
    """Print the SPLADE terms and the raw norm of each line, one JSON document per line, in input order."""
    from stream.models.splade import SparseEncoder  # noqa: PLC0415 - torch takes seconds to import

    with ExitStack() as stack:
        source, _ = open_file(file, stack)
        try:
            texts = _lines(source.read().decode())
        except UnicodeDecodeError as error:
            raise errors.StreamError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from None
    encoder = SparseEncoder(settings_of(context))
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        for vector in encoder.encode(texts[start : start + ENCODED_AT_ONCE]):
            typer.echo(orjson.dumps({"terms": vector.terms, "norm": vector.norm}))


def _lines(text: str) -> list[str]:
    """Splits at LF and CRLF only; the other line ends of `str.splitlines` are part of the text."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
