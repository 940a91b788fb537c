"""`stream settings` and `stream metrics`: reference tables, for a terminal and as pages of `docs/`."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from stream import metrics
from stream.cli.output import out
from stream.config import Settings

app = typer.Typer()
Markdown = Annotated[bool, typer.Option("--markdown", help="Print the page of docs/.")]

SETTINGS = """\
# Configuration

Every setting, as an environment variable. On the command line the name is in lower case and without the prefix:
`stream --set batch_size=64 …`. `STREAM_ENV_FILE` names a file of such variables (default `.env`). `STREAM_SECRETS_DIR`
names a folder with a file for each setting: the file `stream_neo4j_password` holds that password. Precedence: command
line, environment, file, folder, default. `REQUIRE_GPU` is short for `STREAM_REQUIRE_GPU`.

`make docs` generates this page.

"""

METRICS = """\
# Metrics

A worker serves these metrics at `/metrics`, port 9101 (embed), 9102 (expand) or 9103 (index), and those of the
Prometheus client library, such as `process_start_time_seconds`. vLLM serves its own metrics at its `/metrics`.

`make docs` generates this page.

"""


@app.command("settings")
def show_settings(markdown: Markdown = False) -> None:
    """List every setting with its default and its meaning."""
    rows = [
        (f"STREAM_{name.upper()}", _default(field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    _show(("variable", "default", "meaning"), rows, SETTINGS if markdown else None)


@app.command("metrics")
def show_metrics(markdown: Markdown = False) -> None:
    """List the metrics that a worker serves to Prometheus."""
    rows = [(one.name, one.type, ", ".join(one.labels), one.meaning) for one in metrics.listed()]
    _show(("metric", "type", "labels", "meaning"), rows, METRICS if markdown else None)


def _show(columns: Sequence[str], rows: Sequence[Sequence[str]], page: str | None) -> None:
    """Prints a table; on a page, the first two columns are code."""
    if page is None:
        table = Table(*columns)
        for row in rows:
            table.add_row(*row)
        out.print(table)
        return
    typer.echo(f"{page}| {' | '.join(columns)} |\n| {' | '.join('---' for _ in columns)} |")
    for name, second, *others in rows:
        typer.echo(f"| {' | '.join([f'`{name}`', f'`{second}`' if second else '', *others])} |")


def _default(field: Any) -> str:
    if field.default_factory:
        return str(field.examples[0])
    return "" if field.default is None else str(int(field.default) if field.default is True else field.default)
