"""How commands read times and places, and the options that several of them have."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from stream.kafka.deadletters import Place

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


def text(argument: str) -> str:
    """An argument that goes to a server, and must be UTF-8 there; Python keeps other bytes as lone surrogates."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("it is not UTF-8") from None  # what it is may be a secret
    return argument


Accept = Annotated[
    list[str] | None,
    typer.Option(parser=text, metavar="CHUNK_ID", help="A chunk that may differ, and you know why; repeatable."),
]


def words(argument: str) -> str:
    """A query of the command line."""
    if not argument.strip():
        raise typer.BadParameter("a query must hold more than white space")
    return text(argument)


def moment(text: str) -> int:
    """An ISO 8601 time (UTC if it names no zone) or a duration before now, such as 90s or 2h, as ms since the epoch."""
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


def place(text: str) -> Place:
    """`PARTITION@OFFSET` of the command line."""
    try:
        return Place.of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
