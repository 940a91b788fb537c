"""The commands that encode and search."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Annotated, Any, TypeVar

import orjson
import typer

from stream import errors
from stream.cli import filters, interactive
from stream.cli.answers import print_answer, print_why
from stream.cli.options import open_file, settings_of, utf8
from stream.cli.output import Json, print_json
from stream.config import SearchMode, Settings
from stream.models.embeddings import EmbeddingClient
from stream.search.request import MOST_HITS, Fusion, Group, Request, request
from stream.search.searcher import Searcher
from stream.stores import open_stores

app = typer.Typer()

ENCODED_AT_ONCE = 1024  # texts
DEFAULTS = request(query="-")

Found = TypeVar("Found")


@app.command()
def search(
    context: typer.Context,
    query: Annotated[
        str | None,
        typer.Argument(parser=utf8, metavar="QUERY", help="What to search for. Optional with --interactive."),
    ] = None,
    *,
    mode: Annotated[
        SearchMode,
        typer.Option(
            "--mode",
            "-m",
            help="bm25: words. splade: terms. dense: vectors. lexical: words and terms. hybrid: all three, fused.",
        ),
    ] = DEFAULTS.mode,
    limit: Annotated[
        int, typer.Option("--limit", "-k", min=1, max=MOST_HITS, help="Maximum number of hits, or of documents.")
    ] = DEFAULTS.k,
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            "-f",
            parser=utf8,
            metavar="FILTER",
            help="Only chunks for which this holds: metadata.lang=en, metadata.year>=2020, doc_id, !metadata.draft, "
            "or the JSON form. Repeatable: all must hold.",
        ),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(parser=utf8, metavar="LEG=NUMBER", help="The weight of a leg; 0 leaves it out. Repeatable."),
    ] = None,
    fusion: Annotated[Fusion, typer.Option(help="How the scores of several legs become one.")] = DEFAULTS.fusion,
    min_score: Annotated[
        list[str] | None,
        typer.Option(
            parser=utf8, metavar="LEG=NUMBER", help="Leave out a leg's hits with a lower raw score. Repeatable."
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(parser=utf8, metavar="TERM", help="A term of the expansion that SPLADE leaves out. Repeatable."),
    ] = None,
    group: Annotated[bool, typer.Option("--group", help="Group the hits by document.")] = False,
    group_size: Annotated[
        int, typer.Option(min=1, max=100, help="Maximum number of chunks of a document, with --group.")
    ] = Group().size,
    deadline: Annotated[
        float, typer.Option(metavar="SECONDS", help="A leg that has not answered by then is left out and named.")
    ] = DEFAULTS.deadline,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a leg is missing.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print the terms of each hit, what they contribute, and the timings.")
    ] = False,
    cursor: Annotated[
        str | None, typer.Option(parser=utf8, help="Print the next page of the same search; an answer has its cursor.")
    ] = None,
    why: Annotated[
        str | None,
        typer.Option(parser=utf8, metavar="CHUNK_ID", help="Print why the query finds this chunk, or does not."),
    ] = None,
    json: Json = False,
    ask: Annotated[
        bool, typer.Option("--interactive", "-i", help="Read queries from the terminal; models stay loaded.")
    ] = False,
) -> None:
    """Search the stores."""
    fields: dict[str, Any] = {
        "mode": mode,
        "k": limit,
        "filter": filters.all_of(filter_ or ()),
        "weights": _by_leg("--weight", weight or ()),
        "fusion": fusion,
        "min_score": _by_leg("--min-score", min_score or ()),
        "without_terms": without or (),
        "group": {"size": group_size} if group else None,
        "deadline": deadline,
        "strict": strict,
        "explain": explain,
    }
    settings = settings_of(context)
    if ask:
        if cursor or why:
            raise typer.BadParameter("--cursor and --why are for one query: type /next or /why in the session")
        return interactive.run(open_searcher(settings), fields, filter_ or (), query, json=json)
    if query is None:
        raise typer.BadParameter("expected a QUERY, or --interactive")
    asked = request(**fields, query=query, cursor=cursor)
    if why is not None:
        reasons = _searched(settings, asked, lambda searcher: searcher.why(asked, why))
        return print_json(reasons) if json else print_why(reasons)
    answer = _searched(settings, asked, lambda searcher: searcher.search(asked))
    return print_json(answer) if json else print_answer(answer, asked)


@asynccontextmanager
async def open_searcher(settings: Settings) -> AsyncIterator[Searcher]:
    """A searcher with clients that connect when they are first used, and are closed at the end."""
    async with open_stores(settings) as stores, EmbeddingClient(settings) as embedder:
        yield Searcher(settings, stores, embedder)


def _searched(settings: Settings, asked: Request, call: Callable[[Searcher], Awaitable[Found]]) -> Found:
    """Calls a searcher once. The time to load models does not count for the deadline."""

    async def run() -> Found:
        async with open_searcher(settings) as searcher:
            with suppress(errors.StreamError):  # the search itself says what is missing
                await searcher.warm(asked.legs)
            return await call(searcher)

    return asyncio.run(run())


def _by_leg(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Parses `LEG=NUMBER`; the request checks the leg and the number."""
    pairs = [text.partition("=") for text in texts]
    for text, (_, equals, _) in zip(texts, pairs, strict=True):
        if not equals:
            raise typer.BadParameter(f"expected LEG=NUMBER, such as dense=0.5, not {text!r}", param_hint=option)
    return {leg.strip(): number.strip() for leg, _, number in pairs}


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
