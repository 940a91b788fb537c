"""`stream replay`: a stage processes records again."""

import asyncio
import re
from typing import Annotated

import typer
from aiokafka.errors import CommitFailedError

from stream.cli.options import DryRun, moment, settings_of, utf8
from stream.cli.output import Json, out, print_json, progress_bars
from stream.config import Settings, StageName
from stream.errors import ConfigurationError
from stream.kafka import topics
from stream.operate import replay as replaying
from stream.operate.replay import Moment, Range

app = typer.Typer(name="replay", help="Let a stage process records again.", no_args_is_help=True)

Stage = Annotated[StageName, typer.Argument(help="The stage that processes the records again.", show_default=False)]


def offsets(text: str) -> tuple[int, range]:
    """Parses `PARTITION@FIRST-LAST`."""
    match = re.fullmatch(r"(\d+)@(\d+)-(\d+)", text)
    if not match:
        raise typer.BadParameter(f"{text!r} is not PARTITION@FIRST-LAST, such as 0@100-199", param_hint="--offsets")
    partition, first, last = map(int, match.groups())
    return partition, range(first, last + 1)


def field(text: str) -> tuple[str, str]:
    """Parses `FIELD=VALUE`."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise typer.BadParameter(f"{text!r} is not FIELD=VALUE, such as metadata.lang=en", param_hint="--where")
    return name, value


def target(text: str) -> Moment:
    """Parses `earliest`, `latest` or a time."""
    match text:
        case "earliest" | "latest":
            return text
    return moment(text)


@app.command("publish")
def publish(
    context: typer.Context,
    stage: Stage,
    *,
    since: Annotated[
        int | None,
        typer.Option(
            parser=moment,
            metavar="TIME",
            help="Published at this time or later: ISO 8601, or a duration before now (2h).",
        ),
    ] = None,
    until: Annotated[
        int | None, typer.Option(parser=moment, metavar="TIME", help="Published before this time.")
    ] = None,
    places: Annotated[
        list[str] | None,
        typer.Option(
            "--offsets", metavar="PARTITION@FIRST-LAST", help="Only these offsets, both included. Repeatable."
        ),
    ] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option("--key", parser=utf8, metavar="TEXT", help="Only records with this key. Repeatable."),
    ] = None,
    doc_id: Annotated[
        str | None, typer.Option(parser=utf8, metavar="TEXT", help="Only records of this document.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            parser=utf8,
            metavar="FIELD=VALUE",
            help="Only records with this value, such as metadata.lang=en. Repeatable; all must match.",
        ),
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Maximum records per second.")] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Publish records of the stage's topic again. A record whose key has a newer record is left out."""
    fields = dict(map(field, where or ())) | ({} if doc_id is None else {"doc_id": doc_id})
    names = frozenset(key.encode() for key in keys or ())
    wanted = Range(since, until, [offsets(place) for place in places or ()], names, fields)
    settings = settings_of(context)
    planned, sent = asyncio.run(_publish(settings, stage, wanted, rate, dry_run))
    if json:
        return print_json({"dry_run": dry_run, "records": sent, "older": planned.older})
    out.print(
        f"{'would publish' if dry_run else 'published'} {sent:,} records of {topics.source(settings, stage)} again"
        + (f"; left out {planned.older:,} whose keys have newer records" if planned.older else "")
    )
    return None


async def _publish(
    settings: Settings, stage: StageName, wanted: Range, rate: float | None, dry_run: bool
) -> tuple[replaying.Plan, int]:
    with progress_bars() as bars:
        reading = bars.add_task("read", total=None)
        planned = await replaying.plan(
            settings, stage, wanted, lambda n, of: bars.update(reading, completed=n, total=of)
        )
        if dry_run or not planned.places:
            return planned, len(planned.places)
        sending = bars.add_task("publish", total=len(planned.places))
        sent = await replaying.publish_again(
            settings, stage, planned, rate=rate, progress=lambda n, of: bars.update(sending, completed=n, total=of)
        )
    return planned, sent


@app.command("reset")
def reset(
    context: typer.Context,
    stage: Stage,
    to: Annotated[
        str,
        typer.Option(
            metavar="earliest|latest|TIME",
            help="Where the stage resumes: ISO 8601, or a duration before now (2h).",
            show_default=False,
        ),
    ],
    json: Json = False,
) -> None:
    """Set the stage's consumer group to the beginning, the end or a time. Refused while its workers run."""
    settings = settings_of(context)
    try:
        at = asyncio.run(replaying.reset(settings, stage, target(to)))
    except CommitFailedError:
        raise ConfigurationError(
            f"workers of {stage} are running, or stopped less than {settings.session_timeout:g} s ago (the session "
            "timeout): stop them, wait that long and run this again"
        ) from None
    if json:
        return print_json({"stage": stage, "offsets": at})
    out.print(f"{stage} resumes at " + ", ".join(f"{partition}@{offset}" for partition, offset in sorted(at.items())))
    return None
