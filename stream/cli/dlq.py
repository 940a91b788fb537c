"""`stream dlq`: dead letters."""

import asyncio
from collections import deque
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from stream import deadletters
from stream.cli.commands import settings_of
from stream.cli.output import Json, out, print_json
from stream.config import STAGES, Settings, StageName
from stream.deadletters import DeadLetter

COLUMNS = ("at", "stage", "from", "key", "reason", "detail", "attempts")

dlq = typer.Typer(name="dlq", help="Dead letters: records that could not go through.", no_args_is_help=True)


@dlq.callback()
def _group() -> None:
    """Keeps `ls` a subcommand while it is the only one."""


@dlq.command("ls")
def ls(
    context: typer.Context,
    stage: Annotated[StageName | None, typer.Option(help="Only this stage's.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many of each stage, the newest.")] = 100,
    json: Json = False,
) -> None:
    """List dead letters: when, where from and why."""
    letters = asyncio.run(_newest(settings_of(context), [stage] if stage else list(STAGES), limit))
    if json:
        return print_json([_plain(letter) for letter in letters])
    table = Table(*COLUMNS)
    for letter in letters:
        plain = _plain(letter)
        table.add_row(*(escape(plain[column]) for column in COLUMNS))
    out.print(table if letters else "no dead letters")
    return None


async def _newest(settings: Settings, stages: list[StageName], limit: int) -> list[DeadLetter]:
    newest: list[DeadLetter] = []
    for stage in stages:
        last: deque[DeadLetter] = deque(maxlen=limit)
        async for letter in deadletters.read(settings, stage):
            last.append(letter)
        newest.extend(last)
    return newest


def _plain(letter: DeadLetter) -> dict[str, str]:
    return {
        "at": datetime.fromtimestamp(letter.at / 1000, UTC).isoformat(timespec="seconds"),
        "stage": letter.stage,
        "from": f"{letter.topic}/{letter.partition}@{letter.offset}",
        "key": (letter.record.key or b"").decode(errors="replace"),
        "reason": letter.reason,
        "detail": letter.detail,
        "attempts": str(letter.attempts),
        "bytes": str(letter.record.size),
    }
