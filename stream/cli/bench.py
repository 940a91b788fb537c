"""`stream bench`: measures this machine."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from stream.cli.options import settings_of
from stream.cli.output import Json, err, out, print_json, progress_bars
from stream.config import STAGES, StageName

app = typer.Typer(name="bench", help="Measure this machine.", no_args_is_help=True)


@app.command()
def splade(
    context: typer.Context,
    seconds: Annotated[float, typer.Option(min=0.1, help="Minimum seconds for each encoder and setting.")] = 5,
    plot: Annotated[Path | None, typer.Option(help="Draw the rates into this file (.svg or .png).")] = None,
    profile: Annotated[bool, typer.Option(help="Print only the table of tokens in flight and GPU memory.")] = False,
    json: Json = False,
) -> None:
    """Compare SPLADE on this GPU with the public encoders. Each rate is also given as a share of the GPU's roofline."""
    from stream.benchmark import splade as measuring  # noqa: PLC0415 - torch takes seconds to import

    settings = settings_of(context)
    with tempfile.TemporaryDirectory() as folder:
        if profile:
            rows = measuring.memory_table(settings, Path(folder))
            if json:
                print_json([dict(zip(("tokens", "gib", "milliseconds"), row, strict=True)) for row in rows])
                return
            table = Table("tokens in flight", "GPU memory, GiB", "milliseconds")
            for tokens, gib, milliseconds in rows:
                table.add_row(f"{tokens:,}", f"{gib:.2f}", f"{milliseconds:.1f}")
            out.print(table)
            return
        result = measuring.run(settings, Path(folder), seconds, lambda line: err.print(line, markup=False))
    if plot:
        measuring.draw(result, plot)
    if json:
        print_json(result)
        return
    for name, comparison in result.comparisons.items():
        table = Table("encoder", "setting", "texts/s", "share of roofline", "GiB", title=name)
        for rate in comparison.rates:
            table.add_row(
                rate.encoder, rate.setting, f"{rate.texts_a_second:,.0f}", f"{rate.share:.1%}", f"{rate.peak_gib:.1f}"
            )
        out.print(table)


@app.command()
def load(
    context: typer.Context,
    chunks: Annotated[int, typer.Option(min=100, help="Number of chunks to publish.")] = 10_000,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Chunks per second; without it, all at once.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw chunks and memory over time into this file (.svg or .png).")
    ] = None,
    json: Json = False,
) -> None:
    """Publish chunks through the whole flow and measure rates, latencies and memory.

    Neo4j must hold no chunks. The topics and the index that it creates are not deleted: use disposable servers.
    """
    from stream.benchmark import load as loading  # noqa: PLC0415

    with progress_bars() as bars:
        tasks = {stage: bars.add_task(stage, total=chunks) for stage in STAGES}

        def progress(stage: StageName, done: int) -> None:
            bars.update(tasks[stage], completed=done)

        result = asyncio.run(loading.run(settings_of(context), chunks, rate, progress))
    if plot:
        loading.draw(result, plot)
    if json:
        print_json(result)
        return
    table = Table("stage", "chunks/s", "peak memory, MiB", title=f"{chunks:,} chunks in {result.seconds:,.0f} s")
    for stage in STAGES:
        table.add_row(stage, f"{result.chunks_a_second[stage]:,.0f}", f"{result.peak_memory_mib[stage]:,.0f}")
    out.print(table)
    ages = ", ".join(f"{share} {seconds:,.1f} s" for share, seconds in result.latency_seconds.items())
    out.print(f"time from published to searchable: {ages}")
