"""The commands that run, fill, check and search the flow."""

import asyncio
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, BinaryIO, cast

import orjson
import typer
from rich.markup import escape
from rich.table import Table

from stream import __version__, config, errors
from stream.cli.options import Accept, DryRun, non_blank, utf8
from stream.cli.output import Json, err, out, print_json, progress_bars
from stream.config import SearchMode, Settings, StageName
from stream.health import doctor as diagnosis
from stream.kafka import topics as kafka_topics
from stream.models.embeddings import EmbeddingClient
from stream.operate import delete as deleting
from stream.operate import publish as publishing
from stream.operate import status as state
from stream.operate import verify as checking
from stream.stores import open_stores
from stream.stores.base import Hit
from stream.terminal import printable

app = typer.Typer(
    name="stream",
    help="Turns text chunks into searchable knowledge in seconds and loses none of them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
topics = typer.Typer(name="topics", help="The Kafka topics.", no_args_is_help=True)
app.add_typer(topics)

ENCODED_AT_ONCE = 1024  # texts
HIT_LENGTH = 100  # characters of a hit's text that are printed


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _configure(
    context: typer.Context,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            parser=utf8,
            metavar="NAME=VALUE",
            help="Set a setting; it overrides the environment. Repeatable. `stream settings` lists the names.",
        ),
    ] = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pairs = [assignment.partition("=") for assignment in assignments or []]
    if not all(equals for _, equals, _ in pairs):
        raise typer.BadParameter("expected NAME=VALUE", param_hint="--set")  # not printed: it may be a secret
    context.obj = {name.lower(): value for name, _, value in pairs}


def settings_of(context: typer.Context) -> Settings:
    """Loads the settings, with the values of `--set` first."""
    return config.load(**context.obj)


@app.command()
def worker(
    context: typer.Context,
    stage: Annotated[StageName, typer.Argument(help="The stage to run.", show_default=False)],
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="all|N", help="Start one worker process for each GPU, or for the first N. Only for `expand`."
        ),
    ] = None,
) -> None:
    """Run one stage until SIGTERM."""
    settings = settings_of(context)
    if gpus is None:
        from stream.worker.run import run  # noqa: PLC0415 - Faust takes a second to import

        run(stage, settings)
        return
    from stream.worker import gpus as several  # noqa: PLC0415

    if stage != "expand" or not (gpus == "all" or (gpus.isdecimal() and int(gpus))):
        raise typer.BadParameter("only `expand` takes it; expected `all` or a number from 1", param_hint="--gpus")
    found = several.visible()
    wanted = len(found) if gpus == "all" else int(gpus)
    if wanted > len(found):
        raise errors.GpuRequired(f"--gpus {wanted}: only {len(found)} GPUs are visible; ask for fewer")
    raise typer.Exit(several.run(stage, settings, context.obj, found[:wanted]))


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


@app.command()
def encode(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="One text per line; - means standard input.")],
) -> None:
    """Print the SPLADE terms and the raw norm of each line, one JSON document per line, in input order."""
    from stream.models.splade import SparseEncoder  # noqa: PLC0415 - torch takes seconds to import

    with ExitStack() as stack:
        source, _ = _open(file, stack)
        try:
            texts = _lines(source.read().decode())
        except UnicodeDecodeError as error:
            raise errors.StreamError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from None
    encoder = SparseEncoder(settings_of(context))
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        for vector in encoder.encode(texts[start : start + ENCODED_AT_ONCE]):
            typer.echo(orjson.dumps({"terms": vector.terms, "norm": vector.norm}))


def _lines(text: str) -> list[str]:
    """Splits at LF and CRLF only; the other line ends of `str.splitlines` are part of the text."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


@app.command()
def publish(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE.jsonl|-", help="One chunk per line; - means standard input.")],
) -> None:
    """Check chunks and publish the good ones. Bad lines are reported by line number, with exit code 1."""
    with ExitStack() as stack:
        source, size = _open(file, stack)
        bars = stack.enter_context(progress_bars())
        task = bars.add_task("publish", total=size)
        published = asyncio.run(
            publishing.publish(source, settings_of(context), lambda n: bars.update(task, advance=n))
        )
    for number, wrong in published.bad.items():
        err.print(f"line {number}: {printable(wrong)}", markup=False)
    err.print(f"published {published.sent:,} chunks" + (f", {len(published.bad):,} bad lines" if published.bad else ""))
    if published.bad:
        raise typer.Exit(1)


@app.command()
def validate(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE.jsonl|-", help="One chunk per line; - means standard input.")],
    json: Json = False,
) -> None:
    """Check chunks as `publish` does, without Kafka and without publishing. Exit code 1 if any line is bad."""
    with ExitStack() as stack:
        source, _ = _open(file, stack)
        checked = publishing.validate(source, settings_of(context).max_record_bytes)
    if json:
        print_json(checked)
    else:
        for number, wrong in checked.bad.items():
            out.print(f"line {number}: {printable(wrong)}", markup=False)
        for remark in checked.remarks:
            out.print(remark, markup=False)
        out.print(f"{checked.good:,} good chunks, {len(checked.bad):,} bad lines")
    if checked.bad:
        raise typer.Exit(1)


@app.command()
def delete(
    context: typer.Context,
    doc_id: Annotated[
        str,
        typer.Option(parser=utf8, metavar="TEXT", help="The document whose chunks are deleted.", show_default=False),
    ],
    dry_run: DryRun = False,
) -> None:
    """Publish a tombstone for each chunk of a document; the workers then delete the chunks from both stores.

    A chunk that a producer publishes while the command runs is not deleted. It is named, with exit code 1.
    """
    settings = settings_of(context)

    async def run() -> tuple[list[str], list[str]]:
        with progress_bars() as bars:
            reading = bars.add_task("read", total=None)
            found = await deleting.chunks_of(
                settings, doc_id, lambda n, of: bars.update(reading, completed=n, total=of)
            )
            stayed = []
            if not dry_run:
                sending = bars.add_task("delete", total=len(found))
                stayed = await deleting.delete(settings, found, lambda n: bars.update(sending, completed=n))
        return [one.chunk_id for one in found if one.chunk_id not in stayed], stayed

    chunk_ids, stayed = asyncio.run(run())
    for chunk_id in chunk_ids if dry_run else ():
        out.print(chunk_id, markup=False)
    out.print(f"{'would delete' if dry_run else 'deleted'} {len(chunk_ids):,} chunks of {doc_id}", markup=False)
    for chunk_id in stayed:
        err.print(f"{chunk_id} is not deleted: it was published while the command ran", markup=False)
    if stayed:
        raise typer.Exit(1)


def _open(file: str, stack: ExitStack) -> tuple[BinaryIO, int | None]:
    if file == "-":
        return sys.stdin.buffer, None
    path = Path(file)
    try:
        return cast(BinaryIO, stack.enter_context(path.open("rb"))), path.stat().st_size
    except OSError as error:
        raise errors.ConfigurationError(f"cannot read {file}: {error.strerror}") from None


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


@app.command()
def search(
    context: typer.Context,
    query: Annotated[str, typer.Argument(parser=non_blank, metavar="QUERY", help="What to search for.")],
    mode: Annotated[
        SearchMode, typer.Option(help="lexical: SPLADE terms and BM25 in OpenSearch. dense: vectors in Neo4j.")
    ] = "lexical",
    limit: Annotated[int, typer.Option("--limit", "-k", min=1, max=1000, help="Maximum number of hits.")] = 10,
    json: Json = False,
) -> None:
    """Search one of the stores."""
    hits = asyncio.run(find(settings_of(context), query, mode, limit))
    if json:
        return print_json(hits)
    print_hits(hits)
    return None


async def find(settings: Settings, query: str, mode: SearchMode, limit: int) -> list[Hit]:
    """Opens clients, searches once and closes them."""
    from stream.search import Searcher  # noqa: PLC0415 - torch takes seconds to import

    async with open_stores(settings) as stores, EmbeddingClient(settings) as embedder:
        return await Searcher(settings, stores, embedder).search(query, mode, limit)


def print_hits(hits: list[Hit]) -> None:
    """Prints each hit's score and chunk_id, and the beginning of its text on the next line."""
    for hit in hits:
        out.print(f"{hit.score:8.3f}  {printable(hit.chunk_id)}", markup=False)
        out.print(f"          {' '.join(hit.text.split())[:HIT_LENGTH]}", markup=False, style="dim")
    if not hits:
        out.print("nothing found")


@topics.command("create")
def create_topics(context: typer.Context) -> None:
    """Create the topics that do not exist."""
    created = asyncio.run(kafka_topics.create(settings_of(context)))
    out.print(f"created {', '.join(created)}" if created else "all topics exist")
