"""The commands that publish, check and delete chunks."""

import asyncio
from contextlib import ExitStack
from typing import Annotated

import typer

from stream.cli.options import DryRun, open_file, settings_of, utf8
from stream.cli.output import Json, err, out, print_json, progress_bars
from stream.operate import delete as deleting
from stream.operate import publish as publishing
from stream.terminal import printable

app = typer.Typer()

ChunksFile = Annotated[str, typer.Argument(metavar="FILE.jsonl|-", help="One chunk per line; - means standard input.")]


@app.command()
def publish(
    context: typer.Context,
    file: ChunksFile,
) -> None:
    """Check chunks and publish the good ones. Bad lines are reported by line number, with exit code 1."""
    with ExitStack() as stack:
        source, size = open_file(file, stack)
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
    file: ChunksFile,
    json: Json = False,
) -> None:
    """Check chunks as `publish` does, without Kafka and without publishing. Exit code 1 if any line is bad."""
    with ExitStack() as stack:
        source, _ = open_file(file, stack)
        checked = publishing.validate(source, settings_of(context))
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
