"""`stream eval`: measures the quality of search."""

import asyncio
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.markup import escape
from rich.table import Table

from stream.cli.options import settings_of
from stream.cli.output import Json, err, out, print_json, progress_bars
from stream.config import STAGES, SearchMode
from stream.evaluate import evaluation, plots, runs
from stream.evaluate.collection import Collection, read, read_judged
from stream.evaluate.evaluation import Figure, Report
from stream.evaluate.measures import MEASURES, require

app = typer.Typer()

MODES: tuple[SearchMode, ...] = get_args(SearchMode)


@app.command("eval")
def evaluate(
    context: typer.Context,
    *,
    collection: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Index this collection and measure with it.")
    ] = None,
    queries: Annotated[Path | None, typer.Option(help="Queries for what is indexed already; needs --qrels.")] = None,
    qrels: Annotated[Path | None, typer.Option(help="The judgements of these queries.")] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(MODES), help="A mode to measure. Repeatable; the first is compared with the others."
        ),
    ] = None,
    depth: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of hits of a query.")] = 100,
    plot: Annotated[Path | None, typer.Option(help="Draw the figures into this file (.svg or .png).")] = None,
    run_files: Annotated[
        Path | None, typer.Option("--runs", metavar="FOLDER", help="Write a TREC run file of each mode into it.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure how well each search mode finds the chunks that people judged to be relevant.

    A collection is indexed in names of its own. Running the command again measures without indexing again.
    """
    require("ir_measures", *(["matplotlib"] if plot else []))
    if plot and plot.suffix not in (".svg", ".png"):
        raise typer.BadParameter("expected a name that ends with .svg or .png", param_hint="--plot")
    modes = list(dict.fromkeys(_mode(name) for name in mode or MODES))
    settings, given = settings_of(context), _input(collection, queries, qrels)
    with progress_bars() as bars:
        names = ("publish", *STAGES, "search") if collection else ("search",)
        tasks = {name: bars.add_task(name, total=None) for name in names}
        report, found = asyncio.run(
            evaluation.run(
                settings,
                context.obj,
                given,
                modes,
                depth=depth,
                progress=lambda name, done, total: bars.update(tasks[name], completed=done, total=total),
            )
        )
    if report.rejected:
        err.print(
            f"{report.rejected:,} of {report.chunks:,} chunks are not in both stores, so no search finds them: "
            f"`stream --set topic={report.topic} dlq ls` lists those that were rejected"
        )
    print_json(report) if json else _print(report)
    if run_files:
        runs.write(run_files, found)
    if plot:
        plots.draw(report, plot)


def _mode(name: str) -> SearchMode:
    """`name`, if it is a mode. Typer has no lists of literals."""
    for mode in MODES:
        if name == mode:
            return mode
    raise typer.BadParameter(f"{name!r} is not one of {', '.join(MODES)}", param_hint="--mode")


def _input(collection: Path | None, queries: Path | None, qrels: Path | None) -> Collection:
    if collection and not (queries or qrels):
        return read(collection)
    if queries and qrels and not collection:
        return read_judged(queries, qrels)
    raise typer.BadParameter("expected either --collection, or --queries and --qrels")


def _print(report: Report) -> None:
    title = f"{report.name}: {report.queries:,} queries, at most {report.depth:,} hits each"
    table = Table("mode", *MEASURES, title=escape(title))
    table.columns[0].no_wrap = True
    for row in report.rows:
        table.add_row(row.label, *(_cell(row.figures[name], first=row is report.rows[0]) for name in MEASURES))
    out.print(table)
    out.print(f"[95 % confidence interval]; p of the difference from {report.rows[0].mode}", markup=False)


def _cell(figure: Figure, *, first: bool) -> str:
    p = "" if first else " p<0.001" if figure.p < 0.001 else f" p={figure.p:.3f}"
    return f"{figure.mean:.3f}{p}\n\\[{figure.low:.3f}, {figure.high:.3f}]"
