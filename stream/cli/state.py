"""The commands that show and check how far everything is."""

import asyncio
from typing import Annotated

import orjson
import typer
from rich.table import Table

from stream.cli.options import Accept, settings_of
from stream.cli.output import Json, out, print_json, progress_bars
from stream.kafka import topics as kafka_topics
from stream.operate import status as state
from stream.operate import verify as checking
from stream.stores import open_stores

app = typer.Typer()
topics = typer.Typer(name="topics", help="The Kafka topics.", no_args_is_help=True)
app.add_typer(topics)


@app.command()
def status(context: typer.Context, json: Json = False) -> None:
    """Show the lag and the dead letters of each stage, and what the stores hold."""

    async def look() -> state.Status:
        settings = settings_of(context)
        async with open_stores(settings) as stores:
            return await state.status(settings, stores)

    found = asyncio.run(look())
    if json:
        stages = {s.stage: {"total": s.total, "lag": s.lag, "dead_letters": s.dead_letters} for s in found.stages}
        return print_json({"stages": stages, "stores": found.stores, "origins": found.origins})
    table = Table("stage", "records", "lag", "dead letters")
    for s in found.stages:
        table.add_row(s.stage, f"{s.total:,}", f"{s.lag:,}", f"{s.dead_letters:,}")
    out.print(table)
    for name, count in found.stores.items():
        out.print(f"{name}: {count:,} chunks")
        for origin, n in found.origins[name].items():
            out.print(f"  {n:,} of {_origin(origin)}", markup=False)
    return None


def _origin(provenance: str) -> str:
    """Formats a provenance for people."""
    if not provenance:
        return "unknown model (written by an earlier version)"
    made = orjson.loads(provenance)
    parameters = ", ".join(f"{name} {value}" for name, value in made["parameters"].items())
    return f"{made['model']} at {made['revision']}" + (f" ({parameters})" if parameters else "")


@app.command()
def verify(
    context: typer.Context,
    wait: Annotated[float, typer.Option(help="Seconds to keep checking chunks that are still on their way.")] = 0,
    accept: Accept = None,
    json: Json = False,
) -> None:
    """Compare both stores with the topic, chunk by chunk. Exit code 1 if any chunk is lost or wrong."""

    async def check() -> checking.Report:
        settings = settings_of(context)
        async with open_stores(settings) as stores:
            with progress_bars() as bars:
                reading, comparing = bars.add_task("read", total=None), bars.add_task("compare", total=None)
                return await checking.verify(
                    settings,
                    stores,
                    wait=wait,
                    accept=accept or (),
                    reading=lambda n, of: bars.update(reading, completed=n, total=of),
                    progress=lambda n, of: bars.update(comparing, completed=n, total=of),
                )

    report = asyncio.run(check())
    if json:
        print_json({**report.__dict__, "clean": report.clean})
    else:
        print_report(report)
    if not report.clean:
        raise typer.Exit(1)


def print_report(report: checking.Report) -> None:
    """Prints what `verify` found."""
    _print_some(report.differences, report.different)
    _print_some(report.ahead_chunks, report.ahead)
    _print_some([f"accepted: {said}" for said in report.accepted_chunks], report.accepted)
    _print_some(report.falling_chunks, report.versions_fall)
    out.print(
        f"{report.published:,} published = {report.indexed:,} in Neo4j and OpenSearch + {report.deleted:,} deleted "
        f"+ {report.dead_lettered:,} dead-lettered "
        + (f"+ {report.rejected:,} that break the contract " if report.rejected else "")
        + (f"+ {report.on_their_way:,} on their way " if report.on_their_way else "")
        + (f"+ {report.ahead:,} ahead of the topic " if report.ahead else "")
        + (f"+ {report.accepted:,} accepted " if report.accepted else "")
        + f"+ [bold]{report.different:,} lost or wrong[/]"
    )
    if report.ahead:
        out.print(
            f"The stores are ahead of the topic by {report.ahead:,} chunks: the topic has a lower version of them, and "
            "a rebuilt store would get that one. Publish each again, with a higher version than the stores have."
        )
    if report.versions_fall:
        out.print(
            f"The last record of {report.versions_fall:,} chunks has a lower version than an earlier record: "
            "compaction keeps the last record, the stores keep the highest version. "
            "Publish each again, with a higher version than it ever had."
        )


def _print_some(chunks: list[str], count: int) -> None:
    for said in chunks:
        out.print(said, markup=False)
    if count > len(chunks):
        out.print(f"… and {count - len(chunks):,} more")


@topics.command("create")
def create_topics(context: typer.Context) -> None:
    """Create the topics that do not exist."""
    created = asyncio.run(kafka_topics.create(settings_of(context)))
    out.print(f"created {', '.join(created)}" if created else "all topics exist")
