"""What commands print: results on standard output, progress and remarks on standard error.

`out`, `err` and `print_json` escape terminal control characters in everything they print. Text of a record that must
stay on one line is passed through `printable` first.
"""

from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from stream.terminal import printable, printable_json


class _Console(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        """Rich calls this for every string, including the cells of a table."""
        return super().render_str(printable(text, lines=True), **options)


out = _Console(soft_wrap=True, highlight=False, emoji=False)
err = _Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f}/s", style="progress.data.speed")


def print_json(value: Any) -> None:
    """Prints dataclasses, dictionaries and lists as one JSON document."""
    typer.echo(printable_json(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode()))


def progress_bars() -> Progress:
    """Progress bars on standard error; not drawn if standard error is not a terminal."""
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=err, disable=not err.is_terminal)
