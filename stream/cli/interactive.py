"""`stream search --interactive`: queries from the terminal, with clients and models that stay open."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from io import TextIOWrapper
from typing import Any

from stream.cli import filters
from stream.cli.answers import print_answer, print_why
from stream.cli.output import err, out, print_json
from stream.errors import InvalidRequest, StreamError
from stream.search.request import Request, request
from stream.search.searcher import Searcher

HELP = """\
QUERY            searches; a query that begins with / needs a space before it
/mode MODE       bm25, splade, dense, lexical or hybrid
/k NUMBER        the number of hits
/filter FILTER   one more filter, as for --filter; /filter alone removes all
/group           groups by document, or no longer
/explain         explains each hit, or no longer
/next            the next page of the last query
/why CHUNK_ID    why the last query finds a chunk, or does not
/help            this list; the end of input (Ctrl-D) ends the session"""


def run(
    opening: AbstractAsyncContextManager[Searcher],
    fields: dict[str, Any],
    texts: Sequence[str],
    first: str | None,
    *,
    json: bool,
) -> None:
    """Answers the first query, if any, and then each line of standard input until its end.

    `fields` are those of each request, `texts` its filters. What fails is said and does not end the session.
    """
    # No event loop runs while `input` waits: so Ctrl-C ends it at once.
    with asyncio.Runner() as runner:
        searcher = runner.run(opening.__aenter__())
        try:
            session = Session(runner, searcher, fields, texts, json=json)
            for line in _lines(first):
                try:
                    session.answer(line)
                except StreamError as error:
                    err.print(str(error), markup=False)
        finally:
            runner.run(opening.__aexit__(None, None, None))


def _lines(first: str | None) -> Iterator[str]:
    """The lines that are not blank."""
    if first is not None:
        yield first
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are not UTF-8 are the error of one query
    with suppress(ImportError):
        import readline  # noqa: F401, PLC0415 - `input` uses it to edit a line and to recall earlier ones
    prompt = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    with suppress(EOFError):
        while True:
            if (line := input(prompt)).strip():
                yield line


class Session:
    """Answers one line after the other. `fields` are those of each request; a command changes them."""

    def __init__(
        self, runner: asyncio.Runner, searcher: Searcher, fields: dict[str, Any], texts: Sequence[str], *, json: bool
    ) -> None:
        self._runner, self._searcher, self._json = runner, searcher, json
        self._fields, self._filters = fields, list(texts)
        self._last: Request | None = None
        self._cursor: str | None = None

    def answer(self, line: str) -> None:
        """Raises a `StreamError` for a query or a command that fails; the session can go on."""
        if line.startswith("/"):
            self._command(*line[1:].partition(" ")[::2])
        else:
            self._search(request(**self._fields, query=line))

    def _search(self, asked: Request) -> None:
        self._last, self._cursor = asked, None
        found = self._runner.run(self._searcher.search(asked))
        self._cursor = found.cursor
        print_json(found) if self._json else print_answer(found, asked, timings=True)

    def _command(self, name: str, value: str) -> None:
        match name:
            case "mode" | "k":
                self._set(**{name: value.strip()})
            case "filter":
                texts = [*self._filters, value] if value.strip() else []
                self._set(filter=filters.all_of(texts))
                self._filters = texts
            case "group":
                self._set(group={} if self._fields["group"] is None else None)
            case "explain":
                self._set(explain=not self._fields["explain"])
            case "next":
                asked = self._asked()
                if self._cursor is None:
                    raise InvalidRequest("the last query has no further page")
                self._search(asked.model_copy(update={"cursor": self._cursor}))
            case "why":
                why = self._runner.run(self._searcher.why(self._asked(), value.strip()))
                print_json(why) if self._json else print_why(why)
            case "help":
                out.print(HELP, markup=False)
            case _:
                raise InvalidRequest(f"there is no command /{name}: /help lists them")

    def _set(self, **change: Any) -> None:
        fields = self._fields | change
        request(**fields, query="-")  # raises for a wrong value, which is then not kept
        self._fields = fields

    def _asked(self) -> Request:
        if self._last is None:
            raise InvalidRequest("there is no last query: search first")
        return self._last
