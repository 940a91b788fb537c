"""The command that checks everything that the stages need."""

import asyncio
from dataclasses import asdict

import typer
from rich.markup import escape

from stream import errors
from stream.cli.options import settings_of
from stream.cli.output import Json, out, print_json
from stream.config import Settings
from stream.health import doctor as diagnosis

app = typer.Typer()


@app.command()
def doctor(context: typer.Context, json: Json = False) -> None:
    """Check everything that the stages need: the GPU, the servers, the topics, the indexes. Changes nothing."""
    found = asyncio.run(_diagnosed(settings_of(context), quiet=json))
    if json:
        print_json([asdict(finding) for finding in found])
    if not all(finding.ok for finding in found):
        raise typer.Exit(errors.StreamError.exit_code)


async def _diagnosed(settings: Settings, *, quiet: bool) -> list[diagnosis.Finding]:
    found = []
    async for finding in diagnosis.diagnose(settings):
        found.append(finding)
        if not quiet:
            mark = "[red]error[/]" if not finding.ok else "[yellow]warn [/]" if finding.warning else "[green]ok   [/]"
            out.print(f"{mark} {escape(f'{finding.check}: {finding.said}')}")
    return found
