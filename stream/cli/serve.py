"""The commands of the service."""

from collections.abc import Sequence
from typing import Annotated

import typer

from stream.cli import filters
from stream.cli.options import settings_of, utf8
from stream.cli.output import err, print_json
from stream.errors import ConfigurationError
from stream.search.filters import Filter
from stream.search.request import request

app = typer.Typer()
keys = typer.Typer(name="keys", help="The access keys of the service.", no_args_is_help=True)
app.add_typer(keys)

MISSING = "the service needs more packages: pip install 'chunk-stream[serve]'"


@app.command()
def serve(
    context: typer.Context,
    openapi: Annotated[
        bool, typer.Option("--openapi", help="Print the interface as an OpenAPI document, and end.")
    ] = False,
) -> None:
    """Serve search over HTTP, with a page, until SIGTERM."""
    try:
        from stream.serve import run  # noqa: PLC0415 - an extra, and FastAPI takes a second to import
    except ImportError:
        raise ConfigurationError(MISSING) from None
    settings = settings_of(context)
    if openapi:
        return print_json(run.openapi(settings))
    return run.run(settings)


@app.command()
def mcp(context: typer.Context) -> None:
    """Give a language model the tools search and fetch, by MCP on standard input and output."""
    try:
        from stream.serve.mcp import run  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigurationError(MISSING) from None
    run(settings_of(context))


@keys.command("new")
def new(
    name: Annotated[str, typer.Argument(parser=utf8, metavar="NAME", help="Who gets the key; logs name it.")],
    texts: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            "-f",
            parser=utf8,
            metavar="FILTER",
            help="The key sees only chunks for which this holds, as for `stream search`. Repeatable: all must hold.",
        ),
    ] = None,
) -> None:
    """Print a new key's line for the file STREAM_SERVE_KEYS, and the key itself, once, on standard error."""
    from stream.serve.access import made  # noqa: PLC0415

    secret, key = made(name, _filter(texts or ()))
    err.print(f"the key of {name}, which nothing can show again: {secret}", markup=False)
    typer.echo(key.model_dump_json(exclude_none=True))


def _filter(texts: Sequence[str]) -> Filter | None:
    return request(query="-", filter=filters.all_of(texts)).filter
