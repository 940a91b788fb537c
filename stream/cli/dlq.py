"""`stream dlq`: list, show, redrive and purge dead letters."""

import asyncio
import sys
from base64 import b64encode
from collections import deque
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
import typer
from rich.markup import escape
from rich.table import Table

from stream.cli.options import DryRun, moment, settings_of, utf8
from stream.cli.output import Json, err, out, print_json, progress_bars
from stream.config import STAGES, Settings, StageName
from stream.errors import StreamError
from stream.kafka import deadletters
from stream.kafka.deadletters import DeadLetter, Filter, Place
from stream.operate import purge as purging
from stream.operate import redrive as redriving
from stream.operate.redrive import Verdict
from stream.records import VECTOR_HEADER, Reason
from stream.terminal import printable
from stream.wire import payload

COLUMNS = ("at", "stage", "place", "from", "key", "reason", "detail", "attempts")
MIN_LINES = 10  # of a value that are printed on any screen

app = typer.Typer(name="dlq", help="Dead letters: records that a stage rejected.", no_args_is_help=True)


def place(text: str) -> Place:
    """Parses `PARTITION@OFFSET`."""
    try:
        return Place.of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Stage = Annotated[StageName | None, typer.Option(help="Only dead letters of this stage.")]
Why = Annotated[Reason | None, typer.Option(help="Only dead letters with this reason.")]
Key = Annotated[str | None, typer.Option(parser=utf8, metavar="TEXT", help="Only dead letters with exactly this key.")]
Since = Annotated[
    int | None,
    typer.Option(
        parser=moment, metavar="TIME", help="Rejected at this time or later: ISO 8601, or a duration before now (2h)."
    ),
]
Until = Annotated[
    int | None,
    typer.Option(
        parser=moment, metavar="TIME", help="Rejected before this time: ISO 8601, or a duration before now (2h)."
    ),
]


@app.command("ls")
def ls(
    context: typer.Context,
    *,
    stage: Stage = None,
    reason: Why = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum per stage; the newest are listed.")] = 100,
    everything: Annotated[bool, typer.Option("--all", help="Include dead letters that were already redriven.")] = False,
    json: Json = False,
) -> None:
    """List dead letters with time, origin and reason."""
    wanted = _filter(stage, reason, key, since, until)
    letters = asyncio.run(_newest(settings_of(context), wanted, limit, everything))
    if json:
        return print_json([_plain(letter) for letter in letters])
    columns = (*COLUMNS, "redriven") if everything else COLUMNS
    table = Table(*columns)
    for letter in letters:
        plain = _plain(letter)
        table.add_row(*(escape(printable(str(plain[column] or ""))) for column in columns))
    out.print(table if letters else "no dead letters")
    return None


@app.command("show")
def show(
    context: typer.Context,
    stage: Annotated[StageName, typer.Argument(help="The stage that rejected it.", show_default=False)],
    which: Annotated[
        str,
        typer.Argument(
            parser=utf8,
            metavar="PARTITION@OFFSET|KEY",
            help="Its place as `ls` prints it, or its key (then the newest).",
        ),
    ],
    raw: Annotated[bool, typer.Option("--raw", help="Write only the value, as exact bytes.")] = False,
    json: Json = False,
) -> None:
    """Show one dead letter: its headers and the beginning of its value."""
    if raw and sys.stdout.isatty():
        raise typer.BadParameter(
            "the value may hold terminal control codes: redirect it to a file or a pipe", param_hint="--raw"
        )
    letter = asyncio.run(_find(settings_of(context), stage, which))
    if raw:
        typer.echo(letter.record.value or b"", nl=False)
    elif json:
        print_json(_plain(letter) | {"headers": _headers(letter), "value": _text(letter.record.value)})
    else:
        _print_letter(letter)


@app.command("redrive")
def redrive(
    context: typer.Context,
    *,
    stage: Stage = None,
    reason: Why = None,
    key: Key = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum per stage; the oldest are redriven.")] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Include letters that were already redriven or whose key has a newer record."),
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Publish dead letters again to the topic that their stage reads. Exit code 1 if any is not redriven."""
    wanted = _filter(stage, reason, key, since, until)
    verdicts = asyncio.run(_redrive(settings_of(context), wanted, limit, everything, dry_run))
    went = [verdict for verdict in verdicts if not verdict.stays]
    stayed = [verdict for verdict in verdicts if verdict.stays]
    if json:
        print_json(
            {
                "dry_run": dry_run,
                "redriven": [_plain(verdict.letter) for verdict in went],
                "stayed": [_plain(verdict.letter) | {"why": verdict.stays} for verdict in stayed],
            }
        )
    else:
        _print_verdicts(went, stayed, dry_run)
    if stayed:
        raise typer.Exit(1)


@app.command("purge")
def purge(
    context: typer.Context,
    *,
    stage: Annotated[StageName, typer.Option(help="The stage whose dead letters are deleted.", show_default=False)],
    until: Until = None,
    before: Annotated[
        Place | None,
        typer.Option(
            parser=place, metavar="PARTITION@OFFSET", help="Only this partition, and only before this offset."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number; the oldest are deleted.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Delete the oldest dead letters of a stage for good; without --until, --before or --limit, all of them."""
    settings = settings_of(context)
    cut = asyncio.run(purging.plan(settings, stage, until=until, before=before, limit=limit))
    said = f"{cut.letters:,} dead letters of {stage}, {cut.waiting:,} of which were never redriven"
    deletes = bool(cut.offsets) and not dry_run
    if deletes and not yes:
        _ask(f"Delete {said}?")
    if deletes:
        asyncio.run(purging.purge(settings, stage, cut))
    if json:
        return print_json({"dry_run": dry_run, "stage": stage, "letters": cut.letters, "never_redriven": cut.waiting})
    out.print(f"{'would delete' if dry_run else 'deleted'} {said}")
    return None


def _filter(
    stage: StageName | None, reason: Reason | None, key: str | None, since: int | None, until: int | None
) -> Filter:
    return Filter((stage,) if stage else STAGES, reason, None if key is None else key.encode(), since, until)


async def _newest(settings: Settings, wanted: Filter, limit: int, everything: bool) -> list[DeadLetter]:
    newest: list[DeadLetter] = []
    for stage in wanted.stages:
        last: deque[DeadLetter] = deque(maxlen=limit)
        async for letter in deadletters.read(settings, stage):
            if wanted.takes(letter) and (everything or letter.redriven is None):
                last.append(letter.without_value)
        newest.extend(last)
    return newest


async def _find(settings: Settings, stage: StageName, which: str) -> DeadLetter:
    found = None
    async for letter in deadletters.read(settings, stage):
        if str(letter.place) == which:
            return letter
        if letter.record.key == which.encode():
            found = letter
    if found is None:
        raise StreamError(
            f"{stage} has no dead letter at the place or with the key {which!r}; `stream dlq ls` lists them"
        )
    return found


async def _redrive(settings: Settings, wanted: Filter, limit: int | None, again: bool, dry_run: bool) -> list[Verdict]:
    verdicts: list[Verdict] = []
    for stage in wanted.stages:
        planned = await redriving.plan(settings, stage, wanted, limit=limit, again=again)
        if not dry_run:
            with progress_bars() as bars:
                task = bars.add_task(f"redrive {stage}", total=sum(not verdict.stays for verdict in planned))
                done = await redriving.redrive(settings, stage, planned, lambda t=task: bars.advance(t))  # type: ignore[misc]
            planned = [verdict for verdict in planned if verdict.stays] + done
        verdicts += planned
    return verdicts


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            "standard input is not a terminal, so nobody can confirm; --yes deletes without asking", param_hint="--yes"
        )
    typer.confirm(question, abort=True, err=True)


def _print_verdicts(went: list[Verdict], stayed: list[Verdict], dry_run: bool) -> None:
    for verdict in stayed:
        err.print(f"{_name(verdict.letter)} is not redriven: {verdict.stays}", markup=False)
    for verdict in went if dry_run else ():
        out.print(f"{_name(verdict.letter)} would be redriven", markup=False)
    out.print(
        f"{'would redrive' if dry_run else 'redrove'} {len(went):,} dead letters"
        + (f", {len(stayed):,} not redriven" if stayed else "")
    )


def _print_letter(letter: DeadLetter) -> None:
    lines = [f"{name}: {value}" for name, value in _plain(letter).items() if value is not None]
    lines += ["", *(f"{header['name']}: {header['value']}" for header in _headers(letter)), ""]
    head = [_cut(printable(line)) for line in lines]
    value = _pretty(letter)
    room = max(out.size.height - len(head) - 2, MIN_LINES)
    shown = [_cut(line) for line in value[:room]]
    out.print("\n".join(head + shown), markup=False)
    if shown != value:
        err.print("the value is cut to fit the screen; --raw writes all of it")


def _cut(line: str) -> str:
    return line if len(line) <= out.size.width else line[: out.size.width - 1] + "…"


def _pretty(letter: DeadLetter) -> list[str]:
    value = letter.record.value
    if value is None:
        return [
            "the value was left out: Kafka would not take it a second time"
            if letter.left_out
            else "no value: a tombstone"
        ]
    try:
        text = orjson.dumps(orjson.loads(payload(value)), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        text = value.decode(errors="backslashreplace")
    return [printable(line) for line in text.split("\n")]


def _name(letter: DeadLetter) -> str:
    return f"{letter.stage} {letter.place} {printable(_text(letter.record.key) or '')}"


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="backslashreplace")


def _headers(letter: DeadLetter) -> list[dict[str, str | None]]:
    """Values as text, but for the vector, which is base64."""
    return [
        {"name": name, "value": b64encode(value).decode() if value and name == VECTOR_HEADER else _text(value)}
        for name, value in letter.record.headers
    ]


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")


def _plain(letter: DeadLetter) -> dict[str, Any]:
    return {
        "at": _time(letter.at),
        "stage": letter.stage,
        "place": str(letter.place),
        "from": f"{letter.topic}/{letter.partition}@{letter.offset}",
        "key": (letter.record.key or b"").decode(errors="replace"),
        "reason": letter.reason,
        "detail": letter.detail,
        "attempts": str(letter.attempts),
        "bytes": str(letter.size),
        "redriven": None if letter.redriven is None else _time(letter.redriven),
    }
