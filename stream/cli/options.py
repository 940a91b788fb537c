"""Parsers for command-line arguments, and the options that several commands share."""

import re
import sys
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, BinaryIO, cast

import typer

from stream import config
from stream.config import Settings
from stream.errors import ConfigurationError

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done; change nothing.")]


def utf8(argument: str) -> str:
    """Requires UTF-8, because servers do. Python decodes other bytes as lone surrogates, which cannot be encoded."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("it is not UTF-8") from None  # not printed: it may be a secret
    return argument


Accept = Annotated[
    list[str] | None,
    typer.Option(
        parser=utf8, metavar="CHUNK_ID", help="Report a difference of this chunk, but do not fail. Repeatable."
    ),
]


def moment(text: str) -> int:
    """Parses an ISO 8601 time (UTC if it has no zone) or a duration before now (90s, 2h) into ms since the epoch."""
    if duration := re.fullmatch(r"(\d{1,6})([smhdw])", text):
        at = datetime.now(UTC) - timedelta(**{UNITS[duration[2]]: int(duration[1])})
    else:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise typer.BadParameter(
                f"{text!r} is neither an ISO time such as 2026-01-31T12:00 nor a duration such as 90s, 2h or 7d"
            ) from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def settings_of(context: typer.Context) -> Settings:
    """Loads the settings, with the values of `--set` first."""
    return config.load(**context.obj)


def open_file(file: str, stack: ExitStack) -> tuple[BinaryIO, int | None]:
    if file == "-":
        return sys.stdin.buffer, None
    path = Path(file)
    try:
        return cast(BinaryIO, stack.enter_context(path.open("rb"))), path.stat().st_size
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}") from None
